"""Stages that commands share: the plan of a run, and its drift."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from narrowtune.core.cache import cache_folder
from narrowtune.core.config import RunConfig
from narrowtune.core.results import DriftResult, Plan, TaskResult
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.collate import Encoded
from narrowtune.engine.arithmetic import Arithmetic
from narrowtune.engine.batches import spread_kin
from narrowtune.engine.features import (
    FeatureStore,
    can_remember,
    changes_eyes,
    remembered_features,
)
from narrowtune.engine.generate import NOISE_ROWS, measure_noise
from narrowtune.evaluate.cache import ScoreCache
from narrowtune.evaluate.clusters import effective_items_together
from narrowtune.evaluate.evaluate import evaluate_cached, write_items
from narrowtune.evaluate.tasks import Task
from narrowtune.models.load import LoadedModel
from narrowtune.models.select import resolve
from narrowtune.models.swap import WeightSwap
from narrowtune.pipeline.dial import Halves
from narrowtune.pipeline.inputs import Inputs
from narrowtune.pipeline.stopwatch import Stopwatch
from narrowtune.probe.drift import measure_drift
from narrowtune.train.arguments import planned_samples
from narrowtune.train.masters import computing_in
from narrowtune.train.plan import make_plan
from narrowtune.train.quantised import quantised_frozen
from narrowtune.train.workload import TaskLoad, Workload


def measuring_dtype(loaded: LoadedModel) -> torch.dtype:
    """Return the dtype in which answers are computed.

    On a CPU that is fp32, which holds bf16 weights exactly: bf16 kernels leave so much noise there
    that many close decisions would have to be taken again alone.
    """
    return torch.float32 if loaded.model.device.type == "cpu" else loaded.dtype


@contextmanager
def measuring(loaded: LoadedModel, features: FeatureStore | None = None) -> Iterator[None]:
    """Compute in the dtype of answers inside the block, and look up pictures in `features`."""
    with (
        computing_in(loaded.model, measuring_dtype(loaded)),
        remembered_features(loaded, features),
    ):
        yield


def arithmetic_words(
    loaded: LoadedModel, arithmetic: Arithmetic, features: FeatureStore | None
) -> str:
    """Return what may decide a close answer beside model and prompt, for the caches' keys."""
    return (
        f"{measuring_dtype(loaded)} {arithmetic.float32_matmul_precision} "
        f"{arithmetic.threads} threads, {'packed' if arithmetic.packing else 'plain'}"
        f"{'' if features is None else ', pictures remembered'}"
    )


def make_store(loaded: LoadedModel, *, remember: bool | None) -> FeatureStore | None:
    """Return where the features of pictures are kept, or None where they are not.

    Args:
        loaded: the model.
        remember: as in the settings. On a GPU a tower is quick with many pictures at once, and slow
            with one at a time.
    """
    if not keeps_features(loaded, remember):
        return None
    return FeatureStore(folder=cache_folder() / "features")


def keeps_features(loaded: LoadedModel, remember: bool | None) -> bool:
    """Whether the features of pictures are kept, under `remember` of the settings."""
    wanted = loaded.model.device.type == "cpu" if remember is None else remember
    return wanted and can_remember(loaded)


_MEASURED = 64  # items of a task that a plan times, at most


def looked_at_once(
    loaded: LoadedModel, config: RunConfig, rows: Sequence[Encoded], num_processes: int
) -> int | None:
    """Return how many pictures training looks at, where it keeps what it saw; None where not.

    It keeps it where tower and projector are frozen, on one device that has a feature store, and
    where a picture comes more than once: else keeping would only cost.
    """
    frozen = not changes_eyes(loaded, resolve(loaded.model, config.recipe).names)
    if num_processes > 1 or not frozen or not keeps_features(loaded, config.remember_pictures):
        return None
    pictured = [row.picture_digest for row in rows if row.picture_digest]
    if not pictured:
        return None
    different = len(set(pictured))
    looks = planned_samples(config, len(rows), num_processes) * len(pictured)
    return different if looks > different * len(rows) else None


def plan_run(
    loaded: LoadedModel,
    config: RunConfig,
    inputs: Inputs,
    encoder: ChatEncoder,
    arithmetic: Arithmetic,
    *,
    measure_time: bool = True,
    num_processes: int = 1,
    notes: Sequence[str] = (),
) -> Plan:
    """Plan a run on its own rows; without rows, on a made-up one. The model stays as it is.

    Its notes end with those that are given.
    """
    measured = min(_MEASURED, config.eval_batch_size)
    kept = [task.groups for task in inputs.tasks if task.role == "held_out"]
    worth = iter(effective_items_together(kept))
    tasks = [
        _task_load(task, encoder, measured, next(worth) if task.role == "held_out" else 0.0)
        for task in inputs.tasks
    ]
    workload = Workload(
        rows=inputs.rows,
        num_samples=len(inputs.rows) or None,
        tasks=tasks,
        anchor_prompts=[
            encoder.encode_prompt(messages)
            for messages in (*inputs.anchor_prompts, *inputs.taught_prompts)
        ],
        num_taught=len(inputs.taught_prompts),
        looked_at_once=looked_at_once(loaded, config, inputs.rows, num_processes),
    )
    plan = make_plan(
        loaded,
        config,
        workload,
        arithmetic=arithmetic,
        measure_time=measure_time,
        num_processes=num_processes,
    )
    plan = plan.model_copy(update={"notes": [*plan.notes, *notes]})
    if config.dial is None:
        return plan
    # Only a part of the keep items decides, and the other one has to confirm it.
    mean, _ = Halves(inputs.tasks, config.dial, config.seed).provable()
    return plan.model_copy(update={"smallest_budget": mean})


@contextmanager
def frozen_part(loaded: LoadedModel, config: RunConfig, watch: Stopwatch) -> Iterator[None]:
    """Hold what stays frozen as the settings say inside the block; the model's notes say so."""
    kind = config.training.quantize_frozen
    if kind is None:
        yield
        return
    holding = quantised_frozen(
        loaded, resolve(loaded.model, config.recipe), kind, Path(config.output_dir)
    )
    with ExitStack() as held:
        with watch.stage("quantise the frozen part"):
            loaded.notes.append(held.enter_context(holding))
        yield
        with watch.stage("put the frozen part back"):
            held.close()


def _task_load(task: Task, encoder: ChatEncoder, batch_size: int, num_groups: float) -> TaskLoad:
    """Describe what evaluating `task` takes, with one batch of its items to measure on."""
    # Whole pictures: their questions are answered together, and share them.
    chosen = [task.examples[i] for i in spread_kin(_kin(task), batch_size, batch_size)]
    by_options = task.mode == "options"
    return TaskLoad(
        role=task.role,
        num_items=len(task.examples),
        num_groups=num_groups,
        prompts=[] if by_options else [encoder.encode_prompt(e.prompt) for e in chosen],
        options=[[encoder.encode_answer(e.prompt, o) for o in e.options] for e in chosen]
        if by_options
        else [],
        max_new_tokens=task.max_new_tokens,
    )


def _kin(task: Task) -> list[Hashable]:
    """Return what each item shares with others: its pictures, or nothing but its own number."""
    return [example.image_hashes or number for number, example in enumerate(task.examples)]


def measure_tolerance(loaded: LoadedModel, tasks: Sequence[Task], encoder: ChatEncoder) -> float:
    """Measure once what arithmetic in batches does to logits, on some prompts of every task."""
    asked = [task for task in tasks if task.mode == "generate"]
    of_each = -(-NOISE_ROWS // max(1, len(asked)))
    chosen = []
    for task in asked:
        # Of a picture two questions at least: they share it, as when all are answered.
        wanted = max(2, of_each) if any(example.images for example in task.examples) else of_each
        chosen += [task.examples[i].prompt for i in spread_kin(_kin(task), wanted, 2)]
    prompts = [encoder.encode_prompt(prompt) for prompt in chosen]
    return measure_noise(
        loaded, prompts, num_rows=len(prompts), extra_stop_tokens=encoder.stop_tokens
    )


def score_tasks(
    loaded: LoadedModel,
    tasks: Sequence[Task],
    encoder: ChatEncoder,
    *,
    batch_size: int,
    fingerprint: str,
    arithmetic: Arithmetic,
    folder: Path,
    features: FeatureStore | None = None,
) -> list[TaskResult]:
    """Return the results of every task, from the cache where they are there; write the items.

    Args:
        fingerprint: of the weights that are in the model now.
        folder: one file per task goes there.
        features: of pictures.
    """
    words = arithmetic_words(loaded, arithmetic, features)
    results = []

    @cache
    def tolerance() -> float:
        return measure_tolerance(loaded, tasks, encoder)

    with measuring(loaded, features):
        for task in tasks:
            result = evaluate_cached(
                loaded,
                task,
                encoder,
                batch_size=batch_size,
                cache=ScoreCache(),
                model_fingerprint=fingerprint,
                arithmetic=words,
                tolerance=tolerance,
            )
            write_items(result.items, folder / f"{task.name}.jsonl")
            results.append(result)
    return results


def measure_run_drift(
    loaded: LoadedModel,
    base: Mapping[str, Tensor],
    inputs: Inputs,
    encoder: ChatEncoder,
    config: RunConfig,
    features: FeatureStore | None = None,
) -> DriftResult:
    """Compare the tuned model in `loaded` with `base` on the run's drift prompts."""
    with measuring(loaded, features):
        return measure_drift(
            loaded,
            WeightSwap(loaded.model, base),
            inputs.drift_prompts,
            encoder,
            max_new_tokens=config.drift.max_new_tokens,
            batch_size=config.eval_batch_size,
            skill_answers=inputs.skill_answers,
            about_skill=inputs.about_skill,
        ).result
