"""A run's settings as the Trainer's: batch sizes, steps, warm-up."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.integrations import get_reporting_integration_callbacks

from narrowtune.core.config import RunConfig, TrainingSettings
from narrowtune.core.errors import UsageError

FSDP_OPTIONS = (
    "reshard_after_forward",
    "transformer_layer_cls_to_wrap",
    "activation_checkpointing",
    "auto_wrap_policy",
    "min_num_params",
)
"""What may stand in `training.fsdp_config`: not what moves parts to the host, whose gradients the
Trainer could not clip."""

_TRIED_STEPS = 100
"""Of a schedule, at least, where it has as many."""


def accumulation_steps(global_batch_size: int, per_device: int, num_processes: int) -> int:
    """Return how many micro-batches make one optimiser step.

    Raises:
        UsageError: the global batch size is not a multiple of what one pass takes.
    """
    one_pass = per_device * num_processes
    if global_batch_size % one_pass:
        raise UsageError(
            asked=f"a global batch size of {global_batch_size}",
            found=f"{per_device} samples on each of {num_processes} processes, {one_pass} in a "
            "pass, which does not divide it",
            do="choose training.per_device_train_batch_size so that the product divides "
            "training.global_batch_size",
        )
    return global_batch_size // one_pass


def per_device_batch_size(training: TrainingSettings, num_processes: int) -> int:
    """Return the rows of one forward pass: those asked for, or fewer where a step holds fewer."""
    share = max(1, training.global_batch_size // num_processes)
    return min(training.per_device_train_batch_size, share)


def num_repeated(training: TrainingSettings, num_samples: int, num_processes: int) -> int:
    """Return how many rows an epoch shows twice, so that all devices have full passes to the end.

    One device takes a smaller last pass instead.
    """
    if num_processes == 1:
        return 0
    return -num_samples % (per_device_batch_size(training, num_processes) * num_processes)


def planned_steps(config: RunConfig, num_samples: int) -> int:
    """Return the number of optimiser steps of a run; the last one of an epoch may be smaller."""
    if config.training.max_steps >= 0:
        return config.training.max_steps
    per_epoch = math.ceil(num_samples / config.training.global_batch_size)
    return math.ceil(config.training.num_train_epochs * per_epoch)


def validation_batches(
    num_rows: int, batch_size: int, num_processes: int, process: int
) -> list[list[int]]:
    """Return the rows of process `process`, by batch: each row is one process's, once.

    All processes have as many batches; some of them may be empty.
    """
    first = process * batch_size
    starts = range(first, first + num_rows, batch_size * num_processes)
    return [list(range(start, min(start + batch_size, num_rows))) for start in starts]


def planned_samples(config: RunConfig, num_samples: int, num_processes: int) -> int:
    """Return how many rows the steps of a run use, those of every epoch counted again."""
    training = config.training
    shown = num_samples + num_repeated(training, num_samples, num_processes)
    per_epoch = math.ceil(num_samples / training.global_batch_size)
    epochs, more = divmod(planned_steps(config, num_samples), per_epoch)
    return epochs * shown + min(more * training.global_batch_size, shown)


def warmup_steps(ratio: float, num_steps: int) -> int:
    """Return how many steps of a run warm up: none if that is less than one, or it has but one.

    The first step of a warm-up has the rate 0 in transformers' schedules, so in a short run it
    would only be a step lost.
    """
    share = ratio * num_steps
    return math.ceil(share) if share >= 1 and num_steps > 1 else 0


def check_trackers(names: Sequence[str]) -> None:
    """See that every tracker is one that transformers knows, and that its package is installed.

    Raises:
        UsageError: the Trainer could not be made with them.
    """
    alone = [name for name in names if name in ("all", "none")]
    problems = []
    if alone and len(names) > 1:
        problems.append(f"{alone[0]} stands for a list of its own, and others are named beside it")
    for name in [name for name in names if name not in alone]:
        try:
            for tracker in get_reporting_integration_callbacks([name]):
                tracker()
        # What transformers raises for a name that it does not know, or a package that is missing.
        except (ValueError, RuntimeError, ImportError) as error:
            problems.append(str(error))
    if problems:
        raise UsageError(
            asked=f"training.report_to: {', '.join(names)}",
            found="\n  ".join(["", *problems]),
            do="name the trackers that are wanted and installed, or none at all",
        )


def training_arguments(
    config: RunConfig, *, num_samples: int, bf16: bool, on_cpu: bool, num_processes: int
) -> TrainingArguments:
    """Translate a run's settings for the Trainer.

    Raises:
        UsageError: the batch sizes don't fit each other, or a setting has no meaning.
    """
    training = config.training
    steps = planned_steps(config, num_samples)
    per_device = per_device_batch_size(training, num_processes)
    save_steps = training.save_steps or training.eval_steps * training.load_best_model_at_end
    fields: dict[str, Any] = dict(
        output_dir=config.output_dir,
        per_device_train_batch_size=per_device,
        per_device_eval_batch_size=per_device,
        gradient_accumulation_steps=accumulation_steps(
            training.global_batch_size, per_device, num_processes
        ),
        learning_rate=training.learning_rate,
        num_train_epochs=max(training.num_train_epochs, 1e-9),
        max_steps=steps,
        lr_scheduler_type=training.lr_scheduler_type,
        lr_scheduler_kwargs=dict(training.lr_scheduler_kwargs),
        warmup_steps=warmup_steps(training.warmup_ratio, steps),
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        optim=training.optim,
        # FSDP and DeepSpeed cast what they shard; otherwise the trainer casts each forward pass.
        bf16=bf16 and bool(training.fsdp or training.deepspeed),
        use_cpu=on_cpu,
        seed=config.seed,
        data_seed=config.seed,
        logging_steps=training.logging_steps,
        logging_nan_inf_filter=False,
        save_strategy="steps" if save_steps else "no",
        save_steps=save_steps or 500,
        save_total_limit=training.save_total_limit,
        eval_strategy="steps" if training.eval_steps else "no",
        eval_steps=training.eval_steps or None,
        load_best_model_at_end=training.load_best_model_at_end,
        metric_for_best_model="eval_loss" if training.load_best_model_at_end else None,
        greater_is_better=False if training.load_best_model_at_end else None,
        report_to=training.report_to or "none",
        deepspeed=training.deepspeed,
        fsdp=training.fsdp,
        fsdp_config=_fsdp_config(training),
        remove_unused_columns=False,
        dataloader_pin_memory=not on_cpu,
        dataloader_num_workers=training.dataloader_num_workers,
        disable_tqdm=True,
        ddp_find_unused_parameters=False,
        ddp_timeout=24 * 3600,
        **_checkpointing(training.gradient_checkpointing),
    )
    try:
        args = TrainingArguments(**fields)
        _check_schedule(args, training.lr_scheduler_kwargs, max(1, steps))
        Trainer.get_optimizer_cls_and_kwargs(args)
    # transformers raises what it likes where a name, an option or a package is missing.
    except (ValueError, TypeError, KeyError, ArithmeticError, ImportError) as error:
        raise UsageError(
            asked="these training settings",
            found=" ".join(str(error).split()) or type(error).__name__,
            do="correct optim, lr_scheduler_type, lr_scheduler_kwargs or what else is named, under "
            "`training`; names and values are those of TrainingArguments",
        ) from None
    if not training.deepspeed:
        # `accelerate launch` sets it from the user's own configuration; what is computed in is
        # decided by `compute_dtype` alone.
        args.mixed_precision = "bf16" if args.bf16 else "no"
    if num_processes == 1 and args.n_gpu > 1:
        # One process is one device here; the Trainer would wrap the model in DataParallel.
        args._n_gpu = 1
    return args


def schedule(args: TrainingArguments, options: dict[str, Any], steps: int) -> LRScheduler:
    """Return the schedule of a training of so many steps, for an optimiser of nothing."""
    return get_scheduler(
        args.lr_scheduler_type,
        optimizer=torch.optim.SGD([torch.zeros(1)], lr=args.learning_rate),
        num_warmup_steps=int(args.warmup_steps),
        num_training_steps=steps,
        scheduler_specific_kwargs=dict(options),
    )


def _check_schedule(args: TrainingArguments, options: dict[str, Any], steps: int) -> None:
    """Go through the schedule once, for nothing: a run does so after the base was scored.

    Raises:
        ValueError: a rate that is no number; or whatever the schedule raises.
    """
    planned = schedule(args, options, steps)
    # Options may be read at some steps alone: those of a decay at its steps, an end at the last.
    for step in (*range(1, steps, max(1, steps // _TRIED_STEPS)), steps):
        for factor in getattr(planned, "lr_lambdas", ()):
            found = factor(step)
            if not (isinstance(found, (int, float)) and math.isfinite(found)):
                raise ValueError(
                    f"lr_scheduler_kwargs {options}, by which the rate of step {step} is "
                    f"{found!r} times learning_rate"
                )


def _fsdp_config(training: TrainingSettings) -> dict[str, Any] | None:
    """Return what FSDP is told: its second version, and what is given.

    Raises:
        UsageError: a file that can't be read, another version, or an option that is not known.
    """
    if not training.fsdp:
        return None
    given = training.fsdp_config or {}
    if isinstance(given, str):
        try:
            given = json.loads(Path(given).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(
                asked=f"the options of FSDP in {given}",
                found=str(error),
                do="give a JSON file, or the options themselves, as training.fsdp_config",
            ) from None
    options = {name.removeprefix("fsdp_"): value for name, value in given.items()}
    # Parts of the first version don't come back by name.
    version = options.pop("version", 2)
    unknown = [name for name in options if name not in FSDP_OPTIONS]
    if str(version) != "2" or unknown:
        raise UsageError(
            asked=f"FSDP of version {version} with {', '.join(options) or 'no options'}",
            found=f"that narrowtune knows version 2 with {', '.join(FSDP_OPTIONS)}",
            do="take the others out of training.fsdp_config",
        )
    return {"version": 2, **options}


def _checkpointing(wanted: bool) -> dict[str, Any]:
    """Name the setting as this release of transformers does: it was renamed within version 5."""
    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    new = "activation_checkpointing"
    return {new if new in names else "gradient_checkpointing": True} if wanted else {}
