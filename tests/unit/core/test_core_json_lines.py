"""Lines of JSON: only "\\n" ends one, and only a last one may be cut short."""

import json
from pathlib import Path

import pytest

from narrowtune.core.errors import UsageError
from narrowtune.core.json_lines import append_json_line, read_json_lines


def values(path: Path) -> list[object]:
    return [value for _, value in read_json_lines(path, "numbers")]


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c"])
def test_marks_within_a_text_end_no_line(tmp_path, mark):
    path = tmp_path / "new" / "rows.jsonl"
    assert values(path) == []
    rows = [f"a{mark}b", "c"]
    for row in rows:
        append_json_line(path, json.dumps(row, ensure_ascii=False))
    assert values(path) == rows


def test_a_last_line_that_was_cut_short_is_left_out_and_replaced(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_json_line(path, '{"n": 1}')
    whole = path.read_bytes()
    # The last of these is cut within a letter.
    for tail in (b'{"n"', b'{"n": 2, "text": "', '{"text": "é'.encode()[:-1]):
        path.write_bytes(whole + tail)
        assert values(path) == [{"n": 1}]
        append_json_line(path, '{"n": 3}')
        assert path.read_bytes() == whole + b'{"n": 3}\n'


def test_a_last_line_that_only_lacks_its_end_counts(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"n": 1}')
    assert values(path) == [{"n": 1}]
    append_json_line(path, '{"n": 2}')
    assert values(path) == [{"n": 1}, {"n": 2}]


def test_a_broken_line_before_the_last_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    for text in ('{"n": 1}\n\n{"n"\n{"n": 3}\n', '{"n": 1}\n\n{"n"\n', '{"n": 1}\n\n{"n"\n{"n"'):
        path.write_text(text)
        with pytest.raises(UsageError) as error:
            values(path)
        assert f"line 3 of {path} is not JSON" in error.value.found
        assert error.value.asked == "numbers"
        assert "take that line out" in error.value.do
