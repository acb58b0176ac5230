"""Whether forgetting goes with the shift of the output: rank correlations, over all runs and parts.

Owns: which runs are ranked together. An outlier can make a correlation over all runs, and so can
the rate alone, so that there are those within each rate and with each arm left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import median

from narrowtune.core.results import Value
from narrowtune.study.choices import rounded
from narrowtune.study.formulas import rank_correlation
from narrowtune.study.results import StageResult, base_of, by_chain
from narrowtune.study.tables import Point, make_point

LEAST_STAGES = 4
"""Stages at one rate below which their correlation means nothing."""


class Correlation(Value):
    """Spearman's ρ of a measure of drift with the held-out loss.

    Attributes:
        measure: of drift.
        stages: how many; of runs of one skill, as many as runs.
        overall: over all of them; None where one side never varies.
        within: of the stages at each rate that has `LEAST_STAGES`, in units of the arm's own grid.
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
        return rank_correlation([value(p) for p in part], [p.forgetting for p in part])

    def own_rate(point: Point) -> float:
        return rounded(point.chain.learning_rate / factors.get(point.chain.arm, 1))

    rates = sorted({own_rate(point) for point in shown})
    arms = list(dict.fromkeys(point.chain.arm for point in shown))
    within = {
        rate: found
        for rate in rates
        if len(part := [p for p in shown if own_rate(p) == rate]) >= LEAST_STAGES
        and (found := rho(part)) is not None
    }
    without = {
        arm: found
        for arm in arms
        if (found := rho([p for p in shown if p.chain.arm != arm])) is not None
    }
    return Correlation(
        measure=measure, stages=len(shown), overall=rho(shown), within=within, without=without
    )
