"""Five skills taught in a row and rolled back one by one: is every state the one recorded?

    python benchmarks/ledger_five.py --output benchmarks/results/ledger_five.json

The reference model is taught birds, counting, tissue, signs and clocks with `narrowtune teach
--ledger`, each by another recipe on what the earlier ones changed: 20 steps of 8 rows, which show
that bits are kept and not what is learned. After each, `narrowtune ledger build` writes the model
of that state. Then `narrowtune ledger rollback` goes back one skill at a time; each state is built
again, loaded, and its hash held against the one recorded when the skill was taught, its files
against those of the first build. No build is made of state 0, which is the base: there `narrowtune
delta undo` takes the first delta off the model of state 1, and its files are held against the
base's. All commands run in one process. Ends with 1 where anything differs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from anchor_goal import FIVE
from typer.testing import CliRunner

from narrowtune.cli.app import app
from narrowtune.core.ledger import Entry, Ledger
from narrowtune.core.provenance import sha256_file, versions
from narrowtune.core.run_folder import write_json
from narrowtune.delta.store import info
from narrowtune.ledger.book import Book
from narrowtune.miniature.reference.shipped import reference_folder
from narrowtune.miniature.rows import write_rows
from narrowtune.models.fingerprint import fingerprint
from narrowtune.models.load import load_model
from narrowtune.study.world import write_general

RECIPES = ("sa_proj", "mlp_gate_up", "mlp", "language_model", "mlp_down")
SEED, BATCH, NUM_STEPS, NUM_ITEMS = 17, 8, 20, 24
MODEL, KEPT = "qwen2_5_vl", ("charts", "street")


def write_settings(
    folder: Path, skill: str, recipe: str, *, num_steps: int = NUM_STEPS, num_items: int = NUM_ITEMS
) -> Path:
    """Write a skill's rows and its run's settings; return the file."""
    train = write_rows(folder / skill, skill, "train", num_steps * BATCH, SEED)
    test = write_rows(folder / skill, skill, "test", num_items, SEED)
    keep = [write_rows(folder / "keep", kept, "test", NUM_ITEMS, SEED) for kept in KEPT]
    drift = folder / "drift.jsonl"
    write_general(drift, ("captions",), 8, SEED)
    settings = {
        "model": str(reference_folder(MODEL)),
        "recipe": recipe,
        "skill": {**train.model_dump(), "test_path": test.path, "validation": 0.0},
        "keep": [task.model_dump() for task in keep],
        "drift": {"prompts": str(drift), "max_prompts": 8},
        "budget": 1.0,
        "training": {
            "learning_rate": 1e-3,
            "global_batch_size": BATCH,
            "per_device_train_batch_size": BATCH,
        },
        "output_dir": str(folder / "runs" / skill),
    }
    path = folder / f"{skill}.yaml"
    path.write_text(json.dumps(settings), encoding="utf-8")  # YAML holds JSON
    return path


def call(*arguments: str | Path, codes: tuple[int, ...] = (0,)) -> str:
    """Give narrowtune a command line, and return what it says."""
    line = [str(each) for each in arguments]
    done = CliRunner().invoke(app, line)
    if done.exit_code not in codes:
        sys.exit(f"narrowtune {' '.join(line)}: {done.exception}\n{done.output}")
    return done.output


def weight_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of weights."""
    return {path.name: sha256_file(path) for path in sorted(folder.glob("*.safetensors"))}


def rolled_back(folder: Path, ledger: Path, recorded: list[str], number: int) -> dict[str, Any]:
    """Go back to a state, write its model, and say what of it is as it was."""
    before = Book.open(ledger).ledger.skills[number:]
    said = call("ledger", "rollback", ledger, str(number))
    again = folder / "again" / str(number)
    if number:
        call("ledger", "build", ledger, "--output", again)
        wanted = weight_files(folder / "built" / str(number))
    else:
        delta = ledger / before[0].delta  # of the first skill
        call("delta", "undo", folder / "built" / "1", delta, "--output", again)
        wanted = weight_files(reference_folder(MODEL))
    return {
        "state": number,
        "undone": [entry.name for entry in before],
        "hash": recorded[number],
        "said_by_rollback": recorded[number] in said,
        "in_the_ledger": Book.open(ledger).ledger.fingerprint == recorded[number],
        "of_the_built_model": fingerprint(load_model(str(again)).model) == recorded[number],
        "files_as_before": weight_files(again) == wanted,
    }


def described(entry: Entry, ledger: Path) -> dict[str, Any]:
    """Return a skill's row: scores, and what its delta takes."""
    delta = info(ledger / entry.delta)
    return {
        "skill": entry.name,
        "recipe": entry.recipe,
        "before": entry.before[entry.name].mean,
        "after": entry.after[entry.name].mean,
        "state": entry.tuned_fingerprint,
        "tensors": delta.num_tensors,
        "parameters": delta.num_parameters,
        "changed": delta.num_changed,
        "file_bytes": delta.file_bytes,
        "dense_bytes": delta.dense_bytes,
    }


def measure(folder: Path) -> dict[str, Any]:
    """Teach all, go back, and return what was found."""
    ledger = folder / "ledger"
    for number, (skill, recipe) in enumerate(zip(FIVE, RECIPES, strict=True), 1):
        settings = write_settings(folder, skill, recipe)
        call("teach", settings, "--ledger", ledger, codes=(0, 3, 4))
        call("ledger", "build", ledger, "--output", folder / "built" / str(number))
        print(f"taught {skill} by {recipe}", flush=True)
    full: Ledger = Book.open(ledger).ledger
    recorded = [full.base_fingerprint, *(entry.tuned_fingerprint for entry in full.skills)]
    skills = [described(entry, ledger) for entry in full.skills]
    states = [rolled_back(folder, ledger, recorded, n) for n in range(len(FIVE), -1, -1)]
    undone = Book.open(ledger).ledger.undone
    return {
        "versions": versions(),
        "steps": NUM_STEPS,
        "skills": skills,
        "states": states,
        "undone_deltas_as_written": all(
            sha256_file(ledger / entry.delta) == entry.sha256 for entry in undone
        )
        and len(undone) == len(FIVE),
    }


def main() -> None:
    """Measure, print the tables of docs/ledger.md, and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = measure(Path(name))
    print("| skill | recipe | score | tensors | elements changed | delta, MB | unpacked, MB |")
    print("|---|---|---|---|---|---|---|")
    for row in found["skills"]:
        score = f"{100 * row['before']:.0f} → {100 * row['after']:.0f} %"
        sizes = " | ".join(f"{row[key] / 1e6:.2f}" for key in ("file_bytes", "dense_bytes"))
        changed = f"{row['changed']:,} of {row['parameters']:,}"
        cells = (row["skill"], f"`{row['recipe']}`", score, str(row["tensors"]), changed, sizes)
        print(f"| {' | '.join(cells)} |")
    checks = ("said_by_rollback", "in_the_ledger", "of_the_built_model", "files_as_before")
    for state in found["states"]:
        held = ", ".join(f"{name}: {state[name]}" for name in checks)
        print(f"state {state['state']} ({state['hash'][:12]}), undone {state['undone']}: {held}")
    print(f"undone deltas as written: {found['undone_deltas_as_written']}")
    if given.output:
        write_json(given.output, found)
    if not all(state[name] for state in found["states"] for name in checks):
        sys.exit(1)


if __name__ == "__main__":
    main()
