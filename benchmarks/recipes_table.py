"""Tables from runs.jsonl of recipes.py: the frontier, the best rate, matched learning."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from recipes import ARMS, GRID, SEEDS, Arm, Job, best_exponent, next_jobs, read_runs

SHARES = (0.5, 0.75, 0.9)


def value(run: dict[str, Any], what: str) -> float:
    """Return a run's learning or forgetting, points."""
    return float(run["verdict"][what]["value"])


def frontier(runs: dict[Job, dict[str, Any]], arm: Arm) -> list[tuple[float, float, float, float]]:
    """Return (rate, learning, forgetting, KL) of an arm's runs with seed 0, by rate."""
    chosen = sorted((job, run) for job, run in runs.items() if job.arm == arm and job.seed == 0)
    return [
        (
            GRID[job.exponent],
            value(run, "learning"),
            value(run, "forgetting"),
            float(run["drift"]["kl_base_tuned"]),
        )
        for job, run in chosen
    ]


def forgetting_at(points: list[tuple[float, float, float, float]], wanted: float) -> float | None:
    """Return the forgetting at a learning of `wanted`, linear between neighbouring rates.

    The first crossing as the rate grows; None if no rate reaches it.
    """
    before = (0.0, 0.0)
    for _, learning, forgetting, _ in points:
        if learning >= wanted:
            span = learning - before[0]
            part = (wanted - before[0]) / span if span > 0 else 1.0
            return before[1] + part * (forgetting - before[1])
        before = (learning, forgetting)
    return None


def print_tables(results: Path) -> None:
    """Print Markdown tables of what is there, and what is still missing."""
    runs = read_runs(results / "runs.jsonl")
    points = {arm: frontier(runs, arm) for arm in ARMS}
    print("Frontier, seed 0\n")
    print(
        "| recipe | learning rate | learning | forgetting | KL(base‖tuned) |\n|---|---|---|---|---|"
    )
    for arm in ARMS:
        for rate, learning, forgetting, kl in points[arm]:
            print(f"| {arm} | {rate:g} | {learning:.1f} | {forgetting:.1f} | {kl:.3f} |")
    print("\nBest rate on validation; every seed\n")
    print("| recipe | rate | learning | mean | forgetting | mean | KL | seconds | peak GiB |")
    print("|---|---|---|---|---|---|---|---|---|")
    for arm in ARMS:
        best = best_exponent(arm, runs)
        found = [runs[Job(*arm, best, s)] for s in SEEDS if Job(*arm, best, s) in runs]  # type: ignore[arg-type]
        if best is None or not found:
            continue
        cells = [str(arm), f"{GRID[best]:g}"]
        for what in ("learning", "forgetting"):
            values = [value(run, what) for run in found]
            cells += [" ".join(f"{v:.1f}" for v in values), f"{statistics.fmean(values):.1f}"]
        cells.append(f"{statistics.fmean(run['drift']['kl_base_tuned'] for run in found):.3f}")
        cells.append(f"{statistics.fmean(run['training']['seconds'] for run in found):.0f}")
        peak = max(run["training"]["peak_memory_bytes"] or 0 for run in found)
        cells.append(f"{peak / 2**30:.2f}")
        print("| " + " | ".join(cells) + " |")
    reference = max((p[1] for p in points[ARMS[0]]), default=0.0)
    print(f"\nForgetting at shares of language_model's best learning ({reference:.1f} points)\n")
    print("| recipe | " + " | ".join(f"{share:.0%}" for share in SHARES) + " |")
    print("|---" * (len(SHARES) + 1) + "|")
    for arm in ARMS:
        row = [forgetting_at(points[arm], share * reference) for share in SHARES]
        shown = ["not reached" if x is None else f"{x:.1f}" for x in row]
        print(f"| {arm} | " + " | ".join(shown) + " |")
    missing = next_jobs(runs)
    print(f"\n{len(runs)} runs; the protocol asks for {len(missing)} more at least.")
    print(json.dumps([list(job) for job in missing]))
