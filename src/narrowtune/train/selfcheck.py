"""The first rows of a run by the plain path and by the run's own, before it relies on that.

Row by row, without a mask left out, pictures seen anew, layers not compiled: that is the plain
path. The run's own way is compared with it in the run's own arithmetic and in training mode, in
loss and gradients of what trains; where bf16's rounding is too coarse to tell, as in small models,
in fp32. Compiled layers are compared with the same plain gradients.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import islice
from typing import NamedTuple

import torch
from torch import nn

from narrowtune.core.config import RunConfig
from narrowtune.core.path_results import Comparison
from narrowtune.data.collate import IGNORE_INDEX, Encoded, collate, padding_id
from narrowtune.engine.arithmetic import Arithmetic, torch_settings
from narrowtune.engine.attention import attention_as_torch_has_it
from narrowtune.engine.compiled import compile_error, compiled_layers, refused
from narrowtune.engine.features import FeatureStore, changes_eyes, remembered_features
from narrowtune.engine.forward import to_device
from narrowtune.engine.heap import return_freed_pages
from narrowtune.engine.packing import packing
from narrowtune.engine.passes import MAX_ERROR, Pass, difference, draws, norm, run_pass
from narrowtune.models.chunks import chunk_by_chunk
from narrowtune.models.load import LoadedModel
from narrowtune.models.select import Selection
from narrowtune.models.shortage import is_out_of_memory
from narrowtune.train.arguments import per_device_batch_size, planned_steps
from narrowtune.train.masters import computing_in, layer_norm_names
from narrowtune.train.order import PictureSampler

logger = logging.getLogger(__name__)

_COARSE = 0.5
"""Difference up to which bf16's rounding may be all there is. What fails or is no number, and what
computes something else in bf16 alone, is beyond it."""

_MOST_ROWS = 8  # row by row they may take more memory than the step that they stand for


@contextmanager
def plain_path(model: nn.Module) -> Iterator[None]:
    """Inside the block rows go through the model as they come, and chunks one by one."""
    with packing("never"), chunk_by_chunk(model), attention_as_torch_has_it():
        yield


class Checked(NamedTuple):
    """What was compared, and what is taken for it.

    Attributes:
        features: looked up while training; None takes pictures as ever.
        fast: the run's own way beside the plain path; None where it was not compared.
        compilation: compiled layers beside it; None unless they are asked for.
        layers: those to train through compiled.
    """

    features: FeatureStore | None
    fast: Comparison | None = None
    compilation: Comparison | None = None
    layers: Sequence[nn.Module] = ()

    @contextmanager
    def taken(self, loaded: LoadedModel) -> Iterator[None]:
        """Train by what agreed inside the block."""
        agrees = self.fast is None or self.fast.used
        with (
            remembered_features(loaded, self.features) if agrees else plain_path(loaded.model),
            compiled_layers(self.layers),
        ):
            yield


def check_first_step(
    loaded: LoadedModel,
    selection: Selection,
    rows: Sequence[Encoded],
    config: RunConfig,
    arithmetic: Arithmetic,
    *,
    features: FeatureStore | None,
    sampler: PictureSampler | None,
) -> Checked:
    """Compare what is on by default, and compiled layers, with the plain path on the first rows.

    The model has to be ready to train, and be on its device whole: one that is shared out (FSDP) is
    not compared. Neither is one that drops by chance, nor rows that teach nothing that trains, nor
    what the plain path has no memory for. Weights, modes and random states stay. Call it before
    anything watches gradients.

    Args:
        loaded, selection, rows, config, arithmetic: of the run.
        features: as the run would look pictures up; None where it does not.
        sampler: the order of the rows; as they are unless given.

    Raises:
        UsageError: layers are to be compiled and can't be, or can't be compared.
    """
    training, model = config.training, loaded.model
    is_fast = (arithmetic.packing or features is not None) and not draws(model.modules())
    if training.fsdp or not (is_fast or training.torch_compile):
        return Checked(features)
    if not planned_steps(config, len(rows)):
        return Checked(features)
    layers = list(model.get_submodule(loaded.family.language_model.layers).children())
    if training.torch_compile and draws(part for layer in layers for part in layer.modules()):
        raise refused("layers with dropout, whose draws can't be compared")
    first = _first_rows(loaded, selection, rows, config, sampler)
    if not first:
        return Checked(features)
    batch = collate(first, padding_id(loaded.tokenizer))
    parameters = dict(model.named_parameters())
    chosen = [parameters[name] for name in selection.names]
    run = partial(run_pass, model, chosen, to_device(batch, model.device))
    if training.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    try:
        with computing_in(model, torch.float32, layer_norm_names(model)):
            return _compare(loaded, run, layers, config, arithmetic, features, is_fast=is_fast)
    finally:
        if training.gradient_checkpointing:
            model.gradient_checkpointing_disable()
        return_freed_pages()


def _compare(
    loaded: LoadedModel,
    run: Callable[[Arithmetic], Pass],
    layers: Sequence[nn.Module],
    config: RunConfig,
    arithmetic: Arithmetic,
    features: FeatureStore | None,
    *,
    is_fast: bool,
) -> Checked:
    model, compiles = loaded.model, config.training.torch_compile
    limit, started = MAX_ERROR[arithmetic.compute_dtype], time.perf_counter()
    fast = None
    try:
        with plain_path(model):
            plain = run(arithmetic)
        if not norm(plain.gradients):
            if compiles:
                raise refused("first rows without a gradient for what trains, to compare by")
            return Checked(features)
        if is_fast:
            with _fast_path(loaded, arithmetic, features):
                fast = _judged(_fast_difference(partial(run, arithmetic), plain), limit, started)
    except RuntimeError as error:
        if compiles or not is_out_of_memory(error):
            raise
        return Checked(features)
    is_coarse = arithmetic.compute_dtype == "bfloat16"
    if is_coarse and fast is not None and fast.limit < fast.error <= _COARSE:
        fast = _compare_exactly(loaded, run, arithmetic, features, fast)
    if not compiles:
        return Checked(features, fast)
    started = time.perf_counter()
    with nullcontext() if fast is None or fast.used else plain_path(model):
        compiled = _judged(compile_error(layers, partial(run, arithmetic), plain), limit, started)
    return Checked(features, fast, compiled, layers if compiled.used else ())


def _compare_exactly(
    loaded: LoadedModel,
    run: Callable[[Arithmetic], Pass],
    arithmetic: Arithmetic,
    features: FeatureStore | None,
    coarse: Comparison,
) -> Comparison:
    """Take the fast path, too, where it is not within bf16's limit and in fp32 is within fp32's.

    Rounding in bf16 alone can move small models' gradients by more than the limit; what computes
    something else does so in fp32. There may be no memory for fp32: then what was found stands.
    """
    started = time.perf_counter()
    exact, limit = arithmetic.model_copy(update={"compute_dtype": "float32"}), MAX_ERROR["float32"]
    try:
        with (
            computing_in(loaded.model, torch.float32),
            torch_settings("highest", arithmetic.threads),
        ):
            with plain_path(loaded.model):
                plain = run(exact)
            with _fast_path(loaded, exact, features):
                error = _fast_difference(partial(run, exact), plain)
    except RuntimeError as failure:
        if not is_out_of_memory(failure):
            raise
        return coarse
    seconds = coarse.seconds + time.perf_counter() - started
    update = {"used": error <= limit, "float32_error": error, "seconds": seconds}
    return coarse.model_copy(update=update)


@contextmanager
def _fast_path(
    loaded: LoadedModel, arithmetic: Arithmetic, features: FeatureStore | None
) -> Iterator[None]:
    """Compute as a run would, and lay out always inside the block.

    Later steps may be laid out where this one would not be: not cheaper, but exact.
    """
    laid_out = packing("always") if arithmetic.packing else nullcontext()
    with laid_out, remembered_features(loaded, features):
        yield


def _fast_difference(run: Callable[[], Pass], plain: Pass) -> float:
    """Return how far a pass is from the plain one; where it fails, as far as can be."""
    try:
        return difference(run(), plain)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        logger.warning("The first step's fast path failed: %s: %s", type(error).__name__, error)
        return sys.float_info.max


def _judged(error: float, limit: float, started: float) -> Comparison:
    seconds = time.perf_counter() - started
    return Comparison(used=error <= limit, error=error, limit=limit, seconds=seconds)


def _first_rows(
    loaded: LoadedModel,
    selection: Selection,
    rows: Sequence[Encoded],
    config: RunConfig,
    sampler: PictureSampler | None,
) -> list[Encoded]:
    """Return rows of a first micro-batch; rows without a picture teach eyes nothing."""
    number = min(_MOST_ROWS, per_device_batch_size(config.training, 1))
    if config.anchor is not None and config.anchor.weight:
        number = max(number, 2)  # its rows come beside the step's, so that no step has one alone
    order = range(len(rows)) if sampler is None else sampler
    labelled = (index for index in order if _teaches(rows[index]))
    first = [rows[index] for index in islice(labelled, number)]
    if not changes_eyes(loaded, selection.names):
        return first
    pictured = (
        rows[index] for index in order if rows[index].picture_digest and _teaches(rows[index])
    )
    return list(islice(pictured, number)) or first


def _teaches(row: Encoded) -> bool:
    """Whether a row has a label: of some long ones nothing is left to learn."""
    return any(label != IGNORE_INDEX for label in row.labels[1:])
