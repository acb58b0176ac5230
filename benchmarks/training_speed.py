"""Training speed and peak memory beside TRL, peft and the plain Trainer, in one run.

    python benchmarks/training_speed.py   # two hours on two cores with nothing else running

SmolLM2-135M, 16 rows per optimiser step, the same tokens and labels for all. Rounds are
interleaved: in each, every arm trains a few steps in a process of its own, the first of which is
not counted, and the order turns from round to round. Beside each round stand the load and the rate
of one matrix product (a calibration), since the machine may be shared. Every arm trains on each row
once. Printed are means over its counted steps, since peers at their best take rows of like length
together, so that their steps differ; and the ratio to `narrowtune sa_proj` per round as median
(least to greatest). With few rows there are few of like length: with 4 steps, peers are up to a
third slower than with 20.

Settings: `best` is in the arithmetic that is fastest for narrowtune, `fp32` is a peer's best with
fp32 products in its place, `default` a peer's defaults, and `compiled` some arms' best with
torch.compile: some of its first steps compile.

Peak memory is that of the process above what it holds with all libraries imported, the most of all
rounds. glibc's limits are set for narrowtune as its command line does; peers run with its own.

Results: benchmarks/results/training_speed.json, written after every round; a run that is started
again with `--resume` adds the rounds that are missing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from alone import run_alone
from rich.console import Console
from rich.table import Table
from training.rows import KINDS, make_rows

from narrowtune.core import provenance

RESULTS = Path(__file__).parent / "results" / "training_speed.json"
NUM_STEPS = 20
NUM_ROUNDS = 2
OURS = "narrowtune sa_proj"
SETTINGS = ("best", "fp32", "default", "compiled")


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Train one arm for some steps, in this process."""
    import torch
    from peft import LoraConfig
    from training.arms import ARMS, PEERS, SAMPLES
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from narrowtune.data.chat import ChatEncoder
    from narrowtune.data.examples import Example, Message, Text
    from narrowtune.engine.arithmetic import Arithmetic
    from narrowtune.engine.heap import keep_freed_blocks
    from narrowtune.engine.peak import PeakMemory
    from narrowtune.train.fit import fit

    tokenizer = AutoTokenizer.from_pretrained(given.model)
    encoder = ChatEncoder(tokenizer)
    rows = []
    for number, row in enumerate(make_rows(given.rows, given.steps * SAMPLES)):
        turns = tuple(Message(turn["role"], (Text(turn["content"]),)) for turn in row)
        encoded = encoder.encode(Example(str(number), turns, (row[-1]["content"],)))
        rows.append({"input_ids": encoded.input_ids, "labels": encoded.labels})
    if given.arm not in PEERS:
        keep_freed_blocks()
    arithmetic = Arithmetic.from_json(given.arithmetic)
    torch.manual_seed(0)
    # Whoever runs: all of these are in what the process held before.
    assert all((LoraConfig, AutoModelForCausalLM, SFTConfig, SFTTrainer, fit))
    before = _resident()
    with PeakMemory(torch.device("cpu")) as peak, tempfile.TemporaryDirectory() as folder:
        found = ARMS[given.arm](
            rows, given.model, arithmetic, given.steps, folder, setting=given.setting
        )
    assert peak.bytes is not None
    labels = sum(label != -100 for row in rows for label in row["labels"])
    counts = {"samples": SAMPLES, "labels": labels, "tokens": sum(len(r["labels"]) for r in rows)}
    return {**found, **counts, "peak_bytes": peak.bytes - before}


def _resident() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def calibrate(given: argparse.Namespace) -> dict[str, Any]:
    """Return GFLOP/s of one product of SmolLM2's size, by arithmetic, with all threads."""
    import torch

    x, weight = torch.randn(1024, 576), torch.randn(1536, 576)
    found = {}
    for dtype, precision in (
        ("float32", "highest"),
        ("float32", "medium"),
        ("bfloat16", "highest"),
    ):
        torch.set_float32_matmul_precision(precision)
        left, right = x.to(getattr(torch, dtype)), weight.to(getattr(torch, dtype))
        seconds = []
        for _ in range(30):
            started = time.perf_counter()
            torch.nn.functional.linear(left, right)
            seconds.append(time.perf_counter() - started)
        found[f"{dtype} {precision}"] = 2 * 1024 * 576 * 1536 / statistics.median(seconds) / 1e9
    return found


def prepare(given: argparse.Namespace) -> dict[str, Any]:
    """Return the model's folder, and the arithmetic that is fastest here."""
    from narrowtune.demo.weights import smollm2_folder
    from narrowtune.engine.arithmetic import measure_arithmetic
    from narrowtune.models.load import load_model

    folder = str(smollm2_folder())
    arithmetic = measure_arithmetic(load_model(folder).model, num_tokens=512)
    return {"model": folder, "arithmetic": arithmetic.to_json()}


TASKS = {"measure": measure, "calibrate": calibrate, "prepare": prepare}


def run(task: str, **values: Any) -> dict[str, Any]:
    """Run one task in a process of its own."""
    return run_alone(__file__, task=task, **values)


def cases(kinds: list[str], settings: list[str]) -> list[tuple[str, str, str]]:
    """Return every arm, with its rows and its settings; narrowtune's default is its best."""
    from training.arms import COMPILED
    from training.arms import OURS as ours
    from training.arms import PEERS as peers

    arms = {
        "best": (*ours, *peers),
        "fp32": tuple(peers),
        "default": tuple(arm for arm in peers if "padding-free" not in arm),
        "compiled": COMPILED,
    }
    return [(arm, rows, setting) for setting in settings for rows in kinds for arm in arms[setting]]


def show(values: dict[str, Any]) -> list[Table]:
    """Return a table per kind of rows."""
    tables = []
    rounds = values["rounds"]
    for kind in values["kinds"]:
        table = Table(title=f"SmolLM2-135M, rows {kind}")
        for name in ("arm", "setting", "samples/s", "narrowtune sa_proj is × as fast", "peak GB"):
            table.add_column(name, justify="left" if name in ("arm", "setting") else "right")
        for arm, rows, setting in cases(values["kinds"], values["settings"]):
            if rows != kind:
                continue
            key = f"{arm}|{rows}|{setting}"
            # A round may be of before an arm was added.
            both = [
                done["arms"] for done in rounds if {key, f"{OURS}|{rows}|best"} <= {*done["arms"]}
            ]
            if not both:
                continue
            mine = [done[key] for done in both]
            ours = [done[f"{OURS}|{rows}|best"] for done in both]
            pooled = [second for one in mine for second in one["seconds"]]
            ratios = [
                statistics.fmean(one["seconds"]) / statistics.fmean(base["seconds"])
                for one, base in zip(mine, ours, strict=True)
            ]
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
            peak = max(one["peak_bytes"] for one in mine) / 1e9
            rate = mine[0]["samples"] / statistics.fmean(pooled)
            table.add_row(arm, setting, f"{rate:.2f}", spread, f"{peak:.2f}")
        tables.append(table)
    return tables


def main() -> None:
    """Measure round after round, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=NUM_ROUNDS)
    parser.add_argument("--steps", type=int, default=NUM_STEPS)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS[:3]), choices=SETTINGS)
    parser.add_argument("--arms", nargs="+", help="these alone, beside narrowtune's sa_proj")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--table", action="store_true", help="print what was measured")
    parser.add_argument("--output", type=Path, default=RESULTS)
    for hidden in ("task", "arm", "rows", "setting", "model", "arithmetic"):
        parser.add_argument(f"--{hidden}", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.task:
        print(json.dumps(TASKS[given.task](given)))
        return
    if given.table or (given.resume and given.output.exists()):
        values = json.loads(given.output.read_text("utf-8"))
    else:
        values = {
            "versions": provenance.versions(),
            "hardware": provenance.hardware(),
            "git": provenance.git_state(Path(__file__).parent),
            "kinds": given.kinds,
            "settings": given.settings,
            "arithmetic": "",
            "rounds": [],
        }
    console = Console(stderr=True)
    chosen = {} if given.table else run("prepare")
    # What earlier rounds computed in goes on; folders may have moved.
    values["arithmetic"] = values["arithmetic"] or chosen["arithmetic"]
    chosen["arithmetic"] = values["arithmetic"]
    while not given.table and len(values["rounds"]) < given.rounds:
        number = len(values["rounds"])
        turn = cases(values["kinds"], values["settings"])
        turn = [case for case in turn if not given.arms or case[0] in (OURS, *given.arms)]
        turn = turn[number % len(turn) :] + turn[: number % len(turn)]
        done: dict[str, Any] = {"calibration": run("calibrate"), "arms": {}, "load": []}
        done["git"] = provenance.git_state(Path(__file__).parent)
        for arm, rows, setting in turn if number % 2 == 0 else turn[::-1]:
            found = run("measure", arm=arm, rows=rows, setting=setting, steps=given.steps, **chosen)
            done["arms"][f"{arm}|{rows}|{setting}"] = found
            done["load"].append(os.getloadavg()[0])
            mean = statistics.fmean(found["seconds"])
            console.print(f"{number + 1}: {arm}, {rows}, {setting}: {mean:.2f} s per step")
        values["rounds"].append(done)
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    for table in show(values):
        Console(width=120).print(table)


if __name__ == "__main__":
    main()
