"""Which scores of a ledger may be subtracted from each other."""

from __future__ import annotations

import pytest

from ledger_entries import score, stage
from narrowtune.core.ledger import Ledger, TaskScore, view


def scored(mean, scoring):
    return score(mean).model_copy(update={"scoring": scoring})


def ledger_of(*skills):
    empty = Ledger(model="m", loading={}, family="llama", base_fingerprint="b0")
    return empty.model_copy(update={"skills": list(skills)})


def test_scores_of_before_it_was_noted_how_they_were_made_can_be_read():
    older = score(0.5).model_dump()
    del older["scoring"]
    assert TaskScore.model_validate(older).scoring == ""


@pytest.mark.parametrize(
    ("second", "regained"),
    [("exact_match generate 32", 10.0), ("contains generate 32", None), ("", 10.0)],
)
def test_nothing_is_regained_between_scores_that_were_made_in_different_ways(second, regained):
    """The base's, of before it was noted, may be subtracted from both."""
    first = {"a": 0.5, "k": scored(0.6, "exact_match generate 32")}
    skills = [
        stage("a", {"a": 0.0, "k": scored(0.8, "")}, first, "b0"),
        stage("b", {"b": 0.0}, {"b": 0.5, "k": scored(0.7, second)}),
    ]
    found = view(ledger_of(*skills))
    assert found.held_out == pytest.approx([20.0, 10.0])
    assert found.recovery == ([None] if regained is None else [pytest.approx(regained)])
