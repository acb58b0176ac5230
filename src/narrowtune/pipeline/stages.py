"""Stages that commands share: the plan of a run, and its drift."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from narrowtune.core.cache import cache_folder
from narrowtune.core.config import RunConfig
from narrowtune.core.errors import UsageError
from narrowtune.core.results import DriftResult, Plan, TaskResult
from narrowtune.core.run_folder import RunFolder, write_text
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.collate import Encoded, collate, padding_id
from narrowtune.data.examples import Message, Text
from narrowtune.engine.arithmetic import Arithmetic, measure_arithmetic
from narrowtune.engine.batches import spread
from narrowtune.engine.features import (
    FeatureStore,
    can_remember,
    changes_eyes,
    remembered_features,
)
from narrowtune.engine.forward import evaluating, packing_error, to_device
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


MAX_PACKING_ERROR = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.05}
"""Relative difference of logits up to which packing counts as exact, by the dtype compared in."""

_MEASURED = 64  # items of a task that a plan times, at most
_CHECKED_ROWS = 2  # a line's square grows with all of them, and two show what many would


def choose_arithmetic(
    config: RunConfig,
    loaded: LoadedModel,
    inputs: Inputs,
    encoder: ChatEncoder,
    folder: RunFolder,
    *,
    base: str,
) -> Arithmetic:
    """Measure which arithmetic is fastest here, or read back what an earlier start measured.

    Args:
        base: fingerprint of the model. What was measured for another one, or for other settings,
            as before a run that failed was corrected, is measured again.
    """
    _check_eyes_learn(config, loaded)
    asked = (
        # By kind: every process of several has a device of its own.
        f"{base} on {loaded.model.device.type}, compute_dtype {config.training.compute_dtype}, "
        f"packing {config.training.packing}"
    )
    if folder.arithmetic.exists():
        found = Arithmetic.from_json(folder.arithmetic.read_text(encoding="utf-8"))
        if found.measured_for == asked:
            return found
    measured = check_packing(
        measure_arithmetic(loaded.model, requested=config.training.compute_dtype),
        loaded,
        packable_batches(inputs, encoder),
        allowed=config.training.packing,
    )
    arithmetic = measured.model_copy(update={"measured_for": asked})
    write_text(folder.arithmetic, arithmetic.to_json())
    return arithmetic


def _check_eyes_learn(config: RunConfig, loaded: LoadedModel) -> None:
    """Refuse to train eyes through an fp16 base on a GPU: small gradients would vanish in it."""
    wide = config.training.compute_dtype == "float32"
    if loaded.dtype != torch.float16 or loaded.model.device.type == "cpu" or wide:
        return
    if changes_eyes(loaded, resolve(loaded.model, config.recipe).names):
        raise UsageError(
            asked=f"{config.recipe} on {config.model}",
            found="a base in float16, through which small gradients don't reach what sees",
            do="load it in bf16 (dtype: bfloat16), or set training.compute_dtype to float32",
        )


def packable_batches(inputs: Inputs, encoder: ChatEncoder) -> list[list[Encoded]]:
    """Return batches for `check_packing`: rows of text, and two about the same picture.

    The text is learned from, or asked where none is learned from; the picture is one that is asked.
    """
    items = (example.prompt for task in inputs.tasks for example in task.examples)
    asked = chain(items, (prompt for _, prompt in inputs.drift_prompts))
    learned = (row for row in inputs.rows if not row.picture_digest)
    rows = heapq.nsmallest(_CHECKED_ROWS, learned, key=lambda row: len(row.input_ids))
    text, pictured = prompts_as_batches(asked, encoder)
    return [rows if len(rows) >= _CHECKED_ROWS else text, pictured]


def prompts_as_batches(
    prompts: Iterable[Sequence[Message]], encoder: ChatEncoder
) -> list[list[Encoded]]:
    """Return two batches for `check_packing`: prompts of text, and two about the same picture."""
    text: list[Encoded] = []
    pictured: list[Encoded] = []
    for prompt in prompts:
        images = [image for turn in prompt for image in turn.images]
        # Whatever is answered: logits are compared, not answers.
        if not images and len(text) < _CHECKED_ROWS:
            text.append(encoder.encode_answer(prompt, "Yes"))
        elif len(images) == 1 and not pictured:
            *before, last = prompt
            longer = (*before, Message(last.role, (*last.content, Text(" Yes or no?"))))
            pictured = [encoder.encode_answer(each, "Yes") for each in (prompt, longer)]
        if pictured and len(text) == _CHECKED_ROWS:
            break
    return [text, pictured]


def check_packing(
    arithmetic: Arithmetic,
    loaded: LoadedModel,
    batches: Sequence[Sequence[Encoded]],
    *,
    allowed: bool,
) -> Arithmetic:
    """Compare other layouts of some rows with the plain one, and take the plain one if unlike.

    Args:
        arithmetic: whose `packing` and note are to say what was found.
        batches: those with fewer than two rows are left out.
        allowed: whether rows may be laid out anew at all.
    """
    chosen = [
        sorted(rows, key=lambda row: len(row.input_ids))[:_CHECKED_ROWS]
        for rows in batches
        if len(rows) >= _CHECKED_ROWS
    ]
    if not allowed or not chosen:
        return arithmetic.model_copy(update={"packing": allowed})
    dtype, errors = measuring_dtype(loaded), list[float]()
    with measuring(loaded), evaluating(loaded.model):
        for rows in chosen:
            batch = to_device(collate(rows, padding_id(loaded.tokenizer)), loaded.model.device)
            found = packing_error(loaded.model, batch)
            if found is not None:
                errors.append(found)
    if not errors:
        note = "; packed and plain logits were not compared: these rows can't be packed"
        return arithmetic.model_copy(update={"packing": True, "note": arithmetic.note + note})
    error = max(errors)
    limit = MAX_PACKING_ERROR.get(dtype, MAX_PACKING_ERROR[torch.bfloat16])
    agrees = error <= limit
    note = f"; packed and plain logits differ by {error:.0e} (relative)"
    if not agrees:
        note += f", more than {limit:.0e}: rows are not packed"
    return arithmetic.model_copy(update={"packing": agrees, "note": arithmetic.note + note})


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
        anchor_prompts=[encoder.encode_prompt(messages) for messages in inputs.anchor_prompts],
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
    chosen = [task.examples[i] for i in spread(len(task.examples), batch_size)]
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


def measure_tolerance(loaded: LoadedModel, tasks: Sequence[Task], encoder: ChatEncoder) -> float:
    """Measure once what arithmetic in batches does to logits, on some prompts of every task."""
    asked = [task for task in tasks if task.mode == "generate"]
    of_each = -(-NOISE_ROWS // max(1, len(asked)))
    chosen = [
        task.examples[i].prompt for task in asked for i in spread(len(task.examples), of_each)
    ]
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
    dtype = measuring_dtype(loaded)
    words = (
        f"{dtype} {arithmetic.float32_matmul_precision} {arithmetic.threads} threads, "
        f"{'packed' if arithmetic.packing else 'plain'}"
        f"{'' if features is None else ', pictures remembered'}"
    )
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
        ).result
