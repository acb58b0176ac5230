"""What a resumed run finds of its log."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from narrowtune.core.errors import UsageError
from narrowtune.train.callbacks import LogFile

ROWS = [{"step": n, "seconds": 0.5 * n, "loss": 1.0 / n} for n in (1, 2, 3)]


def resume(path, step):
    state = SimpleNamespace(global_step=step, log_history=[], is_world_process_zero=True)
    LogFile(path).on_train_begin(None, state, None)
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_last_line_that_was_cut_short_is_left_out(tmp_path):
    """Cut behind the brace of a value in it too, where it looks as if it had ended."""
    path = tmp_path / "train.jsonl"
    whole = "".join(json.dumps(row) + "\n" for row in ROWS)
    for tail in ('{"step": 4, "loss": {"skill": 1.0}', '{"step": 4, "lo', "{"):
        path.write_text(whole + tail)
        assert resume(path, 4) == ROWS
        assert path.read_text() == whole
    path.write_text(whole.rstrip("\n"))
    assert resume(path, 4) == ROWS, "it lacks its end alone"
    assert resume(path, 2) == ROWS[:2]


def test_a_broken_line_before_the_last_is_named(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(f"{json.dumps(ROWS[0])}\n{{\n{json.dumps(ROWS[2])}\n")
    with pytest.raises(UsageError, match="to go on with the log") as error:
        resume(path, 3)
    assert f"line 2 of {path} is not JSON" in error.value.found
    assert "the log then lacks its step" in error.value.do
