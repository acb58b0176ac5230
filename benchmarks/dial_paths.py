"""Two ways from the base to what was trained: which one keeps more learning within a budget?

    python benchmarks/dial_paths.py --skills clock --seeds 0 1
    python benchmarks/dial_paths.py --table

Trainings, rows and draws of keep sets are those of `budget_coverage.py`. After each training the
dial's ten places are scored on both of its paths: all elements α of the way (`linear`), and the
share α of each tensor's elements that moved furthest all of the way (`largest`). All scores of an
item are kept, in a file per run (docs/results/dial-paths); what is there is not measured again.

The table: learned and truly lost at every place; and what the product's own dial keeps on either
path, for 200 draws of 96 items a task.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
from budget_coverage import (
    ENOUGH,
    Bench,
    Draw,
    Scores,
    draws_and_budgets,
    main,
    turned,
)

from narrowtune.core.delta_results import DialWay
from narrowtune.models.blended import set_between

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "dial-paths"
TAUGHT = ("mlp_gate_up + anchor", "mlp_gate_up")
PLACES = tuple(number / 10 for number in range(1, 11))
WAYS: tuple[DialWay, ...] = get_args(DialWay)


def walk(bench: Bench, arm: str, seed: int) -> dict[str, dict[str, Scores]]:
    """Teach, and score along both paths, each up to the first place that loses far too much."""
    found: dict[str, dict[str, Scores]] = {path: {"0": bench.base} for path in WAYS}
    with bench.taught(arm, seed) as (base, tuned, _):
        for path in WAYS:
            for place in PLACES:
                set_between(bench.loaded.model, base, tuned, place, path)
                scores = bench.score()
                found[path][f"{place:g}"] = scores
                if bench.lost(scores) > ENOUGH:
                    break
    return found


def measure(skills: Sequence[str], arms: Sequence[str], seeds: Sequence[int]) -> None:
    """Measure what is missing."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    for skill in skills:
        wanted = [(arm, seed) for seed in seeds for arm in arms]
        missing = [which for which in wanted if not _path(skill, *which).exists()]
        if not missing:
            continue
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(skill, Path(folder))
            for arm, seed in missing:
                found = walk(bench, arm, seed)
                written = json.dumps(found, separators=(",", ":")) + "\n"
                _path(skill, arm, seed).write_text(written, encoding="utf-8")
                for path, scores in found.items():
                    lost = {place: round(bench.lost(s), 1) for place, s in scores.items()}
                    print(skill, arm, seed, path, lost, flush=True)


def _path(skill: str, arm: str, seed: int) -> Path:
    return RESULTS / f"{skill} {arm} seed {seed}.json".replace(" ", "_").replace("+", "and")


def table(drawn: int | None = None) -> None:
    """Print what lies on the paths, and what a dial keeps on each."""
    draws, budgets = draws_and_budgets(drawn)
    means: dict[tuple[str, str, float], list[tuple[float, float, float, float]]] = {}
    for file in sorted(RESULTS.glob("*.json")):
        skill, _, arm = file.stem.partition("_")
        found: dict[str, dict[str, Scores]] = json.loads(file.read_text("utf-8"))
        base = found[WAYS[0]]["0"]
        kept = [name for name in base if name != skill]
        for path, places in found.items():
            told = [
                f"{place}: {_change(base, scores, [skill]):.1f} / "
                f"{-_change(base, scores, kept):.1f}"
                for place, scores in places.items()
                if place != "0"
            ]
            print(f"{skill} {arm}, {path}: " + ", ".join(told))
        for number in range(draws):
            draw = Draw(skill, base, number, drawn)
            for budget in budgets:
                for path, places in found.items():
                    made = turned(draw, places, budget)
                    if made is None:
                        continue
                    scores = places[made[0]]
                    lost = draw.true_loss(base, scores)
                    name = f"{skill} {arm.rpartition('_seed')[0]}"
                    over = float(lost > budget and made[0] != "0")
                    means.setdefault((name, path, budget), []).append(
                        (draw.learned(base, scores), lost, float(made[1]), over)
                    )
    print("skill and arm, path, budget | learned | truly lost | confirmed | truly over")
    for (name, path, budget), rows in means.items():
        learned, lost, confirmed, over = np.mean(rows, axis=0)
        told = f"{learned:.1f} | {lost:.1f} | {confirmed:.0%} | {over:.1%}"
        print(f"{name}, {path}, {budget:g} | {told}")


def _change(base: Scores, scores: Scores, names: Sequence[str]) -> float:
    return float(100 * np.mean([np.mean(scores[n]) - np.mean(base[n]) for n in names]))


if __name__ == "__main__":
    main(measure, table, __doc__, TAUGHT, [0, 1])
