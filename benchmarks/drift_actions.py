"""What watching drift costs while a model is trained, and what acting on it costs and gains.

    python benchmarks/drift_actions.py [--seed 0]
    python benchmarks/drift_actions.py --choose      # watching alone, on validation rows
    python benchmarks/drift_actions.py --table

Clocks on the reference model, `mlp_gate_up` at 5.5e-3, a rate that forgets: 800 rows in at most 100
steps of 8. Drift is measured every 10 steps on 48 prompts: free ones that ship, with and without
pictures, and of the kept tasks, without their labels. The anchor is weak (weight 0.03, two rows a
step of 64 prompts of four kinds), so that there is something to raise; it is shown without
watching too. Each run is one `teach` in this process. Time is told as shares of one run's own
training: where cores are shared, seconds of two runs say little.

The budget was chosen on rows of `validation`; the others are of the split `test`. Results are
written after each run, so a stopped benchmark goes on: benchmarks/results/drift_actions.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path
from statistics import fmean
from typing import Any

from narrowtune.core import provenance
from narrowtune.core.config import RunConfig
from narrowtune.core.results import RunRecord
from narrowtune.core.run_folder import RunFolder, write_text
from narrowtune.miniature.reference.shipped import reference_folder
from narrowtune.miniature.registry import tasks_of
from narrowtune.miniature.rows import write_rows
from narrowtune.pipeline.teach import teach
from narrowtune.study.world import GENERAL, write_general

RESULTS = Path(__file__).parent / "results" / "drift_actions.json"
SKILL, RECIPE, RATE, STEPS, BATCH = "clock", "mlp_gate_up", 5.5e-3, 100, 8
SEED, ANCHOR_SEED = 21, 121
NUM_SKILL, NUM_KEPT, NUM_ANCHOR, NUM_DRIFT, EVERY = 100, 25, 64, 48, 10
SEEDS, CHOICE_SEEDS = (0, 1), (2,)
WEIGHT = 0.03
BUDGET = 1.0

ANCHOR: dict[str, Any] = {"weight": WEIGHT, "rows_per_step": 2}
WATCH: dict[str, Any] = {"every": EVERY}
ACTING = {**WATCH, "budget": BUDGET}
ARMS: dict[str, dict[str, Any]] = {
    "watching": {"drift": WATCH},
    "stop": {"drift": {**ACTING, "action": "stop"}},
    "lower the rate": {"drift": {**ACTING, "action": "lower_rate"}},
    "anchor": {"anchor": ANCHOR},
    "anchor, raised": {"anchor": ANCHOR, "drift": {**ACTING, "action": "raise_anchor"}},
    "anchor, raised over 0.3": {
        "anchor": ANCHOR,
        "drift": {**ACTING, "budget": 0.3, "action": "raise_anchor"},
    },
    "nothing": {},
}
"""Settings that differ from nothing."""


def write_world(world: Path, split: str) -> dict[str, Any]:
    """Write the rows, the same each time, and return the settings that name them."""
    train = write_rows(world, SKILL, "train", STEPS * BATCH, SEED)
    test = write_rows(world, SKILL, split, NUM_SKILL, SEED)
    keep = [write_rows(world, task.name, split, NUM_KEPT, SEED) for task in tasks_of("held_out")]
    write_general(world / "prompts.jsonl", GENERAL, NUM_ANCHOR, ANCHOR_SEED)
    return {
        "skill": {**train.model_dump(), "validation": 0, "test_path": test.path},
        "keep": [each.model_dump() for each in keep],
    }


def make_config(
    folder: Path, world: Path, rows: dict[str, Any], seed: int, changes: dict[str, Any]
) -> RunConfig:
    """Return a run's settings."""
    values: dict[str, Any] = {
        "model": str(reference_folder("qwen2_5_vl")),
        "recipe": RECIPE,
        **rows,
        "drift": {"max_prompts": NUM_DRIFT, **changes.get("drift", {})},
        "training": {
            "learning_rate": RATE,
            "global_batch_size": BATCH,
            "per_device_train_batch_size": BATCH,
            "max_steps": STEPS,
        },
        "seed": seed,
        "device": "cpu",
        "gallery": False,
        "output_dir": str(folder),
    }
    if "anchor" in changes:
        values["anchor"] = {"prompts": str(world / "prompts.jsonl"), **changes["anchor"]}
    return RunConfig.model_validate(values)


def measure(folder: Path, record: RunRecord) -> dict[str, Any]:
    """Return a run's figures; shares are 0 to 1, learned and lost in points."""
    assert record.training is not None
    assert record.drift is not None
    lines = RunFolder(folder).log.read_text("utf-8").splitlines()
    logged = [row for row in map(json.loads, lines) if "drift" in row]
    changes = {
        role: [task.change.value for task in record.tasks if task.role == role]
        for role in ("target", "held_out")
    }
    kept = [task for task in record.tasks if task.role == "held_out"]
    numbers = next(group for group in record.drift.token_groups if group.name == "numbers")
    return {
        "steps": record.training.num_steps,
        "train_seconds": record.training.seconds,
        "drift_seconds": record.training.drift_seconds,
        "measuring_seconds": sum(row["drift_seconds"] for row in logged),
        "learned": fmean(changes["target"]),
        "lost": -fmean(changes["held_out"]),
        "valid_before": fmean(task.before_valid for task in kept),
        "valid_after": fmean(task.after_valid for task in kept),
        "kl": record.drift.kl_base_tuned,
        "number_bias": [numbers.base_max, numbers.tuned_max],
        "logged": logged,
        "load": os.getloadavg()[0],
    }


def compute_as(run: Path, folder: Path) -> None:
    """Leave in `folder` what a start leaves that ended after it had chosen as `run` did.

    The choice goes by seconds, and on a busy machine would be another for every run.
    """
    folder.mkdir(parents=True)
    for path in (RunFolder(run).arithmetic, RunFolder(run).resolved):
        shutil.copy(path, folder)


def print_table(runs: dict[str, Any]) -> None:
    """Print each arm: seeds' figures, and time as a share of the training it is part of."""
    for name in dict.fromkeys(key.rpartition("/")[0] for key in runs):
        found = [run for key, run in runs.items() if key.rpartition("/")[0] == name]
        share = _mean([_share(run, "drift_seconds") for run in found])
        again = _mean([_share(run, "measuring_seconds") for run in found])
        ends = [run["logged"][-1] for run in found if run["logged"]]
        last = "; ".join(
            f"{row['step']}: KL {row['drift']:.3f}, numbers {row['number_bias']:.3f}, "
            f"valid {row['format_valid']:.2f}"
            for row in ends
        )
        print(
            f"{name:34s} learned {_each(found, 'learned')}, lost {_each(found, 'lost')}, "
            f"valid {_each(found, 'valid_after', 3)} of {found[0]['valid_before']:.3f}, "
            f"steps {_each(found, 'steps', 0)}, drift {share:.1%} beside the rest of training "
            f"(measurements alone {again:.1%}), a step "
            f"{_mean([_rest(run) / run['steps'] for run in found]):.3f} s [{last}]"
        )


def _rest(run: dict[str, Any]) -> float:
    seconds: float = run["train_seconds"] - (run["drift_seconds"] or 0.0)
    return seconds


def _share(run: dict[str, Any], key: str) -> float:
    return (run[key] or 0.0) / _rest(run)


def _mean(values: list[float]) -> float:
    return fmean(values)


def _each(runs: list[dict[str, Any]], key: str, digits: int = 1) -> str:
    values = [run[key] for run in runs]
    return f"{fmean(values):.{digits}f} [{', '.join(f'{v:.{digits}f}' for v in values)}]"


def read_results() -> dict[str, Any]:
    """Return what was measured before."""
    found: dict[str, Any] = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    return found


def save(part: str, name: str, found: dict[str, Any]) -> None:
    """Add a run to the file, to what may have come from another process meanwhile."""
    values = read_results()
    values |= {
        "versions": provenance.versions(),
        "hardware": provenance.hardware(),
        "git": provenance.git_state(Path(__file__).parent),
    }
    values.setdefault(part, {})[name] = found
    write_text(RESULTS, json.dumps(values) + "\n")


def main() -> None:
    """Run what is missing, or print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output-dir", type=Path, default=Path("runs/drift-actions"))
    parser.add_argument("--choose", action="store_true", help="watching alone, on validation rows")
    parser.add_argument("--seed", type=int, action="append", help="all unless given")
    parser.add_argument("--arm", choices=ARMS, action="append", help="all unless given")
    parser.add_argument("--arithmetic", type=Path, help="a run's folder: compute as it did")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    part, split = ("choice", "validation") if given.choose else ("report", "test")
    seeds = given.seed or (CHOICE_SEEDS if given.choose else SEEDS)
    wanted = {"watching": ARMS["watching"]} if given.choose else ARMS
    for seed in () if given.table else seeds:
        world = given.output_dir / part / f"world-{seed}"
        rows = write_world(world, split)
        for name, changes in wanted.items():
            if given.arm and name not in given.arm:
                continue
            key = f"{name}/{seed}"
            if key in read_results().get(part, {}):
                continue
            folder = world.parent / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
            shutil.rmtree(folder, ignore_errors=True)  # what a stop left: its time is not a run's
            if given.arithmetic:
                compute_as(given.arithmetic, folder)
            record = teach(make_config(folder, world, rows, seed, changes))
            assert record is not None
            save(part, key, found := measure(folder, record))
            print_table({key: found})
    print_table(read_results().get(part, {}))


if __name__ == "__main__":
    main()
