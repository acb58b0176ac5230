"""What can be seen before a model is loaded: paths that lead nowhere, trackers without package."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from narrowtune.core.config import RunConfig
from narrowtune.core.errors import DataError, UsageError
from narrowtune.core.training_settings import TrainingSettings
from narrowtune.data.sources import why_missing, why_not_there
from narrowtune.engine.quantised import check_quantiser
from narrowtune.evaluate.own_metrics import identity
from narrowtune.train.arguments import (
    accumulation_steps,
    check_trackers,
    per_device_batch_size,
)

Named = tuple[str, str | Path | None]
"""A path, after the setting or flag that gives it."""


def check_run(config: RunConfig, *, with_skill: bool = True, num_processes: int = 1) -> None:
    """Check what a run names before anything is loaded or written.

    Raises:
        DataError: paths that are not there, all of them.
        EvaluationError: a metric of the user's own that can't be loaded.
        UsageError: a tracker, a quantiser or a device that can't be used, or batch sizes that don't
            fit each other.
    """
    skill = config.skill
    rows: list[Named] = []
    files: list[Named] = [("training.deepspeed", config.training.deepspeed)]
    if with_skill:
        rows += [("skill.path", skill.path), ("skill.test_path", skill.test_path)]
        files.append(("skill.image_root", skill.image_root))
    for number, keep in enumerate(config.keep):
        rows.append((f"keep.{number}.path", keep.path))
        files.append((f"keep.{number}.image_root", keep.image_root))
    for number, mix in enumerate(config.mix):
        rows.append((f"mix.{number}.path", mix.path))
        files.append((f"mix.{number}.image_root", mix.image_root))
    for name, prompts in (("anchor", config.anchor), ("drift", config.drift)):
        if prompts is not None:
            rows.append((f"{name}.prompts", prompts.prompts))
            files.append((f"{name}.image_root", prompts.image_root))
    check_paths(config.model, rows, files)
    for scored in [*([config.skill] if with_skill else []), *config.keep]:
        identity(scored.metric)
    check_trackers(config.training.report_to)
    if with_skill:
        _check_device(config.device)
    kind = config.training.quantize_frozen
    if kind is not None:
        check_quantiser(kind)
        if num_processes > 1:
            raise UsageError(
                asked=f"training.quantize_frozen: {kind} in {num_processes} processes",
                found="it was made for one process",
                do="run one process, or leave quantize_frozen out",
            )
    per_device = per_device_batch_size(config.training, num_processes)
    accumulation_steps(config.training.global_batch_size, per_device, num_processes)


def check_launch(training: TrainingSettings, num_processes: int) -> None:
    """Refuse ways of sharing a model out that would end without a delta, before it is trained.

    Raises:
        UsageError: FSDP in one process, or by the launcher; stage 3 of DeepSpeed's ZeRO; compiled
            layers in several processes.
    """
    if training.torch_compile and num_processes > 1:
        raise UsageError(
            asked=f"training.torch_compile in {num_processes} processes",
            found="that it was made for one",
            do="leave torch_compile out, or run one process",
        )
    if training.fsdp and num_processes == 1:
        raise UsageError(
            asked="training.fsdp",
            found="one process, which has nobody to share with",
            do="start it on several GPUs (accelerate launch --multi_gpu --num_processes N -m "
            "narrowtune …), or leave fsdp out",
        )
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        raise UsageError(
            asked="a launch with FSDP",
            found="options of the launcher, which would stand beside the run's own",
            do="launch without (accelerate launch --multi_gpu …), and set training.fsdp: true",
        )
    check_stage(training)


def check_stage(training: TrainingSettings) -> None:
    """Refuse stage 3 of DeepSpeed's ZeRO.

    Raises:
        UsageError: it is asked for.
    """
    if training.deepspeed is not None and _zero_stage(Path(training.deepspeed)) == 3:
        raise UsageError(
            asked=f"ZeRO stage 3 ({training.deepspeed})",
            found="that its parts can't be put together again here",
            do="share the model out with training.fsdp: true, or take stage 2",
        )


def _zero_stage(path: Path) -> int | None:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        return int(settings["zero_optimization"]["stage"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # DeepSpeed itself says what is wrong with it


def _check_device(device: str) -> None:
    """Refuse a GPU by its number: one process of the Trainer trains on the first that it sees."""
    kind, _, number = device.partition(":")
    if kind == "cuda" and number not in ("", "0"):
        raise UsageError(
            asked=f"to train on {device}",
            found="that transformers' Trainer takes the first GPU that it sees",
            do=f"set CUDA_VISIBLE_DEVICES={number} in the environment, with device: cuda",
        )


def check_paths(model: str, rows: Sequence[Named], files: Sequence[Named] = ()) -> None:
    """See that everything that is named is there; what is None is not looked for.

    Args:
        model: folder or hub id.
        rows: files, folders or hub ids.
        files: what must be on this disk.

    Raises:
        DataError: it lists all that are missing.
    """
    looked_for = [("model", model, _why_no_model(model))]
    looked_for += [(key, str(path), why_missing(str(path))) for key, path in rows if path]
    for key, path in files:
        looked_for.append((key, str(path), None if path is None else why_not_there(Path(path))))
    missing = [f"{key} {path}: {reason}" for key, path, reason in looked_for if reason]
    if missing:
        raise DataError(
            asked="what these paths lead to" if len(missing) > 1 else "what this path leads to",
            found="\n  ".join(["", *missing]),
            do=f"correct them; paths are relative to the working directory, {Path.cwd()}",
        )


def _why_no_model(model: str) -> str | None:
    """Return why there is no such model; settings leave a `~` of it as it is."""
    if not model.startswith("~"):
        return why_missing(model)
    try:
        return why_not_there(Path(model).expanduser())
    except RuntimeError as error:  # there is no such user
        return str(error)
