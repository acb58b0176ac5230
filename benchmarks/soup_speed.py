"""Training speed beside soup-cli, which needs another TRL than ours and so its own environment.

    python -m venv ENV && ENV/bin/pip install "soup-cli[train]"
    python benchmarks/soup_speed.py --python ENV/bin/python

SmolLM2-135M in fp32 (soup-cli is given an fp32 copy, since it computes in the checkpoint's bf16
otherwise, which is slower here), the rows of training_speed.py, 16 to an optimiser step in one
pass. soup-cli trains LoRA of rank 16 on every linear layer, everything, and attention alone (its
`unfrozen_parameters`). Every arm trains a few steps in a process of its own, the first of which is
not counted (soup_clock.py). narrowtune's `sa_proj` is measured beside it in every round, and the
arms turn from round to round.

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

import torch
import yaml
from alone import run_alone
from rich.console import Console
from rich.table import Table
from training.rows import KINDS, make_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from narrowtune.core import provenance

RESULTS = Path(__file__).parent / "results" / "soup_speed.json"
OURS = "narrowtune sa_proj"
SAMPLES = 16  # of an optimiser step
NUM_STEPS = 5
NUM_ROUNDS = 3

_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ARMS: dict[str, dict[str, Any]] = {
    "soup-cli LoRA 16, all linear": {"lora": {"r": 16, "dropout": 0, "target_modules": _LINEAR}},
    "soup-cli, everything": {"lora": {"r": 0}},
    "soup-cli, attention": {"unfrozen_parameters": [r"self_attn\.[qkvo]_proj"]},
}


def train(python: Path, model: Path, kind: str, settings: dict[str, Any]) -> list[float]:
    """Return the seconds of soup-cli's steps."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = make_rows(kind, NUM_STEPS * SAMPLES)
        lines = "".join(json.dumps({"messages": row}) + "\n" for row in rows)
        (folder / "rows.jsonl").write_text(lines, encoding="utf-8")
        config = {
            "base": str(model),
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
        clock = Path(__file__).parent / "training" / "soup_clock.py"
        asked = ["seconds.json", "train", "--config", "soup.yaml", "--yes"]
        done = subprocess.run(
            [python.absolute(), clock.absolute(), *asked],
            cwd=folder,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HOME": name},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"{config}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        seconds = json.loads((folder / "seconds.json").read_text("utf-8"))
        assert len(seconds) == NUM_STEPS - 1, seconds
        return seconds


def measure(python: Path, arm: str, kind: str, copied: Path, chosen: dict[str, Any]) -> list[float]:
    """Return the seconds of an arm's steps."""
    if arm == OURS:
        script = Path(__file__).with_name("training_speed.py")
        values = {"arm": arm, "rows": kind, "setting": "best", "steps": NUM_STEPS}
        found: list[float] = run_alone(script, task="measure", **values, **chosen)["seconds"]
        return found
    return train(python, copied, kind, ARMS[arm])


def copy_in_fp32(source: Path, target: Path) -> Path:
    """Write a model's folder anew with its weights in fp32."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(source).save_pretrained(target)
    return target


def show(rounds: list[dict[str, dict[str, list[float]]]]) -> Table:
    """Return what was measured."""
    table = Table(title="SmolLM2-135M")
    for name in ("arm", "rows", "samples/s", "narrowtune sa_proj is × as fast"):
        table.add_column(name, justify="left" if name in ("arm", "rows") else "right")
    for kind in KINDS:
        for arm in (OURS, *ARMS):
            seconds = [statistics.median(done[kind][arm]) for done in rounds]
            ours = [statistics.median(done[kind][OURS]) for done in rounds]
            ratios = [one / base for one, base in zip(seconds, ours, strict=True)]
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
            table.add_row(arm, kind, f"{SAMPLES / statistics.median(seconds):.2f}", spread)
    return table


def main() -> None:
    """Measure round after round, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", type=Path, required=True, help="of soup-cli's environment")
    parser.add_argument("--rounds", type=int, default=NUM_ROUNDS)
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    version = subprocess.run(
        [given.python, "-c", "import importlib.metadata as m; print(m.version('soup-cli'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    chosen = run_alone(Path(__file__).with_name("training_speed.py"), task="prepare")
    values: dict[str, Any] = {
        "soup-cli": version.stdout.strip(),
        "versions": provenance.versions(),
        "hardware": provenance.hardware(),
        "git": provenance.git_state(Path(__file__).parent),
        "arithmetic": chosen["arithmetic"],
        "rounds": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        copied = copy_in_fp32(Path(chosen["model"]), Path(folder))
        for number in range(given.rounds):
            arms = [OURS, *ARMS]
            turn = arms[number % len(arms) :] + arms[: number % len(arms)]
            done: dict[str, dict[str, list[float]]] = {}
            for kind in KINDS:
                done[kind] = {arm: measure(given.python, arm, kind, copied, chosen) for arm in turn}
                Console(stderr=True).print(f"{number + 1}: {kind} {done[kind]}")
            values["rounds"].append(done)
            given.output.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    Console(width=120).print(show(values["rounds"]))


if __name__ == "__main__":
    main()
