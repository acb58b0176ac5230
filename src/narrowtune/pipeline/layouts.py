"""Which arithmetic a run computes in, and whether rows may be laid out anew: compared first.

What answers is compared here, by logits; what trains once more by its own first step
(`train.selfcheck`).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from itertools import chain

import torch

from narrowtune.core.config import RunConfig
from narrowtune.core.errors import UsageError
from narrowtune.core.run_folder import RunFolder, write_text
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.collate import Encoded, collate, padding_id
from narrowtune.data.examples import Message, Text
from narrowtune.engine.arithmetic import Arithmetic, measure_arithmetic
from narrowtune.engine.features import changes_eyes
from narrowtune.engine.forward import evaluating, packing_error, to_device
from narrowtune.models.chunks import attend_chunk_by_chunk
from narrowtune.models.load import LoadedModel
from narrowtune.models.select import resolve
from narrowtune.pipeline.inputs import Inputs
from narrowtune.pipeline.stages import measuring, measuring_dtype

MAX_PACKING_ERROR = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.05}
"""Relative difference of logits up to which packing counts as exact, by the dtype compared in."""

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
            _attend_as(found, loaded)
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
        return _attend_as(arithmetic.model_copy(update={"packing": allowed}), loaded)
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
    told = arithmetic.model_copy(update={"packing": agrees, "note": arithmetic.note + note})
    return _attend_as(told, loaded)


def _attend_as(arithmetic: Arithmetic, loaded: LoadedModel) -> Arithmetic:
    """Have a tower take its chunks one by one from now on where the plain path was chosen."""
    if not arithmetic.packing:
        attend_chunk_by_chunk(loaded.model)
    return arithmetic
