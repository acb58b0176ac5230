"""What the demo's base model can do before it is taught anything: the table in docs/demo.md.

    python benchmarks/pilot_base.py [--items 0] [--kinds capitals opposites] [--out table.json]

Per kind: items, entities, strict and lenient score with standard error, share of valid answers,
the score of the best answer that never changes, and items per second.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from narrowtune.data.chat import ChatEncoder
from narrowtune.data.rows import read_rows
from narrowtune.demo.files import SKILLS, write_demo_data
from narrowtune.demo.keep import KINDS
from narrowtune.demo.weights import smollm2_folder
from narrowtune.evaluate.evaluate import evaluate
from narrowtune.evaluate.tasks import make_task
from narrowtune.models.load import load_model


def constant_score(examples) -> float:
    """Score of the answer, or of the place among two options, that is right most often."""
    if examples[0].options:
        first = sum(example.options[0] in example.answers for example in examples) / len(examples)
        return max(first, 1 - first)
    accepted = Counter(answer for example in examples for answer in set(example.answers))
    return accepted.most_common(1)[0][1] / len(examples)


def main() -> None:
    """Evaluate and print the table; with --out also write every item's answer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=0, help="items per kind; 0 takes all")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS))
    parser.add_argument("--skills", nargs="*", default=list(SKILLS))
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_float32_matmul_precision("medium")
    loaded = load_model(str(smollm2_folder()), dtype="float32")
    encoder = ChatEncoder(loaded.tokenizer)
    results = []
    print("| kind | items | entities | strict | lenient | constant | items/s |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        tasks = []
        for number, skill in enumerate(asked.skills):
            data = write_demo_data(
                Path(folder) / skill,
                skill=skill,
                kinds=() if number else asked.kinds,
                keep_items=asked.items or None,
                seed=asked.seed,
            )
            tested = data.skill.model_copy(update={"path": data.skill.test_path})
            tasks += [(settings, "held_out") for settings in data.keep] + [(tested, "target")]
        for settings, role in tasks:
            task = make_task(settings, read_rows(settings).examples, role)
            started = time.perf_counter()
            found = evaluate(loaded, task, encoder, batch_size=asked.batch_size)
            rate = found.num_items / (time.perf_counter() - started)
            results.append(found.model_dump())
            scores = " | ".join(
                f"{100 * score.mean:.1f} ± {100 * score.stderr:.1f}"
                for score in (found.strict, found.lenient)
            )
            constant = f"{100 * constant_score(task.examples):.0f}"
            print(
                f"| {found.name} | {found.num_items} | {found.num_groups} | {scores} "
                f"| {constant} | {rate:.1f} |",
                flush=True,
            )
    if asked.out is not None:
        asked.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
