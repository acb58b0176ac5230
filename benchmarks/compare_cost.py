"""What `narrowtune compare` costs beside the trainings that it compares.

    python benchmarks/compare_cost.py   # 25 minutes on two cores with nothing else running

Clocks on the reference model in six ways at 1e-3, eight rows a step, 60 items of each of eight kept
tasks and 100 of the skill, once for each number of rows to learn from, each with an empty cache.
The ratio is that of the whole command on the clock to the seconds of its trainings; stages are
those of the runs' records, all runs together. What no stage has is imports and pages.

Results: benchmarks/results/compare_cost.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table
from written import write_results

from narrowtune.miniature.reference.shipped import reference_folder
from narrowtune.miniature.registry import tasks_of
from narrowtune.miniature.rows import write_rows
from narrowtune.study.world import GENERAL, write_general

RESULTS = Path(__file__).parent / "results" / "compare_cost.json"
WAYS = ("sa_proj", "mlp_gate_up", "mlp", "language_model", "sa_proj+anchor", "mlp_gate_up+anchor")
NUM_ROWS = (1500, 6000)
NUM_SKILL, NUM_KEPT, NUM_PROMPTS, SEED = 100, 60, 128, 11


def write_settings(folder: Path, num_rows: int) -> Path:
    """Write the rows, and a run's settings; return the latter's file."""
    train = write_rows(folder, "clock", "train", num_rows, SEED)
    test = write_rows(folder, "clock", "validation", NUM_SKILL, SEED)
    kept = [write_rows(folder, t.name, "validation", NUM_KEPT, SEED) for t in tasks_of("held_out")]
    general = folder / "general.jsonl"
    write_general(general, GENERAL, NUM_PROMPTS, SEED)
    free = folder / "free.jsonl"
    write_general(free, GENERAL[:1], 64, SEED + 1)
    settings: dict[str, Any] = {
        "model": str(reference_folder("qwen2_5_vl")),
        "skill": {**train.model_dump(), "validation": 0, "test_path": test.path},
        "keep": [task.model_dump() for task in kept],
        "anchor": {"prompts": str(general), "rows_per_step": 2},
        "drift": {"prompts": str(free), "max_prompts": 64},
        "training": {
            "learning_rate": 1e-3,
            "global_batch_size": 8,
            "per_device_train_batch_size": 8,
        },
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def measure(num_rows: int) -> dict[str, Any]:
    """Run one comparison; return the seconds of the command, its trainings and its stages."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = write_settings(folder, num_rows)
        output = folder / "runs"
        command = [sys.executable, "-m", "narrowtune", "compare", str(settings)]
        command += ["--recipes", ",".join(WAYS), "--output-dir", str(output)]
        environment = os.environ | {"NARROWTUNE_CACHE": str(folder / "cache")}
        started = time.monotonic()
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - started
        stages: dict[str, float] = defaultdict(float)
        trained = {}
        for path in sorted(output.glob("*/record.json")):
            record = json.loads(path.read_text(encoding="utf-8"))
            trained[path.parent.name] = record["training"]["seconds"]
            for stage, spent in record["seconds"].items():
                stages[stage] += spent
    if len(trained) != len(WAYS):
        raise SystemExit(f"{len(trained)} of {len(WAYS)} runs have a record")
    return {"rows": num_rows, "seconds": seconds, "trained": trained, "stages": dict(stages)}


def print_table(found: list[Mapping[str, Any]]) -> None:
    """Print a column per number of rows."""
    table = Table(title="compare, six ways, seconds")
    table.add_column("")
    for each in found:
        table.add_column(f"{each['rows']:,} rows", justify="right")
    lines: dict[str, list[float]] = {"the command": [each["seconds"] for each in found]}
    lines["trainings alone"] = [sum(each["trained"].values()) for each in found]
    for stage in found[0]["stages"]:
        lines[f"stage: {stage}"] = [each["stages"].get(stage, 0.0) for each in found]
    lines["no stage"] = [each["seconds"] - sum(each["stages"].values()) for each in found]
    for name, values in lines.items():
        table.add_row(name, *(f"{value:.1f}" for value in values))
    ratios = [each["seconds"] / sum(each["trained"].values()) for each in found]
    table.add_row("the command / trainings", *(f"{ratio:.2f}" for ratio in ratios))
    Console(width=100).print(table)


def main() -> None:
    """Measure, write the results after each size, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=list(NUM_ROWS))
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    found = []
    for num_rows in given.rows:
        found.append(measure(num_rows))
        write_results(given.output, found=found)
    print_table(found)


if __name__ == "__main__":
    main()
