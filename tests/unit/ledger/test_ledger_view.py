"""What a ledger's scores come to, and how they are shown."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from ledger_entries import score, stage
from narrowtune.core.ledger import Ledger, view
from narrowtune.report.ledger_view import render_ledger


def ledger_of(*skills, undone=()):
    empty = Ledger(model="m", loading={}, family="llama", base_fingerprint="b0")
    return empty.model_copy(update={"skills": list(skills), "undone": list(undone)})


FIRST = stage("a", {"a": 0.1, "k": 0.8, "l": 0.6}, {"a": 0.7, "k": 0.7, "l": 0.3}, "b0")
SECOND = stage(
    "b", {"b": 0.2, "a": 0.7, "k": 0.7, "l": 0.3}, {"b": 0.5, "a": 0.6, "k": 0.8, "l": 0.5}
)
THIRD = stage(
    "c", {"c": 0.0, "a": 0.6, "b": 0.5, "k": 0.8}, {"c": 0.4, "a": 0.3, "b": 0.7, "k": 0.6}
)


def test_learning_loss_and_recovery_are_computed_from_every_stage():
    found = view(ledger_of(FIRST, SECOND, THIRD))
    assert found.tasks == ["a", "b", "c", "k", "l"]
    assert found.states == ["base", "a", "b", "c"]
    assert found.matrix == [
        [0.1, None, None, 0.8, 0.6],
        [0.7, 0.2, None, 0.7, 0.3],
        [0.6, 0.5, 0.0, 0.8, 0.5],
        [0.3, 0.7, 0.4, 0.6, None],
    ]
    assert found.learning == pytest.approx({"a": 60, "b": 30, "c": 40})
    # a lost 40 since its stage, b gained 20.
    assert found.target_forgetting == pytest.approx(10)
    assert found.held_out == pytest.approx([20, 5, 20])
    # l was not measured after c: what k alone regained is compared, -20.
    assert found.recovery == pytest.approx([15, -20])
    empty = view(ledger_of())
    assert (empty.states, empty.held_out, empty.target_forgetting) == (["base"], [], None)


def test_scores_on_other_items_are_not_subtracted():
    dialled = stage(
        "b",
        {"b": 0.2, "a": score(0.6, items="half"), "k": score(0.9, items="half")},
        {"b": 0.5, "a": score(0.1, items="half"), "k": score(0.2, items="half")},
    )
    found = view(ledger_of(FIRST, dialled))
    assert found.matrix[2][0] == 0.1
    assert found.held_out == [pytest.approx(20), None]
    assert found.recovery == [None]


def test_what_was_scored_with_a_skill_that_is_gone_is_of_no_state():
    rebased = SECOND.model_copy(update={"without": ["a"], "base_fingerprint": "b0"})
    found = view(ledger_of(rebased, undone=[SECOND, FIRST]))
    assert found.states == ["base", "b"]
    row = dict(zip(found.tasks, found.matrix[0], strict=True))
    assert row["k"] == 0.8, "as the removed skill's run measured the base"
    assert set(found.matrix[1]) == {None}
    assert found.learning == {"b": None}
    assert found.held_out == [None]
    # The next run's own look at that state stands in its row.
    later = stage("d", {"d": 0.0, "b": 0.3, "k": 0.5}, {"d": 0.9, "b": 0.3, "k": 0.4})
    found = view(ledger_of(rebased, later, undone=[SECOND, FIRST]))
    row = dict(zip(found.tasks, found.matrix[1], strict=True))
    assert (row["b"], row["k"]) == (0.3, 0.5)
    assert found.target_forgetting == pytest.approx(0)
    assert found.held_out == pytest.approx([30, 40])


def test_names_are_shown_as_they_are_and_states_fit_a_terminal():
    names = [f"skill [v{number}]" for number in range(9)]
    skills = [
        stage(name, {name: 0.0, "kept [/x]": 0.9}, {name: 1.0, "kept [/x]": 0.5}, "b0")
        for name in names
    ]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(render_ledger(ledger_of(*skills)))
    text = console.export_text()
    assert all(name in text for name in (*names, "kept [/x]"))
    assert "…" not in text


def test_scores_by_another_metric_are_not_subtracted():
    strict = score(0.06).model_copy(update={"scoring": "exact_match generate 32"})
    contains = {"scoring": "contains generate 32"}
    before, after = (score(mean).model_copy(update=contains) for mean in (0.94, 0.8))
    first = stage("a", {"a": 0.0, "k": strict}, {"a": 0.5, "k": strict}, "b0")
    second = stage("b", {"b": 0.0, "k": before}, {"b": 0.5, "k": after})
    assert view(ledger_of(first, second)).held_out == [0.0, None]
    # Those of before it was noted are, as they were.
    second = stage("b", {"b": 0.0, "k": score(0.06)}, {"b": 0.5, "k": score(0.05)})
    assert view(ledger_of(first, second)).held_out == [0.0, pytest.approx(1.0)]
