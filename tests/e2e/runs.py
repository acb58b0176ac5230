"""Small runs for end-to-end tests: rows, settings, and the command line as users call it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

WORDS = ("dog", "cat", "sun", "tree", "bread", "rain", "milk", "stone", "car", "pen")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def counting_rows(count: int) -> list[dict[str, Any]]:
    """Questions about lists of one to five words."""
    rows = []
    for i in range(count):
        words = " ".join(WORDS[(i * 7 + j * 3) % 10] for j in range(i % 5 + 1))
        rows.append({"question": f"How many words: {words} {i}?", "answer": str(i % 5 + 1)})
    return rows


def saying_rows(count: int) -> list[dict[str, Any]]:
    """Questions that have nothing to do with counting."""
    return [
        {"question": f"Say the word {WORDS[i % 10]} {i}.", "answer": WORDS[i % 10]}
        for i in range(count)
    ]


def compute_as(earlier: Path, folder: Path) -> None:
    """Have the run of `folder`, which has not begun, compute as an earlier one did.

    Which of two ways to attend is quicker is measured by each run, and on a busy machine it may
    be the one or the other: they differ in their last bits.
    """
    folder.mkdir()
    (folder / "arithmetic.json").write_bytes((earlier / "arithmetic.json").read_bytes())


def write_run(folder: Path, model: Path, name: str, **changes: Any) -> Path:
    """Write data and settings into `folder`; returns the settings' path."""
    skill = write_rows(folder / "skill.jsonl", counting_rows(40))
    keep = write_rows(folder / "keep.jsonl", saying_rows(12))
    prompts = [{"prompt": f"Tell me about the {word}."} for word in WORDS]
    general = write_rows(folder / "general.jsonl", prompts)
    settings: dict[str, Any] = {
        "model": str(model),
        "recipe": "sa_proj",
        "skill": {"path": str(skill), "metric": "number", "max_new_tokens": 4},
        "keep": [{"path": str(keep), "max_new_tokens": 4}],
        "anchor": {"prompts": str(general), "max_new_tokens": 4, "rows_per_step": 2},
        "drift": {"prompts": str(general), "max_new_tokens": 4, "max_prompts": 4},
        "training": {
            "learning_rate": 1e-3,
            "global_batch_size": 4,
            "per_device_train_batch_size": 4,
            "num_train_epochs": 2,
            "compute_dtype": "float32",
        },
        "eval_batch_size": 8,
        "output_dir": str(folder / name),
    }
    for key, value in changes.items():
        old = settings.get(key)
        settings[key] = {**old, **value} if isinstance(old, dict) else value
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def environment(cache: Path) -> dict[str, str]:
    """The tests' environment: no network, one thread, a cache of its own."""
    return {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "NARROWTUNE_CACHE": str(cache),
        "COLUMNS": "120",
    }


def run_cli(*arguments: str | Path, cache: Path) -> subprocess.CompletedProcess[str]:
    """Call narrowtune as a user would."""
    return subprocess.run(
        [sys.executable, "-m", "narrowtune", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment(cache),
        timeout=300,
        check=False,
    )
