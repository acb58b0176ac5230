"""How long narrowtune takes until it trains, and where the time goes.

    python benchmarks/cold_start.py   # five minutes on two cores with nothing else running

Each round, every command in a process of its own: `--help`; the libraries alone; `demo --quick`
with an empty cache and again with what the first left there; `teach` of that demo's first run, from
its run.yaml, in a new folder, with an empty cache and again. Of a run, its record says what each
stage took; what no stage has is the interpreter, imports and pages. Printed are medians over rounds
(least to greatest).

Results: benchmarks/results/cold_start.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from written import write_results

RESULTS = Path(__file__).parent / "results" / "cold_start.json"
NUM_ROUNDS = 3
NARROWTUNE = [sys.executable, "-m", "narrowtune"]
LIBRARIES = "import torch, transformers, datasets, accelerate"


def seconds_of(command: Sequence[str], cache: Path) -> float:
    """Run a command with this cache; return its seconds on the clock.

    Raises:
        SystemExit: it failed; the end of what it printed.
    """
    environment = os.environ | {"NARROWTUNE_CACHE": str(cache)}
    started = time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - started
    # A verdict other than "ship" ends a run with a code of its own.
    if done.returncode not in (0, 3, 4):
        raise SystemExit(f"{' '.join(command)}: {done.stdout[-1500:]}{done.stderr[-1500:]}")
    return seconds


def stages_of(folders: Sequence[Path]) -> dict[str, float]:
    """Return the seconds of each stage, of all runs together."""
    found: dict[str, float] = defaultdict(float)
    for folder in folders:
        record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
        for stage, seconds in record["seconds"].items():
            found[stage] += seconds
    return dict(found)


def measure_round(folder: Path) -> dict[str, dict[str, float]]:
    """Return command → its seconds, as a whole and by stage."""
    found = {
        "narrowtune --help": {"all": seconds_of([*NARROWTUNE, "--help"], folder)},
        "torch, transformers, datasets": {
            "all": seconds_of([sys.executable, "-c", LIBRARIES], folder)
        },
    }
    for cache in ("empty", "warm"):
        demo = folder / f"demo-{cache}"
        command = [*NARROWTUNE, "demo", "--quick", "--output-dir", str(demo)]
        seconds = seconds_of(command, folder / "demo-cache")
        runs = [path.parent for path in sorted(demo.glob("*/record.json"))]
        found[f"demo --quick, {cache} cache"] = {"all": seconds, **stages_of(runs)}
    settings = folder / "demo-empty" / "sa_proj" / "run.yaml"
    for cache in ("empty", "warm"):
        run = folder / f"teach-{cache}"
        command = [*NARROWTUNE, "teach", str(settings), "--output-dir", str(run)]
        seconds = seconds_of(command, folder / "teach-cache")
        found[f"teach, {cache} cache"] = {"all": seconds, **stages_of([run])}
    return found


def print_table(rounds: Sequence[Mapping[str, Mapping[str, float]]]) -> None:
    """Print a line per command, and one per stage of it."""
    table = Table(title="Cold start, seconds")
    for name in ("command", "stage", "median (least to greatest)"):
        table.add_column(name)
    for command in rounds[0]:
        whole = [found[command]["all"] for found in rounds]
        table.add_row(command, "", spread(whole))
        named = [stage for stage in rounds[0][command] if stage != "all"]
        for stage in named:
            table.add_row("", stage, spread([found[command].get(stage, 0.0) for found in rounds]))
        if named:
            rest = [2 * found[command]["all"] - sum(found[command].values()) for found in rounds]
            table.add_row("", "interpreter, imports, pages", spread(rest))
    Console(width=100).print(table)


def spread(values: Sequence[float]) -> str:
    """Return the median with its extremes."""
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def main() -> None:
    """Measure, write the results after each round, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=NUM_ROUNDS)
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    rounds = []
    for _ in range(given.rounds):
        folder = Path(tempfile.mkdtemp())
        try:
            rounds.append(measure_round(folder))
        finally:
            shutil.rmtree(folder)
        write_results(given.output, rounds=rounds)
    print_table(rounds)


if __name__ == "__main__":
    main()
