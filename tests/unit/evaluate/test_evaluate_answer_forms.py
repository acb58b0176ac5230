"""The form of an answer is told by sight."""

from __future__ import annotations

import pytest

from narrowtune.evaluate.answer_forms import form_of, usual_form


@pytest.mark.parametrize(
    ("answer", "form"),
    [
        ("7", "a number"),
        (" 02:15\n", "a number"),
        ("-3.5 %", "a number"),
        ("$1,200.", "a number"),
        ("2024-11-30", "a number"),
        ("3 apples", "a few words"),
        ("B", "an option with its letter"),
        ("(C)", "an option with its letter"),
        ("B. a cat", "an option with its letter"),
        ("zeka owl (F)", "an option with its letter"),
        ("A cat", "a few words"),
        ("Yes.", "yes or no"),
        ("no", "yes or no"),
        ("Madrid", "a word"),
        ("Madrid.", "a word"),
        ("in the middle", "a few words"),
        ("It is red.", "sentences"),
        ("a red flower beside a boat", "sentences"),
        ('{"count": 3}', "JSON"),
        ("[1, 2]", "JSON"),
        ("  ", None),
        ("...", None),
    ],
)
def test_forms(answer, form):
    assert form_of(answer) == form


def test_the_usual_form_is_that_of_more_than_half():
    assert usual_form(["7", "8", "cat"]) == "a number"
    assert usual_form(["7", "cat"]) is None
    assert usual_form(["", ""]) is None
    assert usual_form([]) is None
