"""What drift on 100 unlabelled prompts takes beside a full evaluation.

    python benchmarks/drift_cost.py      # five minutes on two cores, nothing else running

Drift is KL(base‖tuned) on the base's own answers to 100 prompts that ship with the package, as
`DriftCallback` measures it again and again (what the base says is kept, so that the tuned model
runs once), and as a run measures it once at its end (both models answer, and both are run on the
base's answers). The evaluation is of all that is kept: 3,200 items of the eight held-out tasks for
the reference model, 3,144 of seven kinds for SmolLM2. Each is measured in one process, the
evaluation once and drift three times.

Results: benchmarks/results/drift_cost.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from narrowtune.core import provenance
from narrowtune.core.config import DriftSettings
from narrowtune.core.data_settings import DataSettings
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.rows import read_rows
from narrowtune.demo.files import write_demo_data
from narrowtune.demo.keep import KINDS
from narrowtune.demo.weights import smollm2_folder
from narrowtune.engine.arithmetic import apply_arithmetic, measure_arithmetic
from narrowtune.evaluate.evaluate import evaluate
from narrowtune.evaluate.tasks import Task, make_task
from narrowtune.miniature.reference.shipped import reference_folder
from narrowtune.miniature.registry import tasks_of
from narrowtune.miniature.rows import write_rows
from narrowtune.models.load import LoadedModel, load_model
from narrowtune.models.select import resolve
from narrowtune.models.swap import WeightSwap
from narrowtune.pipeline.prompts import DRIFT_KEY, read_free_prompts
from narrowtune.pipeline.stages import measure_tolerance
from narrowtune.probe.drift import drift_against, measure_drift, prepare_base_answers
from narrowtune.train.masters import computing_in, copy_tensors

RESULTS = Path(__file__).parent / "results" / "drift_cost.json"
PROMPTS, ROUNDS, KEPT, BATCH, SEED = 100, 3, 400, 64, 8


def kept_tasks(name: str, folder: Path) -> Iterator[Task]:
    """Write what a model is to keep, and yield its tasks."""
    settings: list[DataSettings]
    if name == "SmolLM2":
        settings = write_demo_data(folder, skill="counting", kinds=tuple(KINDS), seed=7).keep
    else:
        held_out = tasks_of("held_out")
        settings = [write_rows(folder, task.name, "test", KEPT, SEED) for task in held_out]
    for each in settings:
        yield make_task(each, read_rows(each).examples, "held_out")


def measure(name: str, loaded: LoadedModel, folder: Path) -> dict[str, Any]:
    """Return the seconds of an evaluation and of drift."""
    encoder = ChatEncoder(loaded.tokenizer, loaded.processor)
    tasks = list(kept_tasks(name, folder))
    settings = DriftSettings(max_prompts=PROMPTS)
    prompts = read_free_prompts(settings, encoder, PROMPTS, DRIFT_KEY)
    names = resolve(loaded.model, "sa_proj").names
    swap = WeightSwap(loaded.model, copy_tensors(loaded.model, names))
    arithmetic = measure_arithmetic(loaded.model, requested="float32")
    options = {"max_new_tokens": settings.max_new_tokens, "batch_size": BATCH}
    with apply_arithmetic(arithmetic), computing_in(loaded.model, torch.float32):
        started = time.perf_counter()
        tolerance = measure_tolerance(loaded, tasks, encoder)
        for task in tasks:
            evaluate(loaded, task, encoder, batch_size=BATCH, tolerance=tolerance)
        scored = time.perf_counter() - started
        answers = prepare_base_answers(loaded, None, prompts, encoder, keep_logits=True, **options)
        again = timed(lambda: drift_against(loaded, answers))
        once = timed(lambda: measure_drift(loaded, swap, prompts, encoder, **options))
    return {
        "items": sum(len(task.examples) for task in tasks),
        "prompts": len(prompts),
        "tokens": sum(len(answer.step_ids) for answer in answers.generations),
        "evaluation": scored,
        "drift_again": again,
        "drift_once": once,
        "load": os.getloadavg()[0],
    }


def timed(work: Callable[[], object]) -> list[float]:
    """Return the seconds of some rounds."""
    found = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return found


def main() -> None:
    """Measure both models, and print shares of the evaluation."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    models = {"reference": str(reference_folder("qwen2_5_vl")), "SmolLM2": str(smollm2_folder())}
    values: dict[str, Any] = {
        "versions": provenance.versions(),
        "hardware": provenance.hardware(),
        "git": provenance.git_state(Path(__file__).parent),
    }
    for name, source in models.items():
        with tempfile.TemporaryDirectory() as folder:
            found = measure(name, load_model(source, device="cpu"), Path(folder))
        values[name] = found
        again, once = (statistics.median(found[key]) for key in ("drift_again", "drift_once"))
        print(
            f"{name}: {found['items']} items {found['evaluation']:.1f} s; KL on "
            f"{found['prompts']} prompts with what the base says kept {again:.2f} s "
            f"({again / found['evaluation']:.1%}), from nothing {once:.2f} s "
            f"({once / found['evaluation']:.1%})",
            flush=True,
        )
    RESULTS.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
