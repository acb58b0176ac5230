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
        ('{"count": 3, "na', "JSON"),
        ('[{"name": "a"}, {"na', "JSON"),
        ("[1, 2, 3", "JSON"),
        ('```json\n{"count": 3}\n```', "JSON"),
        ("[no text]", "a few words"),
        ("[B]", "an option with its letter"),
        ("[B] a cat", "an option with its letter"),
        ("(b)", "an option with its letter"),
        ("b) a cat", "an option with its letter"),
        ("zeka owl (f)", "an option with its letter"),
        ("[1] says so, and so does [2]", "sentences"),
        ("3 €", "a number"),
        ("3:15 PM", "a number"),
        ("20 °C", "a number"),
        ("**7**", "a number"),
        ("**B. a cat**", "an option with its letter"),
        ("<think>\n\n</think>\n\n7", "a number"),
        ("<think>It may be 7, or", None),
        ("东京", "a word"),
        ("这是一朵红花", "a few words"),
        ("这是一朵红花。", "sentences"),
        ("これは船のそばに咲いている赤い花です", "sentences"),
        ("นี่คือดอกไม้สีแดงข้างเรือลำหนึ่ง", "sentences"),
        ("마드리드", "a word"),
        ("It is…", "sentences"),
        ("It…", "sentences"),
        ("B. a…", "an option with its letter"),
        ("…", None),
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
