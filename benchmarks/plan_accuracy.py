"""How right `narrowtune plan` is: peak memory and seconds per step, predicted and measured.

    python benchmarks/plan_accuracy.py

Every prediction and every measurement runs in a process of its own, one after the other within
the same minute. The measured step is the real one (`narrowtune.train.fit`) on SmolLM2 and the
counting questions. The memory model's one factor (`HEAP_LOSS`) was chosen with batches of 4 to 16
in view.

On a machine that other work shares, seconds say more about that work than about the plan:
`--clock cpu` takes the seconds that the process itself computed, in plan and measurement, with
one thread.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from narrowtune.core import provenance

RECIPES = ("sa_proj", "mlp_gate_up", "language_model")
RESULTS = Path(__file__).parent / "results" / "plan_accuracy.json"
NUM_STEPS = 6
NUM_ROWS = 400


def prepare(recipe: str, batch_size: int, folder: str) -> tuple[Any, Any, list[Any]]:
    """Return the model, a run's settings and its encoded rows."""
    from narrowtune.core.config import parse_config
    from narrowtune.data.chat import ChatEncoder
    from narrowtune.data.examples import Example, Message, Text
    from narrowtune.demo.counting import generate
    from narrowtune.demo.weights import smollm2_folder
    from narrowtune.models.load import load_model

    loaded = load_model(str(smollm2_folder()))
    values = {
        "model": loaded.source,
        "recipe": recipe,
        "skill": "counting.jsonl",
        "output_dir": folder,
        "training": {
            "global_batch_size": batch_size,
            "per_device_train_batch_size": batch_size,
            "max_steps": NUM_STEPS,
        },
    }
    encoder = ChatEncoder(loaded.tokenizer, loaded.processor)
    rows = []
    for number, row in enumerate(generate(NUM_ROWS, seed=1)):
        question, answer = row["question"], row["answer"]
        messages = (
            Message("user", (Text(question),)),
            Message("assistant", (Text(answer),)),
        )
        rows.append(encoder.encode(Example(id=str(number), messages=messages, answers=(answer,))))
    return loaded, parse_config(values, "this benchmark"), rows


def predict(recipe: str, batch_size: int, arithmetic: str, folder: str) -> dict[str, Any]:
    """Make a plan."""
    from narrowtune.engine.arithmetic import Arithmetic
    from narrowtune.train.plan import make_plan
    from narrowtune.train.workload import Workload

    loaded, config, rows = prepare(recipe, batch_size, folder)
    workload = Workload(rows=rows, num_samples=len(rows))
    plan = make_plan(loaded, config, workload, arithmetic=Arithmetic.from_json(arithmetic))
    assert plan.time is not None, plan.notes
    return {
        "peak_bytes": plan.memory.total,
        "step_seconds": plan.time.measured_step_seconds,
        "memory": plan.memory.model_dump(),
        "num_trainable": plan.num_trainable,
        "flops_per_token": plan.flops_per_token,
    }


def measure(recipe: str, batch_size: int, arithmetic: str, folder: str) -> dict[str, Any]:
    """Train some steps."""
    from narrowtune.engine.arithmetic import Arithmetic, apply_arithmetic
    from narrowtune.models.select import resolve
    from narrowtune.train.fit import fit
    from narrowtune.train.masters import computing_in

    loaded, config, rows = prepare(recipe, batch_size, folder)
    chosen = Arithmetic.from_json(arithmetic)
    widened = chosen.torch_dtype if chosen.compute_dtype == "float32" else loaded.dtype
    with apply_arithmetic(chosen), computing_in(loaded.model, widened):
        selection = resolve(loaded.model, recipe)
        summary = fit(loaded, selection, rows, config, arithmetic=chosen).summary
    log = (Path(folder) / "train.jsonl").read_text(encoding="utf-8").splitlines()
    clock = [json.loads(line)["seconds"] for line in log]
    steps = [after - before for before, after in itertools.pairwise(clock)]
    return {
        "peak_bytes": summary.peak_memory_bytes,
        "step_seconds": statistics.median(steps),
        "num_trainable": selection.num_parameters,
    }


def choose_arithmetic(*_: Any) -> dict[str, Any]:
    """Measure which arithmetic is fastest here."""
    from narrowtune.demo.weights import smollm2_folder
    from narrowtune.engine.arithmetic import measure_arithmetic
    from narrowtune.models.load import load_model

    return json.loads(measure_arithmetic(load_model(str(smollm2_folder())).model).to_json())


TASKS = {"predict": predict, "measure": measure, "arithmetic": choose_arithmetic}


def run(
    task: str, recipe: str, batch_size: int, arithmetic: str, clock: str = "wall"
) -> dict[str, Any]:
    """Run one task in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--task", task, "--recipes", recipe, "--clock", clock]
        command += ["--batch-sizes", str(batch_size), "--arithmetic", arithmetic]
        done = subprocess.run(
            [*command, "--folder", folder], stdout=subprocess.PIPE, text=True, check=True
        )
    return json.loads(done.stdout.splitlines()[-1])


def compare(
    recipes: list[str], batch_sizes: list[int], arithmetic: str, clock: str
) -> list[dict[str, Any]]:
    """Predict and measure every recipe at every batch size."""
    found = []
    for recipe in recipes:
        for batch_size in batch_sizes:
            predicted = run("predict", recipe, batch_size, arithmetic, clock)
            measured = run("measure", recipe, batch_size, arithmetic, clock)
            errors = {
                key: predicted[key] / measured[key] - 1 for key in ("peak_bytes", "step_seconds")
            }
            found.append(
                {
                    "recipe": recipe,
                    "batch_size": batch_size,
                    "predicted": predicted,
                    "measured": measured,
                    "relative_error": errors,
                    "load_average": provenance.hardware()["load_average"],
                }
            )
            Console(stderr=True).print(
                f"{recipe} {batch_size}: memory {errors['peak_bytes']:+.1%}, "
                f"time {errors['step_seconds']:+.1%}"
            )
    return found


def show(found: list[dict[str, Any]]) -> Table:
    """Return the comparison as a table."""
    table = Table(title="Plan and measurement, SmolLM2-135M")
    columns = ("recipe", "batch", "peak GB: plan", "measured", "error")
    for name in (*columns, "s/step: plan", "measured", "error", "load"):
        table.add_column(name, justify="left" if name == "recipe" else "right")
    for row in found:
        predicted, measured, error = row["predicted"], row["measured"], row["relative_error"]
        table.add_row(
            row["recipe"],
            str(row["batch_size"]),
            f"{predicted['peak_bytes'] / 1e9:.2f}",
            f"{measured['peak_bytes'] / 1e9:.2f}",
            f"{error['peak_bytes']:+.1%}",
            f"{predicted['step_seconds']:.2f}",
            f"{measured['step_seconds']:.2f}",
            f"{error['step_seconds']:+.1%}",
            f"{(row['load_average'] or [float('nan')])[0]:.1f}",
        )
    return table


def main() -> None:
    """Compare, print a table, write benchmarks/results/plan_accuracy.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[12, 16])
    parser.add_argument("--arithmetic", default="", help="JSON; measured first unless given")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.task:
        from narrowtune.engine.heap import keep_freed_blocks

        keep_freed_blocks()  # as the command line does
        if given.clock == "cpu":
            time.perf_counter = time.process_time
        result = TASKS[given.task](
            given.recipes[0], given.batch_sizes[0], given.arithmetic, given.folder
        )
        print(json.dumps(result))
        return
    chosen = json.loads(given.arithmetic or "null") or run("arithmetic", "sa_proj", 1, "")
    if given.clock == "cpu":
        chosen["threads"] = 1  # else seconds of several threads would add up
    arithmetic = json.dumps(chosen)
    found = compare(given.recipes, given.batch_sizes, arithmetic, given.clock)
    Console().print(show(found))
    given.output.parent.mkdir(parents=True, exist_ok=True)
    values = {
        "versions": provenance.versions(),
        "hardware": provenance.hardware(),
        "git": provenance.git_state(Path(__file__).parent),
        "arithmetic": chosen,
        "clock": given.clock,
        "rows": found,
    }
    given.output.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
