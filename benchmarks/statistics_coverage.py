"""How often the one-sided 95 % bounds of held-out loss miss the truth.

Draws tasks whose true loss is known, bounds it with `narrowtune.evaluate.statistics`, and counts
misses on either side over a grid of task sizes, task counts, losses, churn and clustering. Prints
the tables of docs/statistics.md (about 50 minutes on two free cores; `--kinds` takes a part):

    python benchmarks/statistics_coverage.py --draws 500 --redraws 300 --processes 2
"""

from __future__ import annotations

import argparse
import itertools
import json
import operator
import time
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from narrowtune.evaluate.statistics import PairedTask, mean_loss

ITEMS = (50, 100, 400, 1000)
TASKS = (1, 2, 4, 8)
LOSSES = (0.0, 0.5, 1.0, 3.0, 10.0)
CHURN = (0.0, 4.0, 20.0)
KINDS = ("alone", "clustered", "one task", "unequal", "shared", "shared unequal", "untold")
_AS_ONE = 0.7  # share of pictures about which all tasks change alike

SIDES = ("upper", "lower")

SUSPECT = 0.0675
"""Miss rate, on either side, above which a cell is drawn afresh."""


@dataclass(frozen=True)
class Cell:
    """One point of the grid; loss and churn in points.

    Attributes:
        churn: items that get worse and as many that get better, beyond the loss, together.
        kind: `alone`: every item its own cluster, every task the same loss. `clustered`: groups
            of 1 to 5 items, half of which change as one. `one task`: all the loss in the first
            task. `unequal`: every other task has a quarter of the items. `shared`: an item of every
            task about each of the same pictures, most of which change alike in all tasks.
            `shared unequal`: the same, every other task about a quarter of them. `untold`: as
            `shared`, and no groups that say so.
    """

    items: int
    tasks: int
    loss: float
    churn: float
    kind: str


@dataclass(frozen=True)
class Misses:
    """Shares of draws in which the bound missed, and the mean upper margin in points."""

    cell: Cell
    upper: float
    lower: float
    margin: float


def draw(cell: Cell, rng: np.random.Generator) -> list[PairedTask]:
    """Draw the tasks of `cell` with answers that were right before or become right."""
    tasks: list[PairedTask] = []
    common = rng.random(cell.items) < _AS_ONE
    for index in range(cell.tasks):
        loss, churn = cell.loss / 100, cell.churn / 200
        if cell.kind == "one task":
            loss *= cell.tasks if index == 0 else 0
        num_items = cell.items // 4 if "unequal" in cell.kind and index % 2 else cell.items
        churn = min(churn, (1 - loss) / 2)
        outcome = rng.choice(
            [-1, 0, 1], size=num_items, p=[loss + churn, 1 - loss - 2 * churn, churn]
        )
        groups = None
        if cell.kind == "clustered":
            sizes = rng.choice([1, 1, 2, 3, 5], size=num_items)
            group = np.repeat(np.arange(num_items), sizes)[:num_items]
            first = np.unique(group, return_index=True)[1][group]
            as_one = rng.random(num_items)[first] < 0.5
            outcome = np.where(as_one, outcome[first], outcome)
            groups = tuple(f"{index} {number}" for number in group)
        if cell.kind in ("shared", "shared unequal", "untold"):
            if tasks:
                first = (tasks[0].after - tasks[0].before)[:num_items]
                outcome = np.where(common[:num_items], first, outcome)
            groups = None if cell.kind == "untold" else tuple(map(str, range(num_items)))
        before, after = (outcome < 0).astype(float), (outcome > 0).astype(float)
        tasks.append(PairedTask(str(index), "held_out", before, after, groups))
    return tasks


def measure(cell: Cell, draws: int, resamples: int) -> Misses:
    """Draw `cell` many times and count misses."""
    rng = np.random.default_rng([draws, zlib.crc32(repr(cell).encode())])
    upper = lower = 0
    margin = 0.0
    for _ in range(draws):
        estimate = mean_loss(draw(cell, rng), num_resamples=resamples)
        upper += cell.loss > estimate.upper_bound + 1e-9
        lower += cell.loss < estimate.lower_bound - 1e-9
        margin += estimate.upper_bound - estimate.value
    return Misses(cell, upper / draws, lower / draws, margin / draws)


def grid(kinds: Sequence[str]) -> list[Cell]:
    """Return every cell that differs from the others."""
    cells = itertools.starmap(Cell, itertools.product(ITEMS, TASKS, LOSSES, CHURN, kinds))
    return [c for c in cells if c.tasks > 1 or c.kind in ("alone", "clustered")]


def measure_all(pool: Executor, cells: list[Cell], draws: int, resamples: int) -> list[Misses]:
    """Measure `cells` in parallel."""
    repeated = itertools.repeat(draws), itertools.repeat(resamples)
    return list(pool.map(measure, cells, *repeated, chunksize=1))


def table(results: Iterable[Misses], rows: str, columns: str, side: str) -> str:
    """Return a Markdown table of `mean / worst` miss rates in per cent."""
    results = list(results)
    row_values = list(dict.fromkeys(getattr(r.cell, rows) for r in results))
    column_values = list(dict.fromkeys(getattr(r.cell, columns) for r in results))
    lines = [f"| {rows} \\ {columns} | " + " | ".join(f"{v:g}" for v in column_values) + " |"]
    lines.append("|---" * (len(column_values) + 1) + "|")
    for row in row_values:
        shares = []
        for column in column_values:
            found = [
                getattr(r, side)
                for r in results
                if getattr(r.cell, rows) == row and getattr(r.cell, columns) == column
            ]
            shares.append(f"{100 * np.mean(found):.1f} / {100 * max(found):.1f}" if found else "")
        lines.append(f"| {row} | " + " | ".join(shares) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run the grid and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--redraws", type=int, default=300)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--out", type=Path, help="write every cell to this JSON file")
    arguments = parser.parse_args()
    start = time.perf_counter()
    cells = grid(arguments.kinds)
    with ProcessPoolExecutor(arguments.processes) as pool:
        results = measure_all(pool, cells, arguments.draws, arguments.resamples)
        # The worst of hundreds of cells is mostly luck: fresh draws of the same cells tell.
        suspects = [r.cell for r in results if max(r.upper, r.lower) > SUSPECT]
        again = measure_all(pool, suspects, arguments.redraws, arguments.resamples)
    if arguments.out:
        arguments.out.write_text(json.dumps([asdict(r) for r in results]), encoding="utf-8")
    for side in SIDES:
        print(f"\n{side} bound, misses in per cent (mean / worst over the rest of the grid)\n")
        print(table(results, "items", "loss", side))
        print()
        print(table(results, "kind", "tasks", side))
        print()
        for r in sorted(results, key=operator.attrgetter(side), reverse=True)[:8]:
            print(f"{100 * getattr(r, side):.1f} %  {r.cell}")
    print(
        f"\n{len(cells)} cells, {arguments.draws} draws each, {time.perf_counter() - start:.0f} s"
    )
    fresh = {r.cell: r for r in again}
    for side in SIDES:
        picked = [r for r in results if getattr(r, side) > SUSPECT]
        if picked:
            first = 100 * np.mean([getattr(r, side) for r in picked])
            second = 100 * np.mean([getattr(fresh[r.cell], side) for r in picked])
            print(
                f"{side}: {len(picked)} cells above {SUSPECT:.2%} missed in {first:.1f} % on "
                f"average, and in {second:.1f} % when drawn afresh {arguments.redraws} times"
            )


if __name__ == "__main__":
    main()
