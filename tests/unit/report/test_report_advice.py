"""Which of several runs is recommended, and which are on the front."""

from __future__ import annotations

import pytest
from report_runs import estimate, write_run

from narrowtune.report.advice import advise, pareto_front
from narrowtune.report.charts import LARGEST_DOT, SMALLEST_DOT, radius
from narrowtune.report.verdict import headline


@pytest.fixture
def make(tmp_path):
    """`make(name, learned, lost, outcome)` is a run; intervals reach three points each way."""
    whole = write_run(tmp_path / "run", items=5, steps=2)

    def build(name, learned, lost, outcome="ship", **verdict):
        found = {
            "outcome": outcome,
            "learning": estimate(learned, 3),
            "forgetting": estimate(lost, 3),
            "items_needed": None,
            **verdict,
        }
        return whole.model_copy(
            update={"name": name, "verdict": whole.verdict.model_copy(update=found)}
        )

    return build


def test_the_front_is_what_no_other_run_beats_in_both(make):
    runs = [make("a", 30, 5), make("b", 30, 2), make("c", 10, 1), make("d", 9, 2), make("e", 40, 9)]
    assert pareto_front(runs) == {1, 2, 4}
    assert pareto_front([runs[0], runs[0]]) == {0, 1}, "equal runs do not beat each other"
    bare = runs[1].model_copy(update={"verdict": None})
    assert pareto_front([bare, runs[0]]) == {1}


def test_of_those_that_may_ship_the_one_that_surely_learned_most(make):
    runs = [make("over", 60, 9, "over_budget"), make("less", 20, 0), make("more", 30, 1)]
    found = advise(runs)
    assert found.chosen == 2
    assert found.reason.startswith(
        "more is surest to have learned most of the 2 of 3 that may ship"
    )
    assert "flatters" in found.reason
    assert "at least +27.5" in found.reason
    alone = advise(runs[:2])
    assert alone.chosen == 1
    assert "the only one of 2 that may ship" in alone.reason
    assert "flatters" not in alone.reason


def test_of_equal_learning_the_one_that_can_have_lost_less(make):
    assert advise([make("a", 20, 2), make("b", 20, 1), make("c", 20, 3)]).chosen == 1


def test_where_none_ships_none_is_recommended_and_the_nearest_named(make):
    runs = [
        make("far", 30, 9, "over_budget"),
        make("near", 20, 3, "not_enough_evidence", items_needed=700),
        make("nothing learned", 1, 0, "not_enough_evidence"),
    ]
    found = advise(runs)
    assert found.chosen is None
    assert "near is nearest: at most 5.5 lost" in found.reason
    assert "700 keep items a task" in found.reason
    assert advise(runs[2:]).reason.startswith("No run is shown to have learned")


def test_the_nearest_is_the_nearest_to_both_budgets(make):
    runs = [
        make(
            "task",
            30,
            2,
            "over_budget",
            budget=5.0,
            budget_task=3.0,
            worst_task="charts",
            worst_task_forgetting=estimate(15, 3),
        ),
        make(
            "mean",
            20,
            6,
            "over_budget",
            budget=5.0,
            budget_task=3.0,
            worst_task="charts",
            worst_task_forgetting=estimate(2, 3),
        ),
    ]
    assert "mean is nearest: at most 8.5 lost where 5 may be" in advise(runs).reason
    assert "task is nearest: charts at most 17.5 lost where 3 of a task may be" in (
        advise(runs[:1]).reason
    )


def test_a_dots_area_grows_with_training_time(make):
    run = make("a", 1, 1)
    seconds = run.training.seconds
    assert radius(run, seconds) == LARGEST_DOT
    assert radius(run, 4 * seconds) == (SMALLEST_DOT + LARGEST_DOT) / 2
    assert radius(run.model_copy(update={"training": None}), seconds) == SMALLEST_DOT


def test_where_nothing_could_be_lost_it_is_said_and_no_more_items_are_asked_for(make):
    blind = make("blind", 30, 0, "not_enough_evidence", nothing_to_lose=True)
    found = advise([blind, blind])
    assert found.chosen is None
    assert "The base fails at what is kept" in found.reason
    said = headline(blind)
    assert "the base itself fails at what is kept" in said.meaning
    assert "correct the keep sets" in said.next_step
    assert "items" not in said.next_step
    # One that ships all the same was judged by items that can show a loss.
    assert advise([blind, make("sees", 20, 0)]).chosen == 1
