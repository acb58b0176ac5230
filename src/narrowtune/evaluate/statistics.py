"""Intervals for paired changes: what a budget is compared with.

Owns every interval, standard error and test of the project. Items are paired before and after,
items that share a group (picture, entity) form one cluster, in whichever tasks they are, clusters
are independent, and the mean over tasks gives every task the same weight. Two methods, chosen per
task (or tasks that share groups) by how much there is to resample, are added in quadrature:

* studentised bootstrap of clusters within tasks, where at least `MIN_DEVIATING` clusters differ
  from the commonest change;
* weighted Clopper-Pearson bounds otherwise, which stay honest with few changes or none.

docs/statistics.md has the reasons and the measured miss rates. No randomness but a fixed seed:
the same scores give the same interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import bdtr

from narrowtune.core.errors import EvaluationError
from narrowtune.core.results import Estimate, Role, Score
from narrowtune.core.values import SignTest
from narrowtune.evaluate.clusters import (
    Clusters,
    Floats,
    cluster_codes,
    make_clusters,
    make_strata,
)
from narrowtune.evaluate.intervals import bootstrap_margins, exact_margin, upper_share

MIN_DEVIATING = 30
"""Fewest clusters that differ from the commonest change for a task to be resampled."""

NUM_RESAMPLES = 10_000
ONE_SIDED = 0.95
TWO_SIDED = 0.975
"""Level of each end of a two-sided 95 % interval."""

LARGEST_TASK = 10_000_000
"""`items_needed` gives up beyond this many items per task."""


@dataclass(frozen=True)
class PairedTask:
    """One task's item scores, 0 to 1, before and after in the same order.

    Attributes:
        groups: what each item shares with others; None for an item that stands alone.
    """

    name: str
    role: Role
    before: Floats
    after: Floats
    groups: tuple[str | None, ...] | None = None


def mean_score(scores: ArrayLike, groups: Sequence[str | None] | None = None) -> Score:
    """Return the mean of `scores` [num_items] and its standard error."""
    values = _checked(scores, "scores")
    return Score(mean=float(values.mean()), stderr=stderr(values, groups))


def stderr(scores: ArrayLike, groups: Sequence[str | None] | None = None) -> float:
    """Return the standard error of the mean of `scores` [num_items], clustered by `groups`.

    A single cluster says nothing about spread; 0.5, the largest a share can have, is returned.

    Raises:
        EvaluationError: no scores, scores outside 0 to 1, or as many groups as scores don't match.
    """
    values = _checked(scores, "scores")
    codes = cluster_codes(len(values), groups)
    num_clusters = int(codes.max()) + 1
    if num_clusters == 1:
        return 0.5
    residuals = np.bincount(codes, weights=values - values.mean())
    factor = num_clusters / (num_clusters - 1)
    return math.sqrt(factor * float((residuals**2).sum())) / len(values)


def paired_change(
    before: ArrayLike,
    after: ArrayLike,
    groups: Sequence[str | None] | None = None,
    *,
    num_resamples: int = NUM_RESAMPLES,
) -> Estimate:
    """Return after − before of one task, percentage points.

    Args:
        before: item scores [num_items], 0 to 1.
        after: the same items' scores, in the same order.
        groups: cluster of each item; None for an item that stands alone.
        num_resamples: of the bootstrap, where there is enough to resample.

    Raises:
        EvaluationError: no items, lengths that differ, or scores outside 0 to 1.
    """
    change = _changes(before, after)
    return _estimate([make_clusters(change, groups)], num_resamples=num_resamples)


def sign_test(
    before: ArrayLike, after: ArrayLike, groups: Sequence[str | None] | None = None
) -> SignTest:
    """Test whether as many clusters got better as worse, each by its items' net change.

    Arguments and errors as for `paired_change`. McNemar takes items to be independent, so that
    those of a group count once.
    """
    changes = _changes(before, after)
    clusters = make_clusters(changes, groups)
    net = np.round(clusters.change, 9)  # what a sum's noise alone moves did not change
    worse, better = int(np.sum(net < 0)), int(np.sum(net > 0))
    return SignTest(
        num_worse=worse,
        num_better=better,
        p_value=min(1.0, 2 * float(bdtr(min(worse, better), worse + better, 0.5))),
        clustered=len(net) < len(changes),
    )


def mean_change(tasks: Sequence[PairedTask], *, num_resamples: int = NUM_RESAMPLES) -> Estimate:
    """Return the unweighted mean over `tasks` of after − before, percentage points.

    Raises:
        EvaluationError: there are no tasks, or one of them has unusable scores.
    """
    _require(bool(tasks), "the mean change over tasks", "no tasks", "give at least one task")
    return _estimate(_strata(tasks), num_resamples=num_resamples)


def mean_loss(tasks: Sequence[PairedTask], *, num_resamples: int = NUM_RESAMPLES) -> Estimate:
    """Return the unweighted mean over `tasks` of before − after, percentage points."""
    return _negated(mean_change(tasks, num_resamples=num_resamples))


def worst_loss(
    tasks: Sequence[PairedTask], *, num_resamples: int = NUM_RESAMPLES
) -> tuple[str, Estimate]:
    """Return the task with the largest loss, and bounds for the largest true loss of any task.

    The upper bounds are the largest of the tasks' own: whichever task is truly worst, its own
    bound misses with 5 %, so no adjustment is due. The lower bounds pick the largest of several
    that may each be wrong, so each is taken at the Bonferroni level, 5 % / number of tasks.

    Raises:
        EvaluationError: there are no tasks, or one of them has unusable scores.
    """
    _require(bool(tasks), "the worst task", "no tasks", "give at least one task")
    losses = []
    for task in tasks:
        estimate = _estimate(
            _strata([task]), num_comparisons=len(tasks), num_resamples=num_resamples
        )
        losses.append((task.name, _negated(estimate)))
    name, worst = max(losses, key=lambda pair: pair[1].value)
    method = f"largest of {len(tasks)} tasks, lower bounds adjusted (Bonferroni); {worst.method}"
    return name, Estimate(
        value=worst.value,
        low=max(loss.low for _, loss in losses),
        high=max(loss.high for _, loss in losses),
        lower_bound=max(loss.lower_bound for _, loss in losses),
        upper_bound=max(loss.upper_bound for _, loss in losses),
        method=worst.method if len(tasks) == 1 else method,
    )


def smallest_provable_budget(num_items_per_task: Sequence[float]) -> float:
    """Return the upper bound of the mean loss, points, if no item of any task changes.

    Args:
        num_items_per_task: items of each held-out task; where they share groups,
            `clusters.effective_items_together`.

    Raises:
        EvaluationError: there are no tasks, or one has no items.
    """
    _require(
        bool(num_items_per_task) and min(num_items_per_task, default=0) > 0,
        "the smallest provable budget",
        f"tasks with {list(num_items_per_task)} items",
        "give at least one task, with at least one item each",
    )
    weight = 1 / (len(num_items_per_task) * min(num_items_per_task))
    return 100 * upper_share(0.0, 0.0, weight, ONE_SIDED)


def items_needed(
    tasks: Sequence[PairedTask],
    threshold: float,
    *,
    num_comparisons: int = 1,
    maximum: int = LARGEST_TASK,
) -> int | None:
    """Return how many items per task would tell the mean change from `threshold`.

    Assumes that more items behave like those seen: same changes, same spread, same group sizes.

    Args:
        threshold: percentage points of after − before.
        num_comparisons: tasks that the worst was picked from, where these are the worst.
        maximum: beyond this many the answer is None.

    Returns:
        The smallest equal number of items per task for which the one-sided bound on the
        threshold's side clears it, or None if none up to `maximum` does.
    """
    clusters = _strata(tasks)
    value = 100 * _mean(clusters)
    if value == threshold:
        return None
    above = value < threshold
    level = 1 - (1 - ONE_SIDED) / (num_comparisons if above else 1)

    def clears(num_items: int) -> bool:
        margin = 100 * exact_margin(clusters, level, above=above, num_items=num_items)
        return value + margin <= threshold if above else value - margin > threshold

    if not clears(maximum):
        return None
    low, high = 0, maximum
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if clears(middle) else (middle, high)
    return high


def _estimate(
    clusters: Sequence[Clusters],
    *,
    num_comparisons: int = 1,
    num_resamples: int = NUM_RESAMPLES,
) -> Estimate:
    """Interval of the mean over tasks, points.

    `num_comparisons` adjusts the *upper* bounds of the change (the lower ones of the loss).
    """
    few = [c for c in clusters if c.num_deviating < MIN_DEVIATING]
    many = [c for c in clusters if c.num_deviating >= MIN_DEVIATING]
    adjusted = [1 - (1 - level) / num_comparisons for level in (ONE_SIDED, TWO_SIDED)]
    sides = [(False, ONE_SIDED), (False, TWO_SIDED), (True, adjusted[0]), (True, adjusted[1])]
    margins = np.zeros(len(sides))
    if many:
        margins += (_num_tasks(many) * bootstrap_margins(many, sides, num_resamples)) ** 2
    if few:
        exact = [exact_margin(few, level, above=above) for above, level in sides]
        margins += (_num_tasks(few) * np.array(exact)) ** 2
    margins = 100 * np.sqrt(margins) / _num_tasks(clusters)
    value = 100 * _mean(clusters) + 0.0
    return Estimate(
        value=value,
        low=max(-100.0, value - float(margins[1])),
        high=min(100.0, value + float(margins[3])),
        lower_bound=max(-100.0, value - float(margins[0])),
        upper_bound=min(100.0, value + float(margins[2])),
        method=_describe(few, many),
    )


def _num_tasks(clusters: Sequence[Clusters]) -> int:
    return sum(c.num_tasks for c in clusters)


def _mean(clusters: Sequence[Clusters]) -> float:
    """Unweighted mean over tasks, a share of 1."""
    return math.fsum(c.num_tasks * c.mean for c in clusters) / _num_tasks(clusters)


def _describe(few: Sequence[Clusters], many: Sequence[Clusters]) -> str:
    clustered = any(c.num_tasks > 1 or (c.size > 1).any() for c in (*few, *many))
    parts = []
    if many:
        parts.append("studentised bootstrap")
    if few:
        changed = any(c.change.any() for c in few)
        parts.append("weighted Clopper-Pearson" if changed else "exact, no pair disagrees")
    return " + ".join(parts) + (", clustered" if clustered else "")


def _negated(estimate: Estimate) -> Estimate:
    """The same estimate with its sign turned; `0.0 -` so that no change stays 0.0."""
    return Estimate(
        value=0.0 - estimate.value,
        low=0.0 - estimate.high,
        high=0.0 - estimate.low,
        lower_bound=0.0 - estimate.upper_bound,
        upper_bound=0.0 - estimate.lower_bound,
        method=estimate.method,
    )


def _strata(tasks: Sequence[PairedTask]) -> list[Clusters]:
    return make_strata([(_changes(t.before, t.after, t.name), t.groups) for t in tasks])


def _changes(before: ArrayLike, after: ArrayLike, name: str = "scores") -> Floats:
    """Return after − before of each item [num_items]."""
    first, second = _checked(before, name), _checked(after, name)
    _require(
        len(first) == len(second),
        f"a paired change of {name}",
        f"{len(first)} scores before and {len(second)} after",
        "evaluate the same items before and after",
    )
    changes: Floats = second - first
    return changes


def _checked(scores: ArrayLike, name: str) -> Floats:
    values = np.asarray(scores, dtype=np.float64)
    _require(
        values.ndim == 1 and len(values) > 0,
        f"statistics of {name}",
        f"an array of shape {values.shape}",
        "give one score per item, and at least one item",
    )
    _require(
        bool(np.all((values >= 0) & (values <= 1))),
        f"statistics of {name}",
        "scores that are not between 0 and 1",
        "check the metric that made them",
    )
    return values


def _require(condition: bool, asked: str, found: str, do: str) -> None:
    if not condition:
        raise EvaluationError(asked=asked, found=found, do=do)
