"""What is computed from a study's scores: learning, forgetting, recovery, matched learning.

Owns: the formulas. s[k][t] is the score of task t after stage k, stage 0 the base, in points of
100; task t is taught at stage k(t) of K.

* learning: mean over the skills taught of s[k(t)][t] − s[0][t];
* target forgetting: mean over skills taught before the last of s[k(t)][t] − s[K][t];
* held-out forgetting after stage k: mean over held-out tasks of s[0][t] − s[k][t];
* recovery at stage k: the held-out forgetting after stage k−1 less that after stage k.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from narrowtune.study.results import StageResult

LEAST_LOSS = 2.0
"""Points lost below which a share regained means nothing."""


@dataclass(frozen=True)
class ChainScores:
    """A finished chain in numbers, all in points.

    Attributes:
        learning: of each skill at its own stage, in order.
        overall: of each skill after the last stage.
        held_out: forgetting after each stage.
        recovery: points of held-out loss regained at each stage after the first.
    """

    learning: tuple[float, ...]
    overall: tuple[float, ...]
    held_out: tuple[float, ...]
    recovery: tuple[float, ...]

    @property
    def target_learning(self) -> float:
        """Mean over skills at their own stage."""
        return math.fsum(self.learning) / len(self.learning)

    @property
    def target_overall(self) -> float:
        """Mean over skills after the last stage."""
        return math.fsum(self.overall) / len(self.overall)

    @property
    def target_forgetting(self) -> float | None:
        """Mean over earlier skills of what was lost since their stage; None for a single one."""
        pairs = list(zip(self.learning, self.overall, strict=True))[:-1]
        if not pairs:
            return None
        return math.fsum(own - last for own, last in pairs) / len(pairs)

    @property
    def recovered_shares(self) -> tuple[float | None, ...]:
        """Recovery as a share of what was lost; None where that was `LEAST_LOSS` or less."""
        return tuple(
            points / lost if lost > LEAST_LOSS else None
            for points, lost in zip(self.recovery, self.held_out, strict=False)
        )


def score_chain(base: StageResult, stages: Sequence[StageResult]) -> ChainScores:
    """Return a chain's numbers.

    Args:
        base: stage 0.
        stages: 1 to K, in order.
    """
    before = base.tasks
    last = stages[-1].tasks
    held_out = [name for name, task in before.items() if task.role == "held_out"]
    lost = [
        100
        * math.fsum(before[name].mean - stage.tasks[name].mean for name in held_out)
        / len(held_out)
        for stage in stages
    ]
    skills = [stage.skill for stage in stages]
    return ChainScores(
        learning=tuple(
            100 * (stage.tasks[stage.skill].mean - before[stage.skill].mean) for stage in stages
        ),
        overall=tuple(100 * (last[skill].mean - before[skill].mean) for skill in skills),
        held_out=tuple(lost),
        recovery=tuple(first - second for first, second in pairwise(lost)),
    )


def forgetting_at(points: Sequence[tuple[float, float]], learning: float) -> float | None:
    """Return the forgetting at which a recipe reaches `learning`, or None if it never does.

    Args:
        points: (learning, forgetting) of its runs, by rising learning rate from no training at
            all, (0, 0); between neighbours both move in a straight line.
        learning: asked for.

    Returns:
        The least forgetting at which it is reached.
    """
    found = []
    path = [(0.0, 0.0), *points]
    for (left, lost), (right, lost_then) in pairwise(path):
        low, high = min(left, right), max(left, right)
        if low <= learning <= high:
            share = 0.0 if left == right else (learning - left) / (right - left)
            found.append(lost + share * (lost_then - lost))
    return min(found, default=None)


def rank_correlation(left: Sequence[float], right: Sequence[float]) -> float | None:
    """Return Spearman's ρ, equal values sharing their mean rank; None where one never varies."""
    if len(left) < 2 or len(set(left)) < 2 or len(set(right)) < 2:
        return None
    first, second = _ranks(left), _ranks(right)
    middle = (len(left) + 1) / 2
    first, second = [r - middle for r in first], [r - middle for r in second]
    product = math.fsum(a * b for a, b in zip(first, second, strict=True))
    norms = math.fsum(a * a for a in first) * math.fsum(b * b for b in second)
    return product / math.sqrt(norms)


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(values)
    return [order.index(v) + (order.count(v) + 1) / 2 for v in values]
