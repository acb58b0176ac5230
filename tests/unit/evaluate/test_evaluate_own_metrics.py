"""A metric of the user's own: loaded once, told when it can't be used, part of a task's hash."""

from __future__ import annotations

from pathlib import Path

import pytest

from narrowtune.core.data_settings import DataSettings
from narrowtune.core.errors import EvaluationError
from narrowtune.data.examples import Example, Message, Text
from narrowtune.evaluate.metrics import score, why_unscorable
from narrowtune.evaluate.own_metrics import identity, is_own, load_own, try_own
from narrowtune.evaluate.tasks import make_task

FIRST_LETTERS = """
def first(answer, accepted):
    return any(answer[:1] == reference[:1] for reference in accepted)

def half(answer, accepted):
    return 0.5
"""


@pytest.fixture(autouse=True)
def forget():
    load_own.cache_clear()
    yield
    load_own.cache_clear()


@pytest.fixture
def own(tmp_path: Path):
    def write(text: str, name: str = "first", file: str = "scoring.py") -> str:
        (tmp_path / file).write_text(text, encoding="utf-8")
        return f"{tmp_path / file}:{name}"

    return write


def test_it_scores_an_answer(own):
    metric = own(FIRST_LETTERS)
    assert score(metric, "Nile", ["Nairobi"]).strict == 1.0
    other = score(metric, "Mombasa", ["Nairobi"])
    assert (other.strict, other.lenient, other.valid_format) == (0.0, 0.0, True)
    assert not score(metric, "  ", ["Nairobi"]).valid_format
    assert score(own(FIRST_LETTERS, "half"), "x", ["y"]).lenient == 0.5


def test_what_stands_beside_it_can_be_imported(own, tmp_path):
    own("LETTERS = 'N'\n", file="letters_of_ours.py")
    metric = own(
        "import letters_of_ours\n\ndef first(a, b):\n    return a[:1] in letters_of_ours.LETTERS"
    )
    assert score(metric, "Nile", ["x"]).strict == 1.0


@pytest.mark.parametrize(
    "text",
    [
        # A dataclass looks for its module by name.
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Said:\n    text: str\n\n"
        "def first(a, b):\n    return Said(a).text == 'Nile'",
        "import numpy\n\ndef first(a, b):\n    return numpy.isclose(len(a), 4)",
        "def first(a, b):\n    return 1 + 1e-12",
        "def first(a, b):\n    import letters_beside\n    return letters_beside.WHOLE",
    ],
)
def test_ordinary_files_will_do(own, text):
    own("WHOLE = 1.0", file="letters_beside.py")
    assert score(own(text), "Nile", ["x"]).strict == 1.0


def test_it_is_tried_on_an_empty_answer_and_on_what_is_accepted(own):
    with pytest.raises(EvaluationError, match=r"(?s)the answer ''.*IndexError.*scoring.py, line 2"):
        try_own(own("def first(a, b):\n    return a.split()[0] in b"), ["Nairobi"])
    load_own.cache_clear()
    with pytest.raises(EvaluationError, match=r"the answer 'two'"):
        try_own(own("def first(a, b):\n    return {'': 0, 'one': 1}[a]"), ["one", "two"])
    load_own.cache_clear()
    assert try_own(own(FIRST_LETTERS), ["Nairobi"])
    load_own.cache_clear()
    assert not try_own(own("def first(a, b):\n    return 0"), ["Nairobi"])


def test_options_are_right_or_wrong(own):
    with pytest.raises(ValueError, match="mode options takes the likeliest option"):
        DataSettings(path="rows.jsonl", metric=own(FIRST_LETTERS), mode="options")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import sys\nsys.exit(0)", r"SystemExit: 0 \(scoring.py, line 2\)"),
        ("def second(a, b): return 1", "no function first in it"),
        ("first = 3", "no function first in it"),
        ("import not_there_at_all", "ModuleNotFoundError"),
        ("def first(a, b:", "SyntaxError"),
        (None, "No such file"),
    ],
)
def test_one_that_cannot_be_loaded_is_told(own, tmp_path, text, found):
    metric = own(text) if text is not None else f"{tmp_path / 'gone.py'}:first"
    with pytest.raises(EvaluationError, match=found) as caught:
        identity(metric)
    assert "own_metrics.py" not in caught.value.found


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("return 1 / 0", "ZeroDivisionError"),
        ("raise SystemExit(0)", "SystemExit"),
        ("return 2", "2, not a share from 0 to 1"),
        ("return float('nan')", "nan, not a share"),
        ("return 'yes'", "'yes', not a share"),
        ("return None", "TypeError"),
    ],
)
def test_a_score_that_is_none_is_told(own, body, found):
    metric = own(f"def first(answer, accepted):\n    {body}\n")
    with pytest.raises(EvaluationError, match=found):
        score(metric, "Nile", ["Nairobi"])
    assert found in why_unscorable(metric, ["Nairobi"])


def test_scores_of_another_file_are_not_taken_for_its_own(own):
    metric = own(FIRST_LETTERS)
    turns = (Message("user", (Text("Q?"),)), Message("assistant", (Text("A"),)))
    rows = [Example("1", turns, ("A",))]
    settings = DataSettings(path="rows.jsonl", metric=metric)
    before = make_task(settings, rows, "held_out").sha256
    other = make_task(settings.model_copy(update={"metric": "exact_match"}), rows, "held_out")
    assert before != other.sha256
    own(FIRST_LETTERS + "# changed\n")
    # Within a process it stays what it was when it was first asked for.
    assert make_task(settings, rows, "held_out").sha256 == before
    load_own.cache_clear()
    assert make_task(settings, rows, "held_out").sha256 != before


def test_the_code_that_runs_is_that_which_was_hashed(own, tmp_path):
    score(own("def first(a, b): return 0.5"), "x", ["y"])
    load_own.cache_clear()
    # As long as before, and within the same second: Python would take what it kept of the first.
    assert score(own("def first(a, b): return 0.6"), "x", ["y"]).strict == 0.6
    assert not (tmp_path / "__pycache__").exists()


def test_which_names_are_its_own():
    assert is_own("scoring.py:first")
    assert is_own("/a b/scoring.py:_f1")
    for name in ("exact_match", "scoring.py", "scoring:first", ".py:f", "scoring.py:1st"):
        assert not is_own(name)
    with pytest.raises(ValueError, match=r"or FILE.py:FUNCTION of your own"):
        DataSettings(path="rows.jsonl", metric="scoring:first")
