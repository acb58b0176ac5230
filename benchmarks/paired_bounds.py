"""One task of right and wrong answers: our bounds of its loss beside Tango's, and McNemar's test.

    python benchmarks/paired_bounds.py

Tango (1998): the score interval of a difference of paired shares. Prints the one-sided 95 % bounds
for some counts of items that got worse and better, and how often each bound misses a true loss:
summed exactly over all counts, weighed by their chance, so that no draw is involved.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
from scipy.optimize import brentq
from scipy.stats import multinomial

from narrowtune.evaluate.statistics import PairedTask, mean_loss, sign_test

Z = 1.6448536269514722
NUM_ITEMS = 300
CASES = ((0, 0), (1, 0), (3, 0), (3, 3), (10, 2), (20, 20), (30, 10), (60, 30))
CHANCES = tuple(
    (n, loss, churn) for n in (100, 300) for loss in (0.5, 2.0, 5.0) for churn in (0, 4)
)
"""Items, true loss, items that change in both directions besides; the last two in points."""

UNLIKELY = 1e-6
"""Counts less likely than this are left out of the sum."""

Bounds = tuple[float, float]


def tango(num_items: int, worse: int, better: int) -> Bounds:
    """Return the one-sided 95 % score bounds of the loss, points."""
    upper = _tango_above(num_items, worse, better)
    return -100 * _tango_above(num_items, better, worse), 100 * upper


def _tango_above(num_items: int, worse: int, better: int) -> float:
    def score(loss: float) -> float:
        a = 2 * num_items
        b = (a - worse + better) * loss - worse - better
        root = math.sqrt(b * b + 4 * a * better * loss * (1 - loss))
        share = (root - b) / (2 * a)  # that got better, as likely as can be at this loss
        variance = num_items * (2 * share + loss * (1 - loss))
        return (worse - better - num_items * loss) / math.sqrt(variance) + Z

    found, nearly = (worse - better) / num_items, 1e-9
    return float(brentq(score, found + nearly, 1 - nearly))


@functools.cache
def ours(num_items: int, worse: int, better: int) -> Bounds:
    """Return the bounds that the verdict uses, of one task."""
    loss = mean_loss([_task(num_items, worse, better)])
    return loss.lower_bound, loss.upper_bound


def _task(num_items: int, worse: int, better: int) -> PairedTask:
    before, after = np.zeros(num_items), np.zeros(num_items)
    before[:worse] = 1
    after[worse : worse + better] = 1
    return PairedTask("kept", "held_out", before, after)


def misses(
    bounds: Callable[[int, int, int], Bounds], num_items: int, loss: float, churn: float
) -> Bounds:
    """Return the chances, per cent, that the lower and the upper bound miss a true loss."""
    shares = np.array([loss + churn / 2, churn / 2]) / 100
    drawn = multinomial(num_items, [*shares, 1 - shares.sum()])
    lower = upper = 0.0
    for worse in range(num_items + 1):
        for better in range(num_items + 1 - worse if churn else 1):
            chance = drawn.pmf([worse, better, num_items - worse - better])
            if chance < UNLIKELY:
                continue
            low, high = bounds(num_items, worse, better)
            lower += chance * (low > loss + 1e-9)
            upper += chance * (high < loss - 1e-9)
    return 100 * lower, 100 * upper


def main() -> None:
    """Print both tables."""
    print(f"{NUM_ITEMS} items, points\n")
    print("| worse / better | loss | ours | Tango | McNemar's p |\n|---|---|---|---|---|")
    for worse, better in CASES:
        task = _task(NUM_ITEMS, worse, better)
        spans = [
            f"{f(NUM_ITEMS, worse, better)[0]:.2f} to {f(NUM_ITEMS, worse, better)[1]:.2f}"
            for f in (ours, tango)
        ]
        p = sign_test(task.before, task.after).p_value
        loss = 100 * (worse - better) / NUM_ITEMS
        print(f"| {worse} / {better} | {loss:.2f} | {spans[0]} | {spans[1]} | {p:.3g} |")
    print("\nmisses, per cent: of the upper bound / of the lower\n")
    print("| items | true loss | churn | ours | Tango |\n|---|---|---|---|---|")
    for num_items, loss, churn in CHANCES:
        cells = []
        for bounds in (ours, tango):
            lower, upper = misses(bounds, num_items, loss, churn)
            cells.append(f"{upper:.1f} / {lower:.1f}")
        print(f"| {num_items} | {loss:g} | {churn} | {cells[0]} | {cells[1]} |")


if __name__ == "__main__":
    main()
