"""What runs gained and lost, item by item, so that differences of arms have honest intervals.

Owns: effects and their t intervals. An effect is, for every seed, a sum of means over items; arms
are compared on the same items of the same seeds, so that what they share cancels.

For S seeds with the values v, and items x of the terms k averaged over seeds, the variance of the
mean is var(v)/S + Σ_k var(x_k)/n_k; its degrees of freedom are Welch and Satterthwaite's. Items add
degrees of freedom too, which must not make an interval narrower than the seeds' own, so the wider
is taken. With one seed the first part is unknown: the interval is of items alone. var(x_k) is at
least what one item that changed wholly would make it, so that no change at all is not certainty
(decision 0005).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from narrowtune.core.results import Value
from narrowtune.study.results import StageResult, TaskScores, unpack_scores

_LEVEL = 0.975


class Interval(Value):
    """A mean over seeds with its 95 % interval.

    Attributes:
        mean, low, high: in points, or the unit of what was measured. An end that can't be known
            is None: of a single value, and of values that are all alike.
        seeds: the value of every seed.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: tuple[float, ...]


@dataclass(frozen=True)
class Items:
    """One mean over items.

    Attributes:
        values: one per item.
        scale: the value of an item that went from wrong to right.
    """

    values: NDArray[np.float64]
    scale: float

    def plus(self, other: Items | None, factor: float) -> Items:
        """Return the sum with `factor` times others of the same items."""
        if other is None:
            return self
        scale = self.scale + abs(factor) * other.scale
        return Items(self.values + factor * other.values, scale)


Terms = Mapping[str, Items]
"""By name; the means of all are added up."""


@dataclass(frozen=True)
class Effect:
    """A sum of means over items, for every seed.

    Attributes:
        terms: by seed.
    """

    terms: Mapping[int, Terms]

    def plus(self, other: Effect, factor: float = 1.0) -> Effect:
        """Return the sum with `factor` times another effect, over the seeds that both have."""
        return Effect(
            {
                seed: _added(own, other.terms[seed], factor)
                for seed, own in self.terms.items()
                if seed in other.terms
            }
        )

    def interval(self) -> Interval | None:
        """Return the mean over seeds and its interval; None without any seed."""
        if not self.terms:
            return None
        every = list(self.terms.values())
        values = [sum(float(x.values.mean()) for x in terms.values()) for terms in every]
        parts = []
        for name, items in every[0].items():
            means = np.mean([terms[name].values for terms in every], axis=0)
            if (count := len(means)) > 1:
                variance = max(float(means.var(ddof=1)), items.scale**2 / count)
                parts.append((variance / count, count - 1))
        if len(values) > 1:
            parts.append((float(np.var(values, ddof=1)) / len(values), len(values) - 1))
        found = _interval(values, parts)
        seeds = over_seeds(values)
        assert seeds is not None
        return max(found, seeds, key=_width)


def over_seeds(values: Sequence[float]) -> Interval | None:
    """Return the interval of one number per seed; with a single one it has no ends.

    Nor where all are alike: a few equal values are no certainty, and there are no items to tell.
    """
    if not values:
        return None
    if len(values) == 1:
        return _interval(values, [])
    return _interval(values, [(float(np.var(values, ddof=1)) / len(values), len(values) - 1)])


def learned(base: StageResult, stages: Sequence[StageResult]) -> Terms:
    """Return what the stages' skills gained, each at its own stage, their mean in points."""
    share = 1 / len(stages)
    return {
        f"learned {stage.skill}": _gain(base.tasks[stage.skill], [stage.tasks[stage.skill]], share)
        for stage in stages
    }


def remaining(base: StageResult, stages: Sequence[StageResult]) -> Terms:
    """Return what the last stage leaves of what the stages' skills gained, their mean in points."""
    after, share = stages[-1].tasks, 1 / len(stages)
    return {
        f"remaining {stage.skill}": _gain(base.tasks[stage.skill], [after[stage.skill]], share)
        for stage in stages
    }


def lost(base: StageResult, stages: Sequence[StageResult]) -> Terms:
    """Return what held-out tasks lost, the mean over tasks and these stages, in points."""
    kept = [name for name, task in base.tasks.items() if task.role == "held_out"]
    return {
        f"lost {name}": _gain(
            base.tasks[name], [stage.tasks[name] for stage in stages], -1 / len(kept)
        )
        for name in kept
    }


def lost_in_form(base: StageResult, stage: StageResult) -> Terms | None:
    """Return what is lost where base and tuned model are held to answers of the right form."""
    before, after = base.constrained, stage.constrained
    if not before or not after:
        return None
    # Named as free losses are, so that both are subtracted item by item.
    return {
        f"lost {name}": _gain(task, [after[name]], -1 / len(before))
        for name, task in before.items()
    }


def _gain(before: TaskScores, after: Sequence[TaskScores], factor: float) -> Items:
    first = np.array(unpack_scores(before.items))
    then = np.mean([unpack_scores(scores.items) for scores in after], axis=0)
    return Items(100 * factor * (then - first), 100 * abs(factor))


def _added(left: Terms, right: Terms, factor: float) -> Terms:
    nothing = {name: Items(0 * items.values, 0.0) for name, items in right.items()}
    return {
        name: items.plus(right.get(name), factor) for name, items in {**nothing, **left}.items()
    }


def _width(interval: Interval) -> float:
    if interval.low is None or interval.high is None:
        return 0.0
    return interval.high - interval.low


def _interval(values: Sequence[float], parts: Sequence[tuple[float, int]]) -> Interval:
    mean = math.fsum(values) / len(values)
    variance = math.fsum(part for part, _ in parts)
    if variance == 0:
        return Interval(mean=mean, low=None, high=None, seeds=tuple(values))
    freedom = variance**2 / math.fsum(part**2 / number for part, number in parts)
    half = float(student.ppf(_LEVEL, freedom)) * math.sqrt(variance)
    return Interval(mean=mean, low=mean - half, high=mean + half, seeds=tuple(values))
