"""The verdict: nothing ships that is not shown, and nothing is condemned that is not."""

from __future__ import annotations

import re

import numpy as np
import pytest

from narrowtune.core.errors import EvaluationError
from narrowtune.core.results import ItemResult, Score, TaskResult
from narrowtune.evaluate.statistics import PairedTask, mean_loss, mean_score
from narrowtune.evaluate.verdict import compare_results, decide


def result(name, right, num_items, role="held_out", *, prefix="", lenient=None, group=None):
    """A task in which the first `right` items are right."""
    items = [
        ItemResult(
            id=f"{prefix}{name}:{i}",
            question="?",
            answer="yes" if i < right else "no",
            reference=["yes"],
            strict=float(i < right),
            lenient=float(i < (right if lenient is None else lenient)),
            valid_format=True,
            group=None if group is None else f"{i // group}",
        )
        for i in range(num_items)
    ]
    return TaskResult(
        name=name,
        role=role,
        metric="exact_match",
        num_items=num_items,
        num_groups=num_items,
        num_ties=0,
        strict=mean_score([item.strict for item in items]),
        lenient=mean_score([item.lenient for item in items]),
        valid_format=1.0,
        seconds=0.0,
        items=items,
    )


def skill(right, num_items=400):
    return result("counting", right, num_items, "target")


KEPT = [result(name, 300, 400) for name in ("capitals", "continents")]


def reasons(verdict):
    return " ".join(verdict.reasons)


def test_learning_without_loss_ships():
    verdict = decide([skill(0), *KEPT], [skill(120), *KEPT], budget=1.0)
    assert verdict.outcome == "ship"
    assert verdict.learning.value == pytest.approx(30)
    assert (verdict.forgetting.value, verdict.items_needed) == (0.0, None)
    assert "It learned" in verdict.reasons[0]
    assert "within the budget of 1" in verdict.reasons[1]
    assert "no held-out item changed" in verdict.reasons[1]


def test_doing_nothing_does_not_ship_and_is_exactly_zero():
    verdict = decide([skill(5), *KEPT], [skill(5), *KEPT], budget=5.0)
    assert verdict.outcome == "not_enough_evidence"
    assert verdict.learning.value == verdict.forgetting.value == 0.0
    assert verdict.worst_task_forgetting.value == 0.0
    assert verdict.reasons[0].startswith("It did not learn: none of the skill's 400 items")
    assert verdict.items_needed is None


def test_a_shown_loss_is_over_budget_even_where_much_was_learned():
    after = [skill(400), result("capitals", 0, 400), KEPT[1]]
    verdict = decide([skill(0), *KEPT], after, budget=5.0)
    assert verdict.outcome == "over_budget"
    assert verdict.worst_task == "capitals"
    assert verdict.forgetting.value == pytest.approx(37.5)
    assert "over the budget of 5" in reasons(verdict)
    assert verdict.items_needed is None


def test_too_few_items_are_not_enough_evidence_and_the_number_that_decides_is_right():
    small = [result("capitals", 30, 40)]
    verdict = decide([skill(0), *small], [skill(120), *small], budget=1.0)
    assert verdict.outcome == "not_enough_evidence"
    assert f"About {verdict.items_needed:,} held-out items" in reasons(verdict)
    for num_items, outcome in [
        (verdict.items_needed, "ship"),
        (verdict.items_needed - 1, "not_enough_evidence"),
    ]:
        kept = [result("capitals", 30, num_items)]
        assert decide([skill(0), *kept], [skill(120), *kept], budget=1.0).outcome == outcome


def test_a_budget_of_zero_cannot_be_proved_by_any_number_of_items():
    verdict = decide([skill(0), *KEPT], [skill(120), *KEPT], budget=0.0)
    assert (verdict.outcome, verdict.items_needed) == ("not_enough_evidence", None)
    assert "more items like these would not decide" in reasons(verdict)


def test_learning_must_exceed_what_is_asked():
    def learned(right, minimum):
        verdict = decide([skill(0), *KEPT], [skill(right), *KEPT], budget=1.0, min_learning=minimum)
        return verdict.outcome, verdict.reasons[0]

    assert learned(120, 20)[0] == "ship"
    outcome, reason = learned(120, 28)
    assert outcome == "not_enough_evidence"
    assert "Learning is not shown" in reason
    assert "skill items per task would show it" in reason
    outcome, reason = learned(40, 20)
    assert outcome == "not_enough_evidence"
    assert reason.startswith("It did not learn: the skill's score changed by +10.00 points")


def test_without_keep_data_or_without_a_skill_nothing_ships():
    verdict = decide([skill(0)], [skill(400)], budget=100)
    assert (verdict.outcome, verdict.forgetting, verdict.worst_task) == (
        "not_enough_evidence",
        None,
        None,
    )
    assert "no keep data" in reasons(verdict)
    verdict = decide(KEPT, KEPT, budget=100)
    assert (verdict.outcome, verdict.learning) == ("not_enough_evidence", None)
    assert "no skill" in reasons(verdict)


def test_the_worst_task_has_a_budget_of_its_own():
    before = [skill(0), *(result(name, 300, 400) for name in "abcd")]
    after = [skill(120), result("a", 270, 400), *(result(name, 300, 400) for name in "bcd")]
    assert decide(before, after, budget=3.0).outcome == "ship"
    verdict = decide(before, after, budget=3.0, budget_task=2.0)
    assert (verdict.outcome, verdict.worst_task) == ("over_budget", "a")
    assert "The worst held-out task (a) lost 7.50 points" in reasons(verdict)
    assert decide(before, after, budget=3.0, budget_task=15.0).outcome == "ship"
    unsure = decide(before, after, budget=3.0, budget_task=9.0)
    assert unsure.outcome == "not_enough_evidence"
    assert unsure.items_needed > 400


def test_reasons_call_a_gain_a_gain_and_write_a_true_minus():
    before = [skill(3), result("a", 10, 40)]
    verdict = decide(before, [skill(2), result("a", 12, 40)], budget=1.0)
    assert "The held-out tasks on average gained 5.00 points" in reasons(verdict)
    assert " lost to " in reasons(verdict)
    assert "changed by −0.25 points" in reasons(verdict)
    assert "-" not in reasons(verdict).replace("held-out", "")


def test_groups_make_evidence_scarcer():
    def verdict(group):
        before = [skill(0), result("a", 300, 400, group=group)]
        after = [skill(120), result("a", 300, 400, group=group)]
        return decide(before, after, budget=1.0).outcome

    assert verdict(None) == "ship"
    assert verdict(8) == "not_enough_evidence"


def test_compare_pairs_by_id_whatever_the_order():
    before, after = result("a", 30, 40, lenient=32), result("a", 10, 40, lenient=32)
    shuffled = after.model_copy(update={"items": after.items[::-1]})
    (change,) = compare_results([before], [shuffled])
    assert (change.num_worse, change.num_better, change.num_ties) == (20, 0, 0)
    assert change.change.value == pytest.approx(-50)
    assert change.change_lenient.value == 0.0
    assert change.sign_test.num_worse == 20
    assert change.sign_test.p_value == pytest.approx(2 * 0.5**20)
    assert change.before == before.strict == Score(mean=0.75, stderr=change.before.stderr)


@pytest.mark.parametrize(
    ("before", "after", "part"),
    [
        (result("a", 1, 4), result("b", 1, 4), "a before and b after"),
        (result("a", 1, 4), result("a", 1, 3), "a:3"),
        (result("a", 1, 9), result("a", 1, 9, prefix="x"), "and 13 more"),
        (result("a", 1, 4), result("a", 1, 4, "target"), "target/exact_match"),
    ],
)
def test_evaluations_that_do_not_pair_are_errors(before, after, part):
    with pytest.raises(EvaluationError, match=part):
        compare_results([before], [after])


def test_repeated_ids_missing_items_and_other_answers_are_errors():
    task = result("a", 1, 4)
    twice = task.model_copy(update={"items": [*task.items, task.items[0]]})
    with pytest.raises(EvaluationError, match="given twice: a:0"):
        compare_results([twice], [twice])
    empty = task.model_copy(update={"items": []})
    with pytest.raises(EvaluationError, match="0 items before and 4 after"):
        compare_results([empty], [task])
    other = task.items[2].model_copy(update={"reference": ["no"]})
    changed = task.model_copy(update={"items": [*task.items[:2], other, task.items[3]]})
    with pytest.raises(EvaluationError, match="accepted answers differ: a:2"):
        compare_results([task], [changed])


def test_the_power_line_names_a_loss_that_is_seen_in_four_runs_of_five():
    """Items flip both ways, as after a mild training; the true loss is the one that is named."""
    draw = np.random.default_rng(0)
    flips = 0.1

    def run(loss):
        tasks = []
        for name in ("a", "b"):
            before = (draw.random(400) < 0.7).astype(float)
            lost = draw.random(400) < flips + loss / 2 / 0.7
            gained = draw.random(400) < (flips * 0.7 - loss / 2) / 0.3
            after = np.where(before > 0, ~lost, gained).astype(float)
            tasks.append(PairedTask(name, "held_out", before, after))
        return tasks

    def named(tasks):
        sides = []
        for when in ("before", "after"):
            results = [skill(0)]
            for task in tasks:
                right = getattr(task, when)
                made = result(task.name, 0, len(right))
                items = [
                    item.model_copy(update={"strict": float(score)})
                    for item, score in zip(made.items, right, strict=True)
                ]
                results.append(made.model_copy(update={"items": items}))
            sides.append(results)
        said = decide(*sides, budget=1.0).reasons[-1]
        return float(re.search(r"less than ([\d.]+) points", said)[1])

    unseen = np.mean([named(run(0.0)) for _ in range(5)])
    assert 2 < unseen < 6
    seen = [mean_loss(run(unseen / 100), num_resamples=500).lower_bound > 0 for _ in range(200)]
    assert 0.7 < np.mean(seen) < 0.9


@pytest.mark.parametrize(
    ("right", "budget", "blind"),
    # Of 400 items each: a base that fails, one that could lose more than the budget, one that is
    # right often enough whatever the budget.
    [(0, 1.0, True), (8, 10.0, True), (8, 1.0, False), (160, 50.0, False), (400, 100.0, False)],
)
def test_items_at_which_the_base_fails_ship_nothing(right, budget, blind):
    kept = [result(name, right, 400) for name in ("capitals", "continents")]
    verdict = decide([skill(0), *kept], [skill(120), *kept], budget=budget)
    assert verdict.nothing_to_lose == blind
    assert verdict.outcome == ("not_enough_evidence" if blind else "ship")
    said = reasons(verdict)
    assert ("no loss over the budget" in said) == blind
    # More of such items would decide nothing.
    assert verdict.items_needed is None
    assert "would decide" not in said
    assert ("four runs of five" in said) == (not blind)


@pytest.mark.parametrize("num_idle", [0, 1, 3, 20])
def test_tasks_at_which_the_base_fails_hide_no_loss_of_others(num_idle):
    idle = [result(f"idle-{number}", 0, 1000) for number in range(num_idle)]
    before = [skill(0), result("capitals", 900, 1000), *idle]
    after = [skill(120), result("capitals", 850, 1000), *idle]
    verdict = decide(before, after, budget=2.0)
    assert verdict.outcome == "over_budget"
    assert verdict.forgetting.value == pytest.approx(5.0)
    assert verdict.left_out == tuple(task.name for task in idle)
    assert ("left out of the mean" in reasons(verdict)) == bool(idle)
    assert not verdict.nothing_to_lose


def test_what_is_gained_where_the_base_fails_pays_for_nothing():
    before = [skill(0), result("capitals", 900, 1000), result("idle", 10, 1000)]
    after = [skill(120), result("capitals", 800, 1000), result("idle", 990, 1000)]
    verdict = decide(before, after, budget=2.0)
    assert verdict.outcome == "over_budget"
    assert verdict.worst_task == "capitals"
