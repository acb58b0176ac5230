"""A study's results as rows: frontiers, the best rates, chains of skills.

Owns: which numbers stand side by side, and the choice of a rate, which is made on validation rows
of one seed; everything else is of test rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from narrowtune.study.formulas import ChainScores, forgetting_at, score_chain
from narrowtune.study.results import ChainKey, StageResult, base_of, by_chain

SHARES = (0.5, 0.75, 0.9)
"""Of the reference arm's best learning, at which arms are compared."""


@dataclass(frozen=True)
class Point:
    """One arm's chain at one rate, after one stage.

    Attributes:
        chain: which one.
        stage: from 1.
        validation: accuracy on the skill's own rows that were kept back, points; NaN without any.
        learning, forgetting: on test rows and keep sets, points.
        kl: KL(base‖tuned), nats per token.
        number_bias: number-token bias of the base and of the tuned model.
    """

    chain: ChainKey
    stage: int
    validation: float
    learning: float
    forgetting: float
    kl: float
    number_bias: tuple[float, float]


def frontier(results: Sequence[StageResult], order: str, seed: int) -> dict[str, list[Point]]:
    """Return each arm's first stages by rising rate."""
    base = base_of(results)
    found: dict[str, list[Point]] = {}
    chains = by_chain(results)
    for key in sorted(chains, key=lambda key: key.learning_rate):
        if (key.order, key.seed) == (order, seed):
            found.setdefault(key.arm, []).append(make_point(base, chains[key][0]))
    return found


def make_point(base: StageResult, stage: StageResult) -> Point:
    """Return a first stage in numbers."""
    scores = score_chain(base, [stage])
    drift = stage.drift
    biases = (math.nan, math.nan)
    if drift is not None:
        numbers = next((group for group in drift.token_groups if group.name == "numbers"), None)
        if numbers is not None:
            biases = (numbers.base_max, numbers.tuned_max)
    return Point(
        chain=stage.chain,
        stage=stage.stage,
        validation=100 * stage.validation.mean if stage.validation else math.nan,
        learning=scores.learning[0],
        forgetting=scores.held_out[0],
        kl=drift.kl_base_tuned if drift is not None else math.nan,
        number_bias=biases,
    )


def best_point(points: Sequence[Point]) -> Point:
    """Return the point of the best validation accuracy, the lowest rate where several have it."""
    return max(points, key=lambda point: (point.validation, -point.chain.learning_rate))


def at_edge(points: Sequence[Point]) -> bool:
    """Whether the best rate is the lowest or the highest tried: then the best is not known."""
    best = best_point(points)
    return best in (points[0], points[-1])


def matched(
    arms: Mapping[str, Sequence[Point]], reference: str
) -> dict[str, dict[float, float | None]]:
    """Return each arm's forgetting at `SHARES` of the reference arm's best learning.

    The reference's best rate is the one of the best validation accuracy, so that it is not one of
    luck with the test rows; all figures are of test rows. None is "not reached".
    """
    best = best_point(arms[reference]).learning
    return {
        arm: {
            share: forgetting_at([(p.learning, p.forgetting) for p in points], share * best)
            for share in SHARES
        }
        for arm, points in arms.items()
    }


def sequences(
    results: Sequence[StageResult], order: str, num_skills: int
) -> dict[ChainKey, ChainScores]:
    """Return the finished chains of an order in numbers.

    Args:
        results: of the study.
        order: its name.
        num_skills: how many it teaches; chains that are not there yet are left out.
    """
    base = base_of(results)
    return {
        key: score_chain(base, stages)
        for key, stages in by_chain(results).items()
        if key.order == order and len(stages) == num_skills
    }
