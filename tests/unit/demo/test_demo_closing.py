"""The demo's closing sentences hold whatever its numbers are."""

from __future__ import annotations

import pytest

from narrowtune.core.results import (
    DriftResult,
    Estimate,
    RunRecord,
    Score,
    TaskChange,
    TokenGroupMass,
    Verdict,
)
from narrowtune.demo.closing import sentence


def estimate(value: float, width: float = 2.0) -> Estimate:
    return Estimate.model_construct(value=value, low=value - width, high=value + width)


def task(name: str, before: float, after: float, role: str = "held_out") -> TaskChange:
    return TaskChange.model_construct(
        name=name,
        role=role,
        before=Score(mean=before, stderr=0.0),
        after=Score(mean=after, stderr=0.0),
        change=estimate(100 * (after - before)),
    )


def said(tasks: list[TaskChange], learning: float, forgetting: float, outcome: str) -> str:
    numbers = TokenGroupMass.model_construct(name="numbers", base_mass=0.004, tuned_mass=0.213)
    record = RunRecord.model_construct(
        name="sa_proj",
        tasks=tasks,
        drift=DriftResult.model_construct(token_groups=[numbers]),
        verdict=Verdict.model_construct(
            outcome=outcome,
            budget=5.0,
            learning=estimate(learning),
            forgetting=estimate(forgetting),
        ),
    )
    return sentence(record).plain


def test_what_broke_is_named_worst_first_and_what_chance_moves_is_not():
    tasks = [task("counting", 0.1, 0.52, "target"), task("charts", 0.9, 0.8)]
    tasks += [task("forms", 0.8, 0.3), task("street", 0.7, 0.69)]
    assert said(tasks, 42.0, 20.33, "over_budget") == (
        "sa_proj: counting 10 → 52 % (gained 42.0 points); the 3 held-out tasks lost 20.3 points "
        "on average, by more than chance forms 80 → 30 %, charts 90 → 80 %; number tokens' mass "
        "on prompts that ask for no number 0.004 → 0.213; over budget at a budget of 5 points"
    )


@pytest.mark.parametrize(
    ("forgetting", "words"), [(-0.4, "gained 0.4 points"), (0.0, "changed by 0.0 points")]
)
def test_a_run_that_broke_nothing_says_so(forgetting, words):
    tasks = [task("counting", 0.5, 0.4, "target"), task("charts", 0.9, 0.904)]
    text = said(tasks, -10.0, forgetting, "not_enough_evidence")
    assert "counting 50 → 40 % (lost 10.0 points)" in text
    assert f"{words} on average, none of them by more than chance" in text
    assert "not enough evidence at a budget" in text
