"""Training steps that leave no trace: to count and to time, before anything is decided.

Inside `borrowed` the model stands as it would while training (fp32 masters, gradients on the
selection alone, training mode); afterwards weights, flags, gradients, modes, buffers and random
states are what they were, bit for bit.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from narrowtune.engine.arithmetic import Arithmetic, autocast
from narrowtune.engine.cost import CountFlops
from narrowtune.engine.forward import label_positions, labelled_cross_entropy
from narrowtune.engine.last_layer import read_at_labels
from narrowtune.engine.memory import SavedTensors
from narrowtune.engine.pictures import PICTURE_INPUTS
from narrowtune.train.masters import computing_in, layer_norm_names

_REPEATS = 3
_ENOUGH_SECONDS = 5.0

MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


@contextmanager
def borrowed(
    model: PreTrainedModel,
    names: Iterable[str],
    arithmetic: Arithmetic,
    *,
    gradient_checkpointing: bool = False,
) -> Iterator[list[nn.Parameter]]:
    """Put `model` into the state in which it trains, and back; yields the parameters that train.

    Masters are copies, so an optimiser's step inside the block changes the copies alone. Where
    the run computes in fp32, the frozen part is widened in place and narrowed again: exact.
    """
    with _random_states(), _modes(model, gradient_checkpointing), _masters(model, names) as chosen:
        everything = arithmetic.compute_dtype == "float32"
        with computing_in(model, torch.float32, None if everything else layer_norm_names(model)):
            yield chosen


@contextmanager
def _masters(model: nn.Module, names: Iterable[str]) -> Iterator[list[nn.Parameter]]:
    chosen = set(names)
    saved = [(p, p.data, p.requires_grad, p.grad) for p in model.parameters()]
    training = []
    for name, parameter in model.named_parameters():
        parameter.grad = None
        parameter.requires_grad_(name in chosen)
        if name in chosen:
            parameter.data = parameter.data.to(torch.float32, copy=True)
            training.append(parameter)
    masters = {id(parameter) for parameter in training}
    try:
        yield training
    finally:
        for parameter, data, requires_grad, gradient in saved:
            parameter.grad = None
            if id(parameter) in masters:
                parameter.data = data
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient


@contextmanager
def _modes(model: PreTrainedModel, gradient_checkpointing: bool) -> Iterator[None]:
    """Training mode and checkpointing inside; every module's mode and buffers back after."""
    training = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    checkpointing = any(getattr(module, "gradient_checkpointing", False) for module, _ in training)
    switch = gradient_checkpointing and not checkpointing
    try:
        model.train()
        if switch:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        yield
    finally:
        if switch:
            model.gradient_checkpointing_disable()
        for module, was in training:
            module.training = was
        for module, name, buffer, value in buffers:
            buffer.copy_(value)
            setattr(module, name, buffer)


@contextmanager
def _random_states() -> Iterator[None]:
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def kept_bytes(model: nn.Module, batch: Mapping[str, Any], arithmetic: Arithmetic) -> int:
    """Run the loss forward once in a borrowed model; return what autograd keeps of it."""
    with autocast(arithmetic, batch["input_ids"].device), SavedTensors(model) as kept:
        # The loss holds the graph, and so everything that is counted, until this function ends.
        _loss = labelled_cross_entropy(model, batch)
    return kept.num_bytes


def count_flops(model: nn.Module, names: Iterable[str], batch: Mapping[str, Any]) -> int:
    """Return the FLOPs of a forward and backward pass on `batch` if `names` trained.

    Only the forward pass is run, in the dtype that the weights have; flags are restored.
    """
    with _as_if_trained(model, names), _random_states(), CountFlops() as flops:
        labelled_cross_entropy(model, batch)
    return flops.total


class RowFlops(NamedTuple):
    """What one row takes, forward and backward.

    Attributes:
        linear: of the products with weights in the language model's layers, at all positions.
        attention: of its attention over the whole square of tokens, as under a mask.
        labelled: of those at labelled positions alone: with the language-model head, and in the
            last layer where that is computed there alone.
        tower: of vision tower and projector.
    """

    linear: int
    attention: int
    labelled: int
    tower: int


def count_row_flops(model: nn.Module, names: Iterable[str], row: Mapping[str, Any]) -> RowFlops:
    """Return the parts of `count_flops` for a batch of one row.

    Args:
        model: whose inner model has `get_image_features`, if the row has pictures.
        names: of what trains.
        row: inputs with labels [1, T].
    """
    pictures = {name: row[name] for name in PICTURE_INPUTS if name in row}
    outer: Any = model
    head = outer.get_output_embeddings()
    mask, _ = label_positions(row["labels"])
    begun: list[int] = []
    labelled = 0

    def end(_: nn.Module, __: Any, output: Tensor) -> None:
        nonlocal labelled
        before = begun.pop()
        if output.shape[1] == mask.sum():
            labelled += whole.total - before

    with _as_if_trained(model, names), _random_states():
        with CountFlops() as whole:
            hooks = []
            for module in (head, *read_at_labels(model)):
                # Before the hooks that put zeros back in between.
                hooks.append(module.register_forward_pre_hook(lambda *_: begun.append(whole.total)))
                hooks.append(module.register_forward_hook(end))
            try:
                labelled_cross_entropy(model, row)
            finally:
                for hook in hooks:
                    hook.remove()
        with CountFlops() as tower:
            if pictures:
                inner: Any = model.model
                inner.get_image_features(**pictures)
    return RowFlops(
        linear=whole.total - whole.attention - (tower.total - tower.attention) - labelled,
        attention=whole.attention_square - tower.attention_square,
        labelled=labelled,
        tower=tower.total,
    )


@contextmanager
def _as_if_trained(model: nn.Module, names: Iterable[str]) -> Iterator[None]:
    chosen = set(names)
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    try:
        yield
    finally:
        for parameter, requires_grad in flags:
            parameter.requires_grad_(requires_grad)


def time_pass(model: nn.Module, batch: Mapping[str, Any], arithmetic: Arithmetic) -> float:
    """Return the seconds of a forward and backward pass: the middle of a few, after one unclocked.

    Gradients stay in the parameters, as they do before an optimiser's step.
    """
    return _median_seconds(lambda: _one_pass(model, batch, arithmetic), batch["input_ids"].device)


def time_update(
    parameters: list[nn.Parameter], make_optimizer: MakeOptimizer, max_grad_norm: float
) -> float:
    """Return the seconds of clipping and an optimiser's step on gradients that are there."""
    optimizer = make_optimizer(parameters)

    def update() -> None:
        nn.utils.clip_grad_norm_(parameters, max_grad_norm)
        optimizer.step()

    return _median_seconds(update, parameters[0].device)


def _one_pass(model: nn.Module, batch: Mapping[str, Any], arithmetic: Arithmetic) -> None:
    for parameter in model.parameters():
        parameter.grad = None
    with autocast(arithmetic, batch["input_ids"].device):
        loss, num_labels = labelled_cross_entropy(model, batch)
    if loss.requires_grad:  # not where eyes alone are trained, and none of these rows has a picture
        (loss / num_labels).backward()


def _median_seconds(work: Callable[[], None], device: torch.device) -> float:
    clocked: list[float] = []
    started = time.perf_counter()
    work()
    while len(clocked) < _REPEATS:
        _wait(device)
        before = time.perf_counter()
        work()
        _wait(device)
        clocked.append(time.perf_counter() - before)
        if len(clocked) > 1 and time.perf_counter() - started > _ENOUGH_SECONDS:
            break
    return statistics.median_low(clocked)  # of two the shorter: what stalls, stalls one


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_at(points: Sequence[tuple[int, float]], tokens: float) -> float:
    """Return the seconds of `tokens` positions, from what smaller batches took, the largest last.

    A line through the last two, that neither falls nor starts below zero: where noise, or
    attention over a long line, would have it so, seconds are taken to be proportional to
    positions.
    """
    last_tokens, last_seconds = points[-1]
    proportional = last_seconds * tokens / last_tokens
    if len(points) < 2 or points[-2][0] >= last_tokens:
        return proportional
    slope = (last_seconds - points[-2][1]) / (last_tokens - points[-2][0])
    start = last_seconds - slope * last_tokens
    return start + slope * tokens if slope > 0 and start >= 0 else proportional
