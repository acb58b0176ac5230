"""Pre-train a reference model from nothing, or go on where it was stopped.

    python scripts/pretrain_reference.py llava_onevision runs/reference/llava_onevision

Writes log.jsonl (loss and accuracy as they come) and model/, the finished folder in bf16.
"""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

import torch

from narrowtune.engine.arithmetic import Arithmetic, measure_arithmetic
from narrowtune.miniature.reference.architectures import BLUEPRINTS, Blueprint, get_blueprint
from narrowtune.miniature.reference.pretrain import Pretraining, Progress, Schedule


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=BLUEPRINTS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seen-in", type=Path, help="folder whose first stage is taken over")
    parser.add_argument("--log-every", type=int, default=100, help="steps")
    for field in fields(Schedule):
        if field.name != "level_starts":
            kind = type(field.default)
            parser.add_argument(
                f"--{field.name.replace('_', '-')}", type=kind, default=field.default
            )
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    blueprint = get_blueprint(given.name)
    values = {f.name: getattr(given, f.name) for f in fields(Schedule) if hasattr(given, f.name)}
    pretraining = Pretraining(
        blueprint,
        given.folder,
        Schedule(**values),
        compiled=not given.eager,
        compute_dtype=arithmetic(blueprint, given.folder).torch_dtype,
        seen_in=given.seen_in,
    )
    pretraining.run(say, log_every=given.log_every)
    pretraining.save()


def arithmetic(blueprint: Blueprint, folder: Path) -> Arithmetic:
    """Return what products are computed in: what was the fastest when the training began."""
    path = folder / "arithmetic.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        model = blueprint.build(blueprint.tokenizer(), seed=0)
        measured = measure_arithmetic(model, num_tokens=512)
        path.write_text(measured.to_json() + "\n", encoding="utf-8")
        print(measured.note, flush=True)
    return Arithmetic.from_json(path.read_text(encoding="utf-8"))


def say(progress: Progress) -> None:
    """Print one line of the log."""
    scores = " ".join(f"{name} {share:.0%}" for name, share in progress.accuracy.items())
    done = f"{progress.stage} {progress.step} {progress.seconds:.0f} s"
    print(f"{done} loss {progress.loss:.3f} {scores}", flush=True)


if __name__ == "__main__":
    main()
