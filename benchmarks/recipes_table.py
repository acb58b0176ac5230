"""Tables from runs.jsonl of recipes.py: the frontier, the best rate, matched learning."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from recipes_protocol import (
    ARMS,
    DECIDING,
    GRID,
    KEPT,
    PULLED,
    PULLED_AT,
    SEEDS,
    WHOLE,
    Arm,
    Job,
    best_exponent,
    holding_exponent,
    job_of,
    next_jobs,
    read_runs,
)

from narrowtune.evaluate.statistics import PairedTask, mean_loss
from narrowtune.study.effects import Effect, Interval, Items, over_seeds
from narrowtune.study.formulas import rank_correlation

SHARES = (0.5, 0.75, 0.9)


class Point(NamedTuple):
    """A run of the grid."""

    rate: float
    learning: float
    forgetting: float


def value(run: dict[str, Any], what: str) -> float:
    """Return a run's learning or forgetting, points."""
    return float(run["verdict"][what]["value"])


def interval(run: dict[str, Any], what: str) -> str:
    """Return a run's learning or forgetting with its 95 % interval."""
    estimate = run["verdict"][what]
    return f"{estimate['value']:.1f} ({estimate['low']:.1f} to {estimate['high']:.1f})"


def frontier(runs: dict[Job, dict[str, Any]], arm: Arm) -> list[Point]:
    """Return an arm's runs of the grid by rate."""
    chosen = sorted((j, run) for j, run in runs.items() if j.arm == arm and j.stage == "grid")
    return [
        Point(GRID[job.exponent], value(run, "learning"), value(run, "forgetting"))
        for job, run in chosen
    ]


def forgetting_at(points: list[Point], wanted: float) -> float | None:
    """Return the forgetting at a learning of `wanted`, linear between neighbouring rates.

    The first crossing as the rate grows; None if no rate reaches it.
    """
    before = (0.0, 0.0)
    for _, learning, forgetting in points:
        if learning >= wanted:
            span = learning - before[0]
            part = (wanted - before[0]) / span if span > 0 else 1.0
            return before[1] + part * (forgetting - before[1])
        before = (learning, forgetting)
    return None


def print_frontiers(points: dict[Arm, list[Point]]) -> None:
    """Print the grid, and forgetting at matched learning."""
    print("Grid, seed 0: learning on validation questions, forgetting on some held-out items\n")
    print("| recipe | learning rate | learning | forgetting |\n|---|---|---|---|")
    for arm in ARMS:
        for rate, learning, forgetting in points[arm]:
            print(f"| {arm} | {rate:g} | {learning:.1f} | {forgetting:.1f} |")
    reference = max((p.learning for p in points[ARMS[0]]), default=0.0)
    print(f"\nForgetting at shares of language_model's best learning ({reference:.1f} points)\n")
    print("| recipe | " + " | ".join(f"{share:.0%}" for share in SHARES) + " |")
    print("|---" * (len(SHARES) + 1) + "|")
    for arm in ARMS:
        row = [forgetting_at(points[arm], share * reference) for share in SHARES]
        shown = ["not reached" if x is None else f"{x:.1f}" for x in row]
        print(f"| {arm} | " + " | ".join(shown) + " |")


def print_results(runs: dict[Job, dict[str, Any]]) -> None:
    """Print the runs at each arm's best rate."""
    print("\nAt each recipe's best rate on validation; test questions, 95 % intervals\n")
    print(
        "| recipe | rate | seed | items | learning | forgetting | KL(base‖tuned) "
        "| number-token bias |\n|---|---|---|---|---|---|---|---|"
    )
    for arm in (*ARMS, *PULLED):
        best = PULLED_AT if arm in PULLED else best_exponent(arm, runs)
        found = [job for job in runs if job.arm == arm and job.stage == "result"]
        on_all = [job for job in runs if job.arm == arm and job.stage == "whole"]
        # The same training, asked more.
        found = [job for job in found if job.seed not in {each.seed for each in on_all}] + on_all
        for job in sorted(job for job in found if job.exponent == best):
            run = runs[job]
            groups = {group["name"]: group for group in run["drift"]["token_groups"]}
            cells = [
                str(arm),
                f"{run['learning_rate']:g}",
                str(job.seed),
                str(run["num_held_out"]),
                interval(run, "learning"),
                interval(run, "forgetting"),
                f"{run['drift']['kl_base_tuned']:.3f}",
                f"{groups['numbers']['base_max']:.3f} → {groups['numbers']['tuned_max']:.3f}",
            ]
            print("| " + " | ".join(cells) + " |")
        if len(found) == len(SEEDS):
            means = [
                statistics.fmean(value(runs[job], what) for job in found)
                for what in ("learning", "forgetting")
            ]
            print(f"| {arm} | | mean | | {means[0]:.1f} | {means[1]:.1f} | | |")


def print_kept(runs: dict[Job, dict[str, Any]]) -> None:
    """Print the runs at the rate that keeps the deciding kinds, on kinds that decided nothing."""
    reference = {
        job.seed: run
        for job, run in runs.items()
        if job == job_of(ARMS[0], best_exponent(ARMS[0], runs) or 0, job.seed, "result")
    }
    print(f"\nAt a rate that keeps {', '.join(DECIDING)}; each seed's own\n")
    print(
        "| recipe | rate | seed | learning | behind language_model at its best | lost on others "
        "| items |\n|---|---|---|---|---|---|---|"
    )
    for arm in KEPT:
        exponent = holding_exponent(arm, runs)
        for seed in SEEDS:
            run = runs.get(job_of(arm, exponent or 0, seed, "kept"))
            if run is None or seed not in reference:
                continue
            others = [name for name in list(run["items"])[1:] if name not in DECIDING]
            pairs = [paired(kind, run["items"][kind]) for kind in others]
            loss = mean_loss(pairs)
            cells = [
                str(arm),
                f"{run['learning_rate']:g}",
                str(seed),
                interval(run, "learning"),
                behind(reference[seed], run),
                f"{loss.value:.1f} (at most {loss.upper_bound:.1f})",
                str(sum(len(pair.before) for pair in pairs)),
            ]
            print("| " + " | ".join(cells) + " |")


def print_over_seeds(runs: dict[Job, dict[str, Any]]) -> None:
    """Print what arms that every seed of is scored on all items learned and lost, seeds a level.

    Learned against language_model at its best rate, on the same test questions by seed.
    """
    base = by_seed(runs, ARMS[0])
    print("\nOver all seeds, all held-out items; 95 % intervals of seeds and groups of items\n")
    print("| recipe | learned | against language_model at its best | lost |\n|---|---|---|---|")
    for arm in (*WHOLE, *PULLED):
        # A further seed of which language_model is still to be trained has to wait.
        found = {seed: run for seed, run in by_seed(runs, arm).items() if seed in base}
        if not set(SEEDS) <= set(found):
            continue
        gains = Effect({seed: _terms(run, lost=False) for seed, run in found.items()})
        behind_it = [value(found[s], "learning") - value(base[s], "learning") for s in found]
        losses = Effect({seed: _terms(run, lost=True) for seed, run in found.items()})
        cells = [shown(gains.interval()), shown(over_seeds(behind_it)), shown(losses.interval())]
        print(f"| {arm} | " + " | ".join(cells) + " |")


def by_seed(runs: dict[Job, dict[str, Any]], arm: Arm) -> dict[int, dict[str, Any]]:
    """Return an arm's runs on test questions at its best rate, or the one that it was given."""
    exponent = PULLED_AT if arm in PULLED else best_exponent(arm, runs)
    return {
        job.seed: run
        for stage in ("result", "whole", "further")  # the second are on more items
        for job, run in runs.items()
        if (job.arm, job.stage, job.exponent) == (arm, stage, exponent)
    }


def shown(found: Interval | None) -> str:
    """Return a mean, its interval and every seed."""
    assert found is not None
    seeds = ", ".join(f"{value:.1f}" for value in found.seeds)
    return f"{found.mean:.1f} ({found.low:.1f} to {found.high:.1f}) [{seeds}]"


def _terms(run: dict[str, Any], *, lost: bool) -> dict[str, Items]:
    """Return what a run gained of the skill, or lost of what is kept, points, by groups of items.

    A group is one value, weighed by its items: those about one entity are right together.
    """
    kinds = list(run["items"])[1:] if lost else list(run["items"])[:1]
    share = (-100 if lost else 100) / len(kinds)
    terms = {}
    for kind in kinds:
        items = run["items"][kind]
        change = np.array(items["after"], dtype=float) - np.array(items["before"], dtype=float)
        names = [str(group or place) for place, group in enumerate(items["group"])]
        groups = list(dict.fromkeys(names))
        place = {name: number for number, name in enumerate(groups)}
        sums = np.zeros(len(groups))
        np.add.at(sums, [place[name] for name in names], change)
        weighed = share * sums * len(groups) / len(change)
        terms[kind] = Items(weighed, abs(share) * len(groups) / len(change))
    return terms


def behind(reference: dict[str, Any], run: dict[str, Any]) -> str:
    """Return how much less a run learned, with its one-sided 95 % bound.

    As if the two runs had been asked different questions: older lines keep no items to pair.
    """
    less = value(reference, "learning") - value(run, "learning")
    above = reference["verdict"]["learning"]["upper_bound"] - value(reference, "learning")
    below = value(run, "learning") - run["verdict"]["learning"]["lower_bound"]
    return f"{less:.1f} (at most {less + math.hypot(above, below):.1f})"


def paired(kind: str, items: dict[str, Any]) -> PairedTask:
    """Return a kind's scores before and after."""
    before, after = np.array(items["before"]), np.array(items["after"])
    return PairedTask(kind, "held_out", before, after, tuple(items["group"]))


def print_tasks(runs: dict[Job, dict[str, Any]]) -> None:
    """Print the change of every task of the runs on all held-out items."""
    chosen = {
        job.arm: run for job, run in sorted(runs.items()) if (job.seed, job.stage) == (0, "result")
    }
    if not chosen:
        return
    names = [task["name"] for task in next(iter(chosen.values()))["tasks"]]
    print("\nEvery task before → after, %, seed 0\n")
    print("| recipe | " + " | ".join(names) + " |" + "\n|---" + "|---" * len(names) + "|")
    for arm in ARMS:
        if arm in chosen:
            tasks = chosen[arm]["tasks"]
            cells = [
                f"{100 * t['before']['mean']:.0f} → {100 * t['after']['mean']:.0f}" for t in tasks
            ]
            print(f"| {arm} | " + " | ".join(cells) + " |")


def print_drift(runs: dict[Job, dict[str, Any]]) -> None:
    """Print how well KL(base‖tuned) orders runs by what they lost: Spearman's ρ.

    Every training once, by its larger test. Held-out kinds' own prompts are among all prompts.
    """
    trained = {job._replace(stage=""): run for job, run in sorted(runs.items()) if run["drift"]}
    print("\nRank correlation of KL with the held-out loss\n")
    print("| runs | number | KL on all prompts | KL on free prompts |\n|---|---|---|---|")
    parts = {
        "all": list(trained.values()),
        "without an anchor": [run for job, run in trained.items() if not job.weight],
        "with an anchor": [run for job, run in trained.items() if job.weight],
    }
    for name, part in parts.items():
        lost = [value(run, "forgetting") for run in part]
        free = [
            next(t["kl_base_tuned"] for t in run["drift"]["tasks"] if t["name"] == "free prompts")
            for run in part
        ]
        ranked = [rank_correlation([r["drift"]["kl_base_tuned"] for r in part], lost)]
        ranked.append(rank_correlation(free, lost))
        shown = " | ".join("–" if rho is None else f"{rho:.2f}" for rho in ranked)
        print(f"| {name} | {len(part)} | {shown} |")


def print_cost(path: Path) -> None:
    """Print seconds and peak memory of training, each recipe alone on the machine."""
    if not path.exists():
        return
    print("\nTraining alone on the machine\n")
    print("| recipe | seconds per step | peak memory, GiB |\n|---|---|---|")
    for row in json.loads(path.read_text(encoding="utf-8")):
        peak = (row["peak_memory_bytes"] or 0) / 2**30
        print(f"| {row['arm']} | {row['seconds_per_step']:.2f} | {peak:.2f} |")


def print_tables(results: Path) -> None:
    """Print Markdown tables of what is there, and what is still missing."""
    runs = read_runs(results / "runs.jsonl")
    print_frontiers({arm: frontier(runs, arm) for arm in ARMS})
    print_results(runs)
    print_over_seeds(runs)
    print_kept(runs)
    print_tasks(runs)
    print_drift(runs)
    print_cost(results / "cost_cpu.json")
    missing = ", ".join(
        f"{job.arm} {GRID[job.exponent]:g} seed {job.seed} {job.stage}" for job in next_jobs(runs)
    )
    print(f"\n{len(runs)} runs; the protocol asks next for {missing or 'nothing'}.")
