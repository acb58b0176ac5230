"""A dial for each component: does going further with one than with the other forget less?

    python benchmarks/dial_components.py --seeds 0
    python benchmarks/dial_components.py --seeds 1
    python benchmarks/dial_components.py --table

The reference model is taught clocks as in `budget_coverage.py`, attention and MLP together
(`sa_proj+mlp_gate_up`), and scored on 80 items of each of eight kept tasks and 200 of the skill:
on the grid of α for attention and α for gate and up, each 0, ¼, ½, ¾ and 1, and on its diagonal,
which is the product's dial, in eighths. A row of the grid ends at the first point that loses 15
points or more. What is there is not measured again (docs/results/dial-components).

The table: all items are parted in halves, 200 times. On one half the point off the diagonal is
chosen that learns most above the diagonal's frontier at what it loses (with a line between its
points), among those within a budget; on the other half it is measured, against the frontier there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from budget_coverage import ARMS, ENOUGH, Bench, Scores, Tensors
from numpy.typing import NDArray

from narrowtune.engine.heap import keep_freed_blocks
from narrowtune.models.blended import set_between
from narrowtune.models.select import resolve

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "dial-components"
SKILL, ARM = "clock", "sa_proj+mlp_gate_up"
RECIPES: dict[str, tuple[str, float, float]] = {
    ARM: (ARM, 1e-3, 0.0),
    f"{ARM} + anchor": (ARM, 1e-3, 0.3),
}
"""Recipe, learning rate, weight of the anchor: arms beside those of `budget_coverage`."""
NUM_KEPT, DRAWS = 80, 200
QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)
BUDGETS = (2.0, 5.0, 10.0, ENOUGH)

Point = tuple[float, float]
"""α of attention and α of the MLP."""

Lists = dict[str, NDArray[np.float64]]
"""Score of every item, by task."""


class Grid:
    """What is known of one training, in a file that is written after every point."""

    def __init__(self, arm: str, seed: int) -> None:
        name = f"{SKILL} {arm} seed {seed}.json".replace(" ", "_").replace("+", "and")
        self.path = RESULTS / name
        self.points: dict[str, Scores] = {}
        if self.path.exists():
            self.points = json.loads(self.path.read_text("utf-8"))

    def add(self, point: Point, scores: Scores) -> None:
        """Keep the scores of a point; most are 0 or 1."""
        self.points[_key(point)] = {
            name: [int(score) if score in (0, 1) else score for score in each]
            for name, each in scores.items()
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        written = json.dumps(self.points, separators=(",", ":")) + "\n"
        self.path.write_text(written, encoding="utf-8")

    def known(self) -> dict[Point, Lists]:
        """Return all that was measured."""
        return {
            (float(attention), float(mlp)): {
                name: np.array(each, dtype=np.float64) for name, each in scores.items()
            }
            for key, scores in self.points.items()
            for attention, mlp in [key.split()]
        }


def _key(point: Point) -> str:
    return f"{point[0]:g} {point[1]:g}"


def walks() -> list[list[Point]]:
    """Return the diagonal in eighths, and the grid by rows of attention."""
    diagonal = [(number / 8, number / 8) for number in range(1, 9)]
    return [diagonal, *([(attention, mlp) for mlp in QUARTERS] for attention in QUARTERS)]


def measure(arm: str, seeds: Sequence[int], folder: Path) -> None:
    """Teach, and score what is missing."""
    bench = Bench(SKILL, folder, num_kept=NUM_KEPT)
    model = bench.loaded.model
    attention = set(resolve(model, "sa_proj").names)
    for seed in seeds:
        grid = Grid(arm, seed)
        grid.add((0, 0), bench.base)
        with bench.taught(arm, seed) as (base, tuned, _):
            parts = [
                {name: base[name] for name in base if (name in attention) == own}
                for own in (True, False)
            ]
            for walk in walks():
                for point in walk:
                    scores = grid.points.get(_key(point))
                    if scores is None:
                        _place(model, parts, tuned, point)
                        scores = bench.score()
                        grid.add(point, scores)
                        print(arm, seed, _key(point), f"lost {bench.lost(scores):.1f}", flush=True)
                    if bench.lost(scores) >= ENOUGH:
                        break


def _place(model: torch.nn.Module, parts: Sequence[Tensors], tuned: Tensors, point: Point) -> None:
    for base, alpha in zip(parts, point, strict=True):
        set_between(model, base, {name: tuned[name] for name in base}, alpha)


def _moved(base: Lists, scores: Lists, chosen: Lists) -> Point:
    """Return points lost, the mean of the kept tasks, and points learned, on the chosen items."""
    change = {
        name: 100 * float(np.mean((scores[name] - base[name])[chosen[name].astype(int)]))
        for name in base
    }
    learned = change.pop(SKILL)
    return -float(np.mean(list(change.values()))), learned


def frontier(walk: Sequence[Point], lost: float) -> float:
    """Return the most that the diagonal learns for at most so much lost, points.

    Args:
        walk: lost and learned of its points from the base on; what lies between two of them is
            taken to be on the line between them.
        lost: points.
    """
    within = [learned for at, learned in walk if at <= lost]
    for (left, low), (right, high) in pairwise(walk):
        if min(left, right) < lost < max(left, right):
            within.append(low + (high - low) * (lost - left) / (right - left))
    return max(within, default=0.0)


def table() -> None:
    """Print what was measured, and what a choice of both is worth on other items."""
    for path in sorted(RESULTS.glob("*.json")):
        arm = path.stem.removeprefix(f"{SKILL}_").replace("and", "+")
        name, _, seed = arm.rpartition("_seed_")
        known = Grid(name.replace("_+_", " + "), int(seed)).known()
        base = known[0.0, 0.0]
        everything = {task: np.arange(len(scores)) for task, scores in base.items()}
        moved = {point: _moved(base, scores, everything) for point, scores in known.items()}
        print(f"\n{arm}: lost / learned, by α of attention (rows) and of the MLP (columns)")
        for attention in QUARTERS:
            row = [moved.get((attention, mlp)) for mlp in QUARTERS]
            print(f"{attention:g} | " + " | ".join(_told(cell) for cell in row))
        _diagonal(moved)
        generator = np.random.default_rng(0)
        excess: dict[float, list[float]] = {budget: [] for budget in BUDGETS}
        taken: dict[float, list[Point]] = {budget: [] for budget in BUDGETS}
        for _ in range(DRAWS):
            orders = {task: generator.permutation(len(each)) for task, each in base.items()}
            first, other = (
                {
                    point: _moved(base, scores, {t: half(o) for t, o in orders.items()})
                    for point, scores in known.items()
                }
                for half in (_first_half, _other_half)
            )
            for budget in BUDGETS:
                allowed = [p for p in first if p[0] != p[1] and first[p][0] <= budget]
                if allowed:
                    best = max(allowed, key=lambda point: _above(first, point))
                    taken[budget].append(best)
                    excess[budget].append(_above(other, best))
        for budget, found in excess.items():
            if not found:
                continue
            low, high = np.quantile(found, [0.025, 0.975])
            most = max(set(taken[budget]), key=taken[budget].count)
            print(
                f"budget {budget:g}: chosen on one half, on the other {np.mean(found):+.1f} points "
                f"learned at equal loss ({low:+.1f} to {high:+.1f} over {len(found)} halvings, "
                f"above 0 in {np.mean(np.array(found) > 0):.0%}); most often {_key(most)} "
                f"({taken[budget].count(most) / len(found):.0%})"
            )


def _told(moved: Point | None) -> str:
    return "" if moved is None else f"{moved[0]:.1f} / {moved[1]:.1f}"


def _walk(moved: dict[Point, Point]) -> list[Point]:
    return [moved[point] for point in sorted(moved) if point[0] == point[1]]


def _diagonal(moved: dict[Point, Point]) -> None:
    told = [f"{point[0]:g}: {_told(moved[point])}" for point in sorted(moved) if len({*point}) == 1]
    print("both alike: " + ", ".join(told))


def _above(moved: dict[Point, Point], point: Point) -> float:
    """Return what a point learns above the diagonal's frontier at what it loses, points."""
    lost, learned = moved[point]
    return learned - frontier(_walk(moved), lost)


def _first_half(order: NDArray[np.int64]) -> NDArray[np.int64]:
    return order[: len(order) // 2]


def _other_half(order: NDArray[np.int64]) -> NDArray[np.int64]:
    return order[len(order) // 2 :]


def main() -> None:
    """Measure, or print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1], help="of training")
    parser.add_argument("--arm", default=ARM, choices=list(RECIPES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    if given.table:
        table()
        return
    keep_freed_blocks()
    torch.set_num_threads(given.threads)
    ARMS.update(RECIPES)
    with tempfile.TemporaryDirectory() as folder:
        measure(given.arm, given.seeds, Path(folder))


if __name__ == "__main__":
    main()
