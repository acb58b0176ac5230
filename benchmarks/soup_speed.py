"""Training speed beside soup-cli, which needs another TRL than ours and so its own environment.

    python -m venv ENV && ENV/bin/pip install "soup-cli[train]"
    python benchmarks/soup_speed.py --soup ENV/bin/soup

SmolLM2-135M in fp32, the rows of training_speed.py, 16 to an optimiser step in one pass. soup-cli
trains LoRA of rank 16 on every linear layer, everything, and attention alone (its
`unfrozen_parameters`). It writes no seconds of a step, so each arm runs twice, a few steps and
some more, and the difference of what transformers' Trainer calls `train_runtime` is divided by
the difference in steps: neither start nor first step counts. narrowtune's `sa_proj` is measured
beside it in every round, and the arms turn from round to round.

Results: benchmarks/results/soup_speed.json, written after every round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import yaml
from alone import run_alone
from rich.console import Console
from rich.table import Table
from training.rows import KINDS, make_rows

from narrowtune.core import provenance

RESULTS = Path(__file__).parent / "results" / "soup_speed.json"
OURS = "narrowtune sa_proj"
SAMPLES = 16  # of an optimiser step
FEW, MORE = 3, 9  # steps of the two runs
NUM_ROUNDS = 3

_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ARMS: dict[str, dict[str, Any]] = {
    "soup-cli LoRA 16, all linear": {"lora": {"r": 16, "dropout": 0, "target_modules": _LINEAR}},
    "soup-cli, everything": {"lora": {"r": 0}},
    "soup-cli, attention": {"lora": {"r": 0}, "unfrozen_parameters": [r"self_attn\.[qkvo]_proj"]},
}


def train(soup: Path, model: str, kind: str, steps: int, settings: dict[str, Any]) -> float:
    """Return the seconds that soup-cli's trainer takes for so many steps."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = make_rows(kind, steps * SAMPLES)
        lines = "".join(json.dumps({"messages": row}) + "\n" for row in rows)
        (folder / "rows.jsonl").write_text(lines, encoding="utf-8")
        config = {
            "base": model,
            "task": "sft",
            "data": {"train": str(folder / "rows.jsonl"), "format": "chatml", "val_split": 0},
            "training": {
                "epochs": 1,
                "lr": 1e-4,
                "batch_size": SAMPLES,
                "gradient_accumulation_steps": 1,
                "quantization": "none",
                **settings,
            },
            "output": str(folder / "out"),
        }
        (folder / "soup.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        command = [str(soup.absolute()), "train", "--config", "soup.yaml", "--yes"]
        quiet = {**os.environ, "HF_HUB_OFFLINE": "1", "HOME": name}
        done = subprocess.run(
            command, cwd=folder, env=quiet, capture_output=True, text=True, check=False
        )
        states = sorted((folder / "out").rglob("trainer_state.json"))
        if done.returncode or not states:
            raise SystemExit(f"{config}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        log = json.loads(states[-1].read_text("utf-8"))
        assert log["global_step"] == steps, log["global_step"]
        (seconds,) = (entry["train_runtime"] for entry in log["log_history"][-1:])
        return float(seconds)


def measure(soup: Path, arm: str, kind: str, chosen: dict[str, Any]) -> float:
    """Return an arm's seconds per step."""
    if arm == OURS:
        script = Path(__file__).with_name("training_speed.py")
        values = {"arm": arm, "rows": kind, "setting": "best", "steps": MORE - FEW}
        found = run_alone(script, task="measure", **values, **chosen)
        return statistics.median(found["seconds"])
    few, more = (train(soup, chosen["model"], kind, n, ARMS[arm]) for n in (FEW, MORE))
    return (more - few) / (MORE - FEW)


def show(rounds: list[dict[str, dict[str, float]]]) -> Table:
    """Return what was measured."""
    table = Table(title="SmolLM2-135M")
    for name in ("arm", "rows", "samples/s", "narrowtune sa_proj is × as fast"):
        table.add_column(name, justify="left" if name in ("arm", "rows") else "right")
    for kind in KINDS:
        for arm in (OURS, *ARMS):
            seconds = [done[kind][arm] for done in rounds]
            ratios = [done[kind][arm] / done[kind][OURS] for done in rounds]
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
            table.add_row(arm, kind, f"{SAMPLES / statistics.median(seconds):.2f}", spread)
    return table


def main() -> None:
    """Measure round after round, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--soup", type=Path, required=True, help="the command of its environment")
    parser.add_argument("--rounds", type=int, default=NUM_ROUNDS)
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    chosen = run_alone(Path(__file__).with_name("training_speed.py"), task="prepare")
    version = subprocess.run([given.soup, "version"], capture_output=True, text=True, check=False)
    values: dict[str, Any] = {
        "soup": version.stdout.strip(),
        "versions": provenance.versions(),
        "hardware": provenance.hardware(),
        "git": provenance.git_state(Path(__file__).parent),
        **chosen,
        "rounds": [],
    }
    for number in range(given.rounds):
        arms = [OURS, *ARMS]
        turn = arms[number % len(arms) :] + arms[: number % len(arms)]
        done: dict[str, dict[str, float]] = {}
        for kind in KINDS:
            done[kind] = {arm: measure(given.soup, arm, kind, chosen) for arm in turn}
            Console(stderr=True).print(f"{number + 1}: {kind} {done[kind]}")
        values["rounds"].append(done)
        given.output.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    Console(width=120).print(show(values["rounds"]))


if __name__ == "__main__":
    main()
