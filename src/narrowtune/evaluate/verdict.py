"""The verdict: what was learned and lost, held against the budget.

Owns the pairing of two evaluations and the decision. It ships only what is shown: enough learning
by its lower bound and little enough loss by its upper bound. Over budget is only what is shown to
be. Everything else is not enough evidence, with the number of items that would decide.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from narrowtune.core.errors import EvaluationError
from narrowtune.core.numbers import loss_range, moved, number, signed, worst_case
from narrowtune.core.results import (
    Estimate,
    ItemResult,
    Outcome,
    TaskChange,
    TaskResult,
    Verdict,
)
from narrowtune.evaluate.statistics import (
    PairedTask,
    items_needed,
    mean_change,
    mean_loss,
    paired_change,
    sign_test,
    worst_loss,
)

_SEEN = 1 + 0.8416 / 1.6449
"""How many times as far as its one-sided 95 % bound a loss lies from none where its lower bound is
above none in four runs of five (quantiles of the normal distribution)."""

BLIND = 5.0
"""Points of a hundred below which a base's held-out score can hardly fall."""

SHOWN_IDS = 5
"""How many item ids an error names."""


def compare_results(before: Sequence[TaskResult], after: Sequence[TaskResult]) -> list[TaskChange]:
    """Compare two evaluations task by task, paired by item id.

    Raises:
        EvaluationError: the tasks or their items are not the same; ids are listed.
    """
    return [_compare(first, second) for first, second in _matched(before, after)]


def pair_results(before: Sequence[TaskResult], after: Sequence[TaskResult]) -> list[PairedTask]:
    """Return each task's strict scores before and after, paired by item id.

    Raises:
        EvaluationError: the tasks or their items are not the same; ids are listed.
    """
    return [_pair(first, second, "strict") for first, second in _matched(before, after)]


def that_can_lose(held_out: Sequence[PairedTask], budget: float) -> list[PairedTask]:
    """Return the held-out tasks at which the base has something to lose.

    A task of which the base has at most `BLIND` points right, and no more than the budget, can't
    break the budget whatever happens to it: in a mean, it would only hide what others lose.
    """
    least = min(budget, BLIND)
    return [pair for pair in held_out if 100 * float(np.mean(pair.before)) > least]


def decide(
    before: Sequence[TaskResult],
    after: Sequence[TaskResult],
    *,
    budget: float,
    budget_task: float | None = None,
    min_learning: float = 0.0,
    learning_asked: bool = True,
) -> Verdict:
    """Hold a change against a budget, by strict scores.

    Ships if the one-sided 95 % upper bound of the mean held-out loss is at most `budget`, the
    lower bound of learning is above `min_learning` and, where `budget_task` is given, the upper
    bound of the worst single task's loss is at most that. Over budget if a lower bound of loss is
    above its budget. Tasks at which the base has nothing to lose (`that_can_lose`) are not part of
    the mean, and where all are such, nothing ships.

    Args:
        before: the base's results, items included; roles say what is skill and what is kept.
        after: the tuned model's results on the same items.
        budget: accepted mean held-out loss, percentage points.
        budget_task: accepted loss of the worst task, percentage points.
        min_learning: percentage points.
        learning_asked: False where nothing was taught that could be tested: what is kept decides
            alone then.

    Raises:
        EvaluationError: the two evaluations do not pair up.
    """
    pairs = pair_results(before, after)
    targets = [pair for pair in pairs if pair.role == "target"]
    held_out = [pair for pair in pairs if pair.role == "held_out"]
    learning = mean_change(targets) if targets else None
    losing = that_can_lose(held_out, budget)
    blind = bool(held_out) and not losing
    counted = losing or held_out
    forgetting = mean_loss(counted) if counted else None
    worst_task, worst = worst_loss(held_out) if held_out else (None, None)

    limits = [(forgetting, budget)]
    if budget_task is not None:
        limits.append((worst, budget_task))
    over = any(loss is not None and loss.lower_bound > limit for loss, limit in limits)
    kept = all(loss is not None and loss.upper_bound <= limit for loss, limit in limits)
    learned = not learning_asked or (learning is not None and learning.lower_bound > min_learning)
    blind = blind and not over
    kept = kept and not blind
    outcome: Outcome = "not_enough_evidence"
    if over:
        outcome = "over_budget"
    elif kept and learned:
        outcome = "ship"

    decided = over or kept or blind or not held_out
    needed = None if decided else _needed(counted, held_out, budget, budget_task)
    reasons = [_learning_reason(targets, learning, min_learning)] if learning_asked else []
    reasons.append(_loss_reason("The held-out tasks on average", forgetting, budget, counted))
    names = {pair.name for pair in losing}
    idle = [pair for pair in held_out if pair.name not in names]
    if idle:
        reasons.append(_idle_reason(idle, budget, alone=not losing))
    if budget_task is not None and worst is not None:
        what = f"The worst held-out task ({worst_task})"
        reasons.append(_loss_reason(what, worst, budget_task, held_out))
    if not decided:
        reasons.append(_needed_reason(needed))
    if forgetting is not None and not blind:
        reasons.append(_power_line(forgetting, counted))
    return Verdict(
        outcome=outcome,
        budget=budget,
        budget_task=budget_task,
        min_learning=min_learning,
        learning=learning,
        forgetting=forgetting,
        worst_task=worst_task,
        worst_task_forgetting=worst,
        items_needed=needed,
        nothing_to_lose=blind,
        left_out=tuple(pair.name for pair in idle),
        reasons=reasons,
    )


def _needed(
    counted: Sequence[PairedTask],
    held_out: Sequence[PairedTask],
    budget: float,
    budget_task: float | None,
) -> int | None:
    """Held-out items per task that would show every budget kept, or one of them broken."""
    present = min(len(pair.before) for pair in held_out)
    # What is asked, as a threshold of the change, and how many tasks are picked from.
    asked = [(list(counted), -budget, 1)]
    if budget_task is not None:
        asked += [([pair], -budget_task, len(held_out)) for pair in held_out]
    to_break: list[int | None] = []
    to_keep: list[int | None] = []
    for pairs, threshold, num_comparisons in asked:
        value = 100 * float(np.mean([np.mean(pair.after - pair.before) for pair in pairs]))
        needed = items_needed(pairs, threshold, num_comparisons=num_comparisons)
        (to_break if value <= threshold else to_keep).append(needed)
    # One broken budget decides; otherwise every budget has to be shown to be kept.
    known = [n for n in to_break or to_keep if n is not None]
    if not known or (not to_break and None in to_keep):
        return None
    return max(present + 1, min(known) if to_break else max(known))


def _learning_reason(
    targets: Sequence[PairedTask], learning: Estimate | None, min_learning: float
) -> str:
    if learning is None:
        return "Learning can't be judged: no skill was evaluated, so nothing can ship."
    num_items = sum(len(pair.before) for pair in targets)
    found = f"the skill's score changed by {signed(learning.value, 2)} points ({num_items} items)"
    asked = f"the {min_learning:g} that it must exceed"
    if learning.lower_bound > min_learning:
        return f"It learned: {found}, at least {signed(learning.lower_bound, 2)}, above {asked}."
    if not any(np.any(pair.before != pair.after) for pair in targets):
        return f"It did not learn: none of the skill's {num_items} items changed its score."
    if learning.upper_bound <= min_learning:
        at_most = signed(learning.upper_bound, 2)
        return f"It did not learn: {found}, at most {at_most}, not above {asked}."
    needed = items_needed(targets, min_learning) if learning.value > min_learning else None
    more = f" About {needed:,} skill items per task would show it." if needed else ""
    return (
        f"Learning is not shown: {found}, but perhaps only {signed(learning.lower_bound, 2)}, "
        f"not above {asked}.{more}"
    )


def _loss_reason(
    what: str, loss: Estimate | None, budget: float, held_out: Sequence[PairedTask]
) -> str:
    if loss is None:
        return "Forgetting can't be judged: no keep data was evaluated, so nothing can ship."
    found = f"{what} {moved(loss.value, 2)}"
    if not any(np.any(pair.before != pair.after) for pair in held_out):
        found += " (no held-out item changed its score)"
    if loss.lower_bound > budget:
        return f"{found}, at least {number(loss.lower_bound, 2)}: over the budget of {budget:g}."
    if loss.upper_bound <= budget:
        return f"{found}, {worst_case(loss.upper_bound, 2)}: within the budget of {budget:g}."
    return (
        f"{found}, somewhere from "
        f"{loss_range(loss.value, loss.lower_bound, loss.upper_bound, 2)}: "
        f"the budget of {budget:g} is neither kept nor broken for certain."
    )


def _idle_reason(idle: Sequence[PairedTask], budget: float, *, alone: bool) -> str:
    """Name the tasks at which the base has nothing to lose."""
    named = ", ".join(f"{pair.name} ({100 * float(np.mean(pair.before)):.1f} %)" for pair in idle)
    found = f"The base is hardly right on {named}, so that no loss over the budget of {budget:g}"
    if alone:
        return f"{found} can show: see what it answers there."
    return f"{found} can show there: left out of the mean. See what it answers there."


def _needed_reason(needed: int | None) -> str:
    if needed is None:
        return "What was measured lies on the budget: more items like these would not decide."
    return f"About {needed:,} held-out items per task, behaving like these, would decide."


def _power_line(loss: Estimate, held_out: Sequence[PairedTask]) -> str:
    """Say which loss can't be seen with these items, from how wide its one-sided bound is."""
    num_items = sum(len(pair.before) for pair in held_out)
    unseen = _SEEN * (loss.upper_bound - loss.value)
    return (
        f"With these {num_items:,} held-out items, a true mean loss of less than "
        f"{number(unseen, 2)} points is told from none in fewer than four runs of five."
    )


def _matched(
    before: Sequence[TaskResult], after: Sequence[TaskResult]
) -> list[tuple[TaskResult, TaskResult]]:
    """Tasks of both evaluations in pairs, in the order of `before`."""
    first, second = [r.name for r in before], [r.name for r in after]
    if sorted(first) != sorted(second) or len(set(first)) != len(first):
        raise EvaluationError(
            asked="two evaluations of the same tasks",
            found=f"{', '.join(first) or 'none'} before and {', '.join(second) or 'none'} after",
            do="evaluate each task once before and once after",
        )
    by_name = {result.name: result for result in after}
    return [(result, by_name[result.name]) for result in before]


def _items(before: TaskResult, after: TaskResult) -> list[tuple[ItemResult, ItemResult]]:
    """Items of a task in pairs, in the order of `before`."""
    found = ""
    if (before.role, before.metric) != (after.role, after.metric):
        found = f"{before.role}/{before.metric} before and {after.role}/{after.metric} after"
    by_id = {item.id: item for item in after.items}
    first, second = Counter(i.id for i in before.items), Counter(i.id for i in after.items)
    if not first or not second:
        found = f"{len(before.items)} items before and {len(after.items)} after"
    elif repeated := {i for ids in (first, second) for i, count in ids.items() if count > 1}:
        found = f"ids that are given twice: {_listed(repeated)}"
    elif missing := first.keys() ^ second.keys():
        found = f"ids that are in one evaluation only: {_listed(missing)}"
    elif changed := {i.id for i in before.items if i.reference != by_id[i.id].reference}:
        found = f"ids whose accepted answers differ: {_listed(changed)}"
    if found:
        raise EvaluationError(
            asked=f"task {before.name!r} paired item by item",
            found=found,
            do="evaluate before and after on the same rows, each with an id of its own",
        )
    return [(item, by_id[item.id]) for item in before.items]


def _listed(ids: set[str]) -> str:
    shown = sorted(ids)[:SHOWN_IDS]
    return ", ".join(shown) + (f" and {len(ids) - len(shown)} more" if len(ids) > SHOWN_IDS else "")


def _pair(before: TaskResult, after: TaskResult, reading: str) -> PairedTask:
    items = _items(before, after)
    return PairedTask(
        name=before.name,
        role=before.role,
        before=np.array([getattr(first, reading) for first, _ in items], dtype=np.float64),
        after=np.array([getattr(second, reading) for _, second in items], dtype=np.float64),
        groups=tuple(first.group for first, _ in items),
    )


def _compare(before: TaskResult, after: TaskResult) -> TaskChange:
    strict, lenient = _pair(before, after, "strict"), _pair(before, after, "lenient")
    items = _items(before, after)
    return TaskChange(
        name=before.name,
        role=before.role,
        metric=before.metric,
        num_items=len(items),
        before=before.strict,
        after=after.strict,
        before_lenient=before.lenient,
        after_lenient=after.lenient,
        before_valid=before.valid_format,
        after_valid=after.valid_format,
        change=paired_change(strict.before, strict.after, strict.groups),
        change_lenient=paired_change(lenient.before, lenient.after, lenient.groups),
        num_worse=int(np.sum(strict.after < strict.before)),
        num_better=int(np.sum(strict.after > strict.before)),
        num_ties=sum(first.tie or second.tie for first, second in items),
        sign_test=sign_test(strict.before, strict.after, strict.groups),
    )
