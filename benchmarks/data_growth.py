"""What more rows cost: memory and time of reading, and the peak of training, as a run does them.

    python benchmarks/data_growth.py

SmolLM2-135M and 1,000, 10,000 and 100,000 rows of text; the reference model `qwen2_5_vl` and 500,
2,000 and 8,000 rows with a picture each. Every size runs in a process of its own: rows are read,
checked and encoded as `narrowtune teach` does, then three steps of 16 are trained. Memory is the
process's own above what it holds with the model loaded.

Results: benchmarks/results/data_growth.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from alone import run_alone
from rich.console import Console
from rich.table import Table
from written import write_results

RESULTS = Path(__file__).parent / "results" / "data_growth.json"
SIZES = {"text": (1_000, 10_000, 100_000), "pictures": (500, 2_000, 8_000)}
_WORDS = ("red", "boat", "seven", "under", "the", "old", "house", "far", "green", "and", "little")


def write_text_rows(folder: Path, num: int) -> dict[str, Any]:
    """Write rows of some 60 tokens, no two the same."""
    path = folder / "rows.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in range(num):
            words = [_WORDS[(number * 7 + place * number) % len(_WORDS)] for place in range(24)]
            row = {"question": f"{number}: {' '.join(words)}?", "answer": words[number % 24]}
            file.write(json.dumps(row) + "\n")
    return {"path": str(path), "name": "rows"}


def measure(kind: str, num: int) -> dict[str, Any]:
    """Read `num` rows and train three steps, in this process."""
    import psutil
    import torch

    from narrowtune.core.config import parse_config
    from narrowtune.engine.arithmetic import apply_arithmetic, measure_arithmetic
    from narrowtune.engine.heap import keep_freed_blocks, return_freed_pages
    from narrowtune.engine.peak import PeakMemory
    from narrowtune.miniature.reference.shipped import reference_folder
    from narrowtune.miniature.rows import write_rows
    from narrowtune.models.select import resolve
    from narrowtune.pipeline.inputs import load, make_encoder, read_inputs
    from narrowtune.train.fit import fit

    keep_freed_blocks()
    held = psutil.Process().memory_info
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        if kind == "text":
            from narrowtune.demo.weights import smollm2_folder

            model, skill = smollm2_folder(), write_text_rows(folder, num)
        else:
            model = reference_folder("qwen2_5_vl")
            skill = write_rows(folder, "clock", "train", num).model_dump()
        values = {
            "model": str(model),
            "dtype": "float32",
            "recipe": "sa_proj",
            "skill": {**skill, "validation": 0.0, "test": 0.01},
            "training": {"max_steps": 3, "compute_dtype": "float32"},
            "allow_overlap": True,
            "output_dir": str(folder / "run"),
        }
        config = parse_config(values, "this benchmark")
        loaded = load(config)
        arithmetic = measure_arithmetic(loaded.model, requested="float32")
        return_freed_pages()  # what loading has left
        before = held().rss
        started = time.perf_counter()
        with PeakMemory(torch.device("cpu")) as reading:
            inputs = read_inputs(config, make_encoder(loaded, config))
        return_freed_pages()  # as after every stage of a run
        seconds, after = time.perf_counter() - started, held().rss
        with PeakMemory(torch.device("cpu")) as training, apply_arithmetic(arithmetic):
            selection = resolve(loaded.model, "sa_proj")
            fit(loaded, selection, inputs.rows, config, arithmetic=arithmetic)
        assert reading.bytes is not None
        assert training.bytes is not None
        return {
            "rows": len(inputs.rows),
            "seconds": seconds,
            "held_bytes": after - before,
            "reading_peak_bytes": reading.bytes - before,
            "training_peak_bytes": training.bytes - before,
        }


def main() -> None:
    """Measure every size, print the table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--kind", choices=SIZES, help=argparse.SUPPRESS)
    parser.add_argument("--num", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.kind:
        print(json.dumps(measure(given.kind, given.num)))
        return
    found: dict[str, list[dict[str, Any]]] = {}
    for kind, sizes in SIZES.items():
        for num in sizes:
            found.setdefault(kind, []).append(run_alone(__file__, kind=kind, num=num))
            Console(stderr=True).print(kind, found[kind][-1])
    table = Table(title="What more rows cost")
    for name in ("rows", "number", "read, ms per row", "held", "peak reading", "peak training"):
        table.add_column(name, justify="left" if name == "rows" else "right")
    for kind, rows in found.items():
        for row in rows:
            sizes = [row[key] / 1e9 for key in ("held_bytes", "reading_peak_bytes")]
            table.add_row(
                kind,
                f"{row['rows']:,}",
                f"{1000 * row['seconds'] / row['rows']:.2f}",
                *(f"{size:.2f} GB" for size in (*sizes, row["training_peak_bytes"] / 1e9)),
            )
    Console(width=100).print(table)
    write_results(given.output, found=found)


if __name__ == "__main__":
    main()
