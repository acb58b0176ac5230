"""Whether forgetting goes with the shift of the output: rank correlations, over all runs and parts.

Owns: which runs are ranked together. An outlier can make a correlation over all runs, and so can
the rate alone, so that there are those within each rate and with each arm left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, median

from narrowtune.core.results import Value
from narrowtune.study.choices import rounded
from narrowtune.study.formulas import LEAST_LOSS, rank_correlation
from narrowtune.study.results import StageResult, base_of, by_chain
from narrowtune.study.tables import Point, make_point

LEAST_ARMS = 4
"""Arms at one rate below which their correlation means nothing."""


class Correlation(Value):
    """Spearman's ρ of a measure of drift with the held-out loss.

    Attributes:
        measure: of drift.
        stages: how many; of runs of one skill, as many as runs.
        overall: over all of them; None where one side never varies.
        within: at each rate, in units of the arm's own grid, over the means of seeds; of rates with
            `LEAST_ARMS` arms whose losses don't all lie within `LEAST_LOSS` of nothing.
        without: with an arm left out, by its label.
    """

    measure: str
    stages: int
    overall: float | None
    within: dict[float, float]
    without: dict[str, float]

    @property
    def within_median(self) -> float | None:
        """The median over rates."""
        return median(self.within.values()) if self.within else None

    @property
    def lowest_without(self) -> float | None:
        """The lowest with an arm left out."""
        return min(self.without.values(), default=None)


MEASURES: dict[str, Callable[[Point], float]] = {
    "number-token bias": lambda point: point.number_bias[1] - point.number_bias[0],
    "KL": lambda point: point.kl,
}
"""What is correlated with the loss."""


def points_in(phases: Sequence[Sequence[StageResult]]) -> list[Point]:
    """Return every stage of these results as a point, each run once.

    Args:
        phases: results whose runs are the same where their keys are.
    """
    found = {}
    for results in phases:
        base = base_of(results)
        for key, stages in by_chain(results).items():
            for stage in stages:
                found[key, stage.stage] = make_point(base, stage)
    return list(found.values())


def _rank(pairs: Sequence[tuple[float, float]]) -> float | None:
    return rank_correlation([drift for drift, _ in pairs], [loss for _, loss in pairs])


def _over_seeds(
    points: Sequence[Point], value: Callable[[Point], float]
) -> list[tuple[float, float]]:
    """Return mean drift and loss of runs that differ by their seed alone."""
    alike: dict[tuple[object, ...], list[Point]] = {}
    for point in points:
        key = point.chain.model_copy(update={"seed": 0})
        alike.setdefault((key, point.stage), []).append(point)
    return [
        (fmean(map(value, part)), fmean(point.forgetting for point in part))
        for part in alike.values()
    ]


def correlate(
    points: Sequence[Point], measure: str, factors: Mapping[str, float] | None = None
) -> Correlation:
    """Return the correlations of one of `MEASURES` with forgetting.

    Args:
        points: stages.
        measure: name.
        factors: by how much an arm's grid of rates lies higher; 1 where it isn't named.
    """
    factors = factors or {}
    value = MEASURES[measure]
    shown = [point for point in points if not math.isnan(value(point))]

    def rho(part: Sequence[Point]) -> float | None:
        return _rank([(value(point), point.forgetting) for point in part])

    def own_rate(point: Point) -> float:
        return rounded(point.chain.learning_rate / factors.get(point.chain.arm, 1))

    rates = sorted({own_rate(point) for point in shown})
    arms = list(dict.fromkeys(point.chain.arm for point in shown))
    within = {}
    for rate in rates:
        part = [point for point in shown if own_rate(point) == rate]
        told = max(abs(point.forgetting) for point in part) > LEAST_LOSS
        if told and len({point.chain.arm for point in part}) >= LEAST_ARMS:
            found = _rank(_over_seeds(part, value))
            if found is not None:
                within[rate] = found
    without = {
        arm: found
        for arm in arms
        if (found := rho([p for p in shown if p.chain.arm != arm])) is not None
    }
    return Correlation(
        measure=measure, stages=len(shown), overall=rho(shown), within=within, without=without
    )
