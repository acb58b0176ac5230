"""The rates that later phases use, chosen from an earlier phase's validation scores alone.

Owns: how a grid of rates is extended, and which rates are chosen. Test rows have no say: only
`Point.validation` and the base's validation are read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from narrowtune.core.errors import UsageError
from narrowtune.core.results import Value
from narrowtune.core.study_settings import ArmSettings
from narrowtune.study.presets import CHAIN_SHARE, LORA_FACTOR, TOWER_FACTOR
from narrowtune.study.results import StageResult, base_of
from narrowtune.study.tables import SHARES, Point, at_edge, best_point, frontier


class ArmChoice(Value):
    """An arm's rates.

    Attributes:
        tried: rate → validation accuracy, points.
        best: of the best accuracy, the lowest of several.
        at_edge: whether that is the lowest or the highest tried.
        near: share of the reference's best validation learning → rate that comes nearest. Rates
            above the best are no candidates: past it an arm learns as much again, and breaks more.
        paper: the one rate of the paper's setting, as it is for this arm.
    """

    tried: dict[float, float]
    best: float
    at_edge: bool
    near: dict[float, float]
    paper: float

    @property
    def in_chains(self) -> float:
        """The rate at which skills are taught in a row: of about equal learning for all arms."""
        return self.near[CHAIN_SHARE]

    def learns(self, base: float) -> bool:
        """Whether any rate that was tried learns anything.

        Args:
            base: validation accuracy before any training, points.
        """
        return max(self.tried.values()) > base

    @property
    def rates(self) -> list[float]:
        """All chosen rates, each once, rising."""
        return sorted({self.best, self.paper, *self.near.values()})


class Choices(Value):
    """What was chosen, and from what.

    Attributes:
        made_from: the results' file.
        made_on: which rows.
        reference: the arm that others are compared with.
        base: its skill's validation accuracy before any training, points.
        arms: by label.
    """

    made_from: str
    made_on: str
    reference: str
    base: float
    arms: dict[str, ArmChoice]


def points_of(
    results: Sequence[StageResult], grids: Mapping[str, Sequence[float]], seed: int
) -> dict[str, list[Point]]:
    """Return the points of these grids alone, whatever else was run, by rising rate.

    Raises:
        UsageError: some are missing or were not scored on validation rows.
    """
    found = {
        arm: [point for point in points if point.chain.learning_rate in grids[arm]]
        for arm, points in frontier(results, "default", seed).items()
        if arm in grids
    }
    if any(
        len(found.get(arm, ())) < len(rates) or any(math.isnan(p.validation) for p in found[arm])
        for arm, rates in grids.items()
    ):
        raise UsageError(
            asked="a choice of learning rates",
            found="runs that are missing, or that have no validation scores",
            do="run the phase to its end, on a skill with validation rows",
        )
    return found


def extend(points: Mapping[str, Sequence[Point]]) -> dict[str, list[float]] | None:
    """Return grids of one more rate for every arm, or None if no arm's best is at an edge."""
    if not any(at_edge(found) for found in points.values()):
        return None
    return {
        arm: sorted({*(point.chain.learning_rate for point in found), further_rate(found)})
        for arm, found in points.items()
    }


def further_rate(points: Sequence[Point]) -> float:
    """Return where an arm's next trial is: past the edge its best is at, else beside its best.

    Beside the best is halfway, in logarithms, to the neighbour of the better validation accuracy.
    """
    best = best_point(points)
    place = points.index(best)
    rate = best.chain.learning_rate
    if place in (0, len(points) - 1):
        return step(rate, up=place > 0 or len(points) == 1)
    neighbour = best_point([points[place - 1], points[place + 1]])
    return rounded(math.sqrt(rate * neighbour.chain.learning_rate))


def rounded(rate: float) -> float:
    """Return a rate of two digits, so that 10 times 3e-4 is 3e-3 whatever floats say."""
    return float(f"{rate:.1e}")


def step(rate: float, *, up: bool) -> float:
    """Return the next rate of … 1e-4, 3e-4, 1e-3, 3e-3 …"""
    half_decades = round(2 * math.log10(rate)) + (1 if up else -1)
    return float(f"{10 ** (half_decades / 2):.0e}")


def choose(
    points: Mapping[str, Sequence[Point]],
    results: Sequence[StageResult],
    arms: Mapping[str, ArmSettings],
    *,
    reference: str,
    made_from: str,
) -> Choices:
    """Choose every arm's rates.

    Args:
        points: of the final grids.
        results: of the phase, for the base.
        arms: by label.
        reference: the arm whose learning is the measure.
        made_from: what to write down.

    Raises:
        UsageError: the base was not scored on validation rows.
    """
    validation = base_of(results).validation
    if validation is None:
        raise UsageError(
            asked="a choice of learning rates",
            found=f"a base without validation scores in {made_from}",
            do="run the phase anew in another --output-dir",
        )
    base = 100 * validation.mean
    leader = best_point(points[reference])
    targets = {share: base + share * (leader.validation - base) for share in SHARES}
    chosen = {
        arm: ArmChoice(
            tried={point.chain.learning_rate: point.validation for point in found},
            best=best_point(found).chain.learning_rate,
            at_edge=at_edge(found),
            near={share: _nearest(found, target) for share, target in targets.items()},
            paper=rounded(leader.chain.learning_rate * paper_factor(arms[arm])),
        )
        for arm, found in points.items()
    }
    skills = ", ".join({point.chain.order for found in points.values() for point in found})
    return Choices(
        made_from=made_from,
        made_on=f"validation rows, seed {leader.chain.seed}, order {skills}",
        reference=reference,
        base=base,
        arms=chosen,
    )


def paper_factor(arm: ArmSettings) -> float:
    """Return an arm's share of the one rate: adapters have more of it, the tower alone less.

    `full` trains the tower at the one rate too, since an arm has but one; the paper's is lower.
    """
    if arm.lora is not None:
        return LORA_FACTOR
    return TOWER_FACTOR if arm.recipe == "vision_tower" else 1.0


def _nearest(points: Sequence[Point], target: float) -> float:
    """Return the rate, up to the best one, whose accuracy is nearest; the lowest of several."""
    most = best_point(points).chain.learning_rate
    candidates = [point for point in points if point.chain.learning_rate <= most]
    found = min(candidates, key=lambda p: (abs(p.validation - target), p.chain.learning_rate))
    return found.chain.learning_rate


def trials(grids: Mapping[str, Sequence[float]]) -> int:
    """Return how many rates each arm has; all have the same number.

    Raises:
        UsageError: they have not.
    """
    numbers = [len(rates) for rates in grids.values()]
    if any(first != second for first, second in pairwise(numbers)):
        raise UsageError(
            asked="arms compared by their best rates",
            found=f"grids of {', '.join(map(str, numbers))} rates",
            do="give every arm as many",
        )
    return numbers[0]
