"""How much of this machine's matrix products does training use, and what takes the rest?

    python benchmarks/roofline.py      # three minutes on two cores with nothing else running

SmolLM2-135M, 16 rows with nothing in common, `sa_proj` and `mlp_gate_up` on the path that is
fastest here. The roofline is the best rate of matrix products of the model's own shapes, forward
and both backward products, in bf16 and in fp32, at 1,024 tokens. FLOPs are those that the trained
set needs at least: no padding, the head at labelled positions, no product for a frozen matrix's own
gradient, nothing below the first trained one, attention over half of each row's own square
(`engine.cost`). Steps and products are timed in turn. The profile is of one more step: seconds
inside operations, without what they call.

Results: benchmarks/results/roofline.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from alone import run_alone
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.profiler import ProfilerActivity, profile
from training.arms import SAMPLES
from training.rows import make_rows
from transformers import TrainerCallback
from written import write_results

from narrowtune.core.config import RunConfig, parse_config
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.collate import Encoded, collate, padding_id
from narrowtune.data.examples import Example, Message, Text
from narrowtune.demo.weights import smollm2_folder
from narrowtune.engine.arithmetic import apply_arithmetic, measure_arithmetic
from narrowtune.engine.heap import keep_freed_blocks
from narrowtune.models.load import LoadedModel, load_model
from narrowtune.models.select import resolve
from narrowtune.train.fit import fit
from narrowtune.train.masters import computing_in
from narrowtune.train.trial import count_flops

RESULTS = Path(__file__).parent / "results" / "roofline.json"
RECIPES = ("sa_proj", "mlp_gate_up")
STEPS, TOKENS, REPEATS = 6, 1024, 20

GROUPS = {
    "products of matrices": ("mm", "addmm", "linear", "bmm", "matmul", "mkldnn_linear"),
    "attention": ("scaled_dot_product", "flash", "attention"),
    "optimiser and clipping": ("adam", "foreach", "clip"),
    "loss and softmax over the vocabulary": ("log_softmax", "nll_loss", "cross_entropy"),
}
"""Groups of operations by parts of their names; the first that fits."""


def rates(loaded: LoadedModel) -> dict[str, float]:
    """Return GFLOP/s of products of the model's shapes, best of some, by dtype."""
    head = loaded.model.get_output_embeddings()
    shapes = {
        (module.out_features, module.in_features)
        for module in loaded.model.modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    found: dict[str, float] = {}
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        best = 0.0
        for num_out, num_in in shapes:
            x = torch.randn(TOKENS, num_in, dtype=dtype)
            weight = torch.randn(num_out, num_in, dtype=dtype)
            y = torch.randn(TOKENS, num_out, dtype=dtype)
            for left, right in ((x, weight.T), (y, weight), (y.T, x)):
                left @ right
                seconds = []
                for _ in range(REPEATS):
                    started = time.perf_counter()
                    left @ right
                    seconds.append(time.perf_counter() - started)
                best = max(best, 2 * TOKENS * num_in * num_out / statistics.median(seconds) / 1e9)
        found[name] = best
    return found


class Clock(TrainerCallback):
    """Times steps, and profiles the last one."""

    def __init__(self) -> None:
        self.marks: list[float] = []
        self.profiler: profile | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Profile the last step."""
        if state.global_step == STEPS - 1:
            self.profiler = profile(activities=[ProfilerActivity.CPU])
            self.profiler.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Mark the time."""
        self.marks.append(time.perf_counter())
        if self.profiler is not None:
            self.profiler.__exit__(None, None, None)

    @property
    def seconds(self) -> list[float]:
        """Of the steps between the first and the profiled one."""
        return [b - a for a, b in zip(self.marks[:-2], self.marks[1:-1], strict=True)]

    def shares(self) -> dict[str, float]:
        """Return the share of the profiled step's time in each group of operations."""
        assert self.profiler is not None
        totals: dict[str, float] = defaultdict(float)
        for event in self.profiler.key_averages():
            name = event.key.removeprefix("aten::").lower()
            group = next(
                (g for g, parts in GROUPS.items() if any(part in name for part in parts)),
                "everything else",
            )
            totals[group] += event.self_cpu_time_total
        whole = sum(totals.values())
        return {group: seconds / whole for group, seconds in totals.items()}


def least_flops(loaded: LoadedModel, names: tuple[str, ...], rows: list[Encoded]) -> int:
    """Return what training `names` on `rows` takes at least: each row by itself, unpadded."""
    pad = padding_id(loaded.tokenizer)
    return sum(count_flops(loaded.model, names, collate([row], pad)) for row in rows)


def measure(recipe: str) -> dict[str, Any]:
    """Train a few steps, and count, in this process."""
    keep_freed_blocks()
    loaded = load_model(str(smollm2_folder()))
    arithmetic = measure_arithmetic(loaded.model, num_tokens=512)
    encoder = ChatEncoder(loaded.tokenizer)
    rows = []
    for number, row in enumerate(make_rows("distinct", STEPS * SAMPLES)):
        turns = tuple(Message(turn["role"], (Text(turn["content"]),)) for turn in row)
        rows.append(encoder.encode(Example(str(number), turns, (row[-1]["content"],))))
    selection = resolve(loaded.model, recipe)
    flops = least_flops(loaded, selection.names, rows) / STEPS
    clock = Clock()
    dtype = arithmetic.torch_dtype if arithmetic.compute_dtype == "float32" else loaded.dtype
    with tempfile.TemporaryDirectory() as folder:
        with apply_arithmetic(arithmetic), computing_in(loaded.model, dtype):
            fit(
                loaded,
                selection,
                rows,
                _config(recipe, folder),
                arithmetic=arithmetic,
                callbacks=[clock],
            )
        with apply_arithmetic(arithmetic):
            roof = rates(loaded)
    return {
        "recipe": recipe,
        "arithmetic": arithmetic.note,
        "gflop_per_step": flops / 1e9,
        "seconds": clock.seconds,
        "gflops_of_products": roof,
        "shares": clock.shares(),
    }


def _config(recipe: str, folder: str) -> RunConfig:
    training = {
        "global_batch_size": SAMPLES,
        "per_device_train_batch_size": SAMPLES,
        "max_steps": STEPS,
    }
    values = {"model": "smollm2", "recipe": recipe, "skill": "rows.jsonl", "output_dir": folder}
    return parse_config({**values, "training": training}, "this benchmark")


def main() -> None:
    """Measure every recipe in a process of its own, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", choices=RECIPES, help="measure this one, in this process")
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    if given.recipe:
        print(json.dumps(measure(given.recipe)))
        return
    found = [run_alone(__file__, recipe=recipe) for recipe in RECIPES]
    write_results(given.output, recipes=found)
    table = Table(title="Share of the machine's matrix products")
    for name in (
        "recipe",
        "s a step",
        "GFLOP/s",
        "of bf16 products",
        "of fp32 products",
        "time in",
    ):
        table.add_column(name)
    for one in found:
        seconds = statistics.median(one["seconds"])
        rate = one["gflop_per_step"] / seconds
        roof = one["gflops_of_products"]
        shares = sorted(one["shares"].items(), key=lambda pair: -pair[1])
        table.add_row(
            one["recipe"],
            f"{seconds:.2f} ({min(one['seconds']):.2f}–{max(one['seconds']):.2f})",
            f"{rate:.0f}",
            f"{rate / roof['bfloat16']:.0%} of {roof['bfloat16']:.0f}",
            f"{rate / roof['float32']:.0%} of {roof['float32']:.0f}",
            "; ".join(f"{group} {share:.0%}" for group, share in shares),
        )
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
