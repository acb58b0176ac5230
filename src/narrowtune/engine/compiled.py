"""Decoder layers as compiled kernels while a model trains.

Beside its products a layer is some dozens of operations that each read and write all of [B, T, H].
`torch.compile` makes a few kernels of them. One layer is compiled, for any B and T, and serves all.
It costs half a minute or more on a CPU, so it is for runs of some hundred steps or more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from narrowtune.core.errors import UsageError
from narrowtune.engine.arithmetic import Arithmetic, autocast
from narrowtune.engine.forward import labelled_cross_entropy
from narrowtune.models.shortage import is_out_of_memory

MAX_ERROR = {"float32": 1e-4, "bfloat16": 0.2}
"""Relative difference of gradients up to which compiled layers count as the same computation.

In bf16 plain layers differ from fp32's gradients by 3 to 4 per cent and compiled ones, which round
less often, by 2 to 3, so that they differ from each other by 4 to 5 (SmolLM2; docs/decisions/0033).
A kernel that computes something else differs by all of it.
"""

_VARIANTS = 64
"""Of a layer: with one line or several, with a mask or without, of each kind of layer, ..."""


@contextmanager
def compiled_layers(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Compile these layers inside the block, for passes that train; all others stay as they are.

    Args:
        layers: of a decoder. What hooks do to them stays outside of what is compiled.
    """
    with ExitStack() as held:
        held.enter_context(torch._dynamo.config.patch(recompile_limit=_VARIANTS))
        for layer in layers:
            held.enter_context(_compiled(layer))
        yield


@contextmanager
def _compiled(layer: nn.Module) -> Iterator[None]:
    plain = layer.forward
    own = vars(layer).get("forward")
    quick = torch.compile(plain, dynamic=True)

    @wraps(plain)
    def forward(*args: Any, **kwargs: Any) -> Any:
        # Generating and scoring would compile for many more shapes than they repay.
        trains = layer.training and torch.is_grad_enabled()
        return (quick if trains else plain)(*args, **kwargs)

    layer.forward = forward
    try:
        yield
    finally:
        if own is None:
            del layer.forward
        else:
            layer.forward = own


def compile_error(
    model: nn.Module,
    layers: Sequence[nn.Module],
    names: Iterable[str],
    batch: Mapping[str, Any],
    arithmetic: Arithmetic,
) -> float:
    """Return how much compiling `layers` changes the gradients of one batch, and compile them.

    Args:
        model: ready to train: `requires_grad` and dtypes as they will be.
        layers: of its decoder.
        names: of the parameters whose gradients are compared.
        batch: inputs with `labels`, on the model's device.
        arithmetic: what the pass computes in.

    Returns:
        The norm of the difference over all of them, relative to that of the plain gradients.

    Raises:
        UsageError: they can't be compiled here, as where a CPU has no C++ compiler beside it, or
            can't be compared: they draw what they drop, or the batch teaches nothing that trains.
        RuntimeError: too little memory.
    """
    if _drops(layers):
        raise _refused("layers with dropout, whose draws can't be compared")
    parameters = dict(model.named_parameters())
    chosen = [parameters[name] for name in names]
    trained = model.training
    model.train()
    try:
        plain = _gradients(model, chosen, batch, arithmetic)
        size = _norm(plain)
        if not size:
            raise _refused("first rows without a gradient for what trains, to compare by")
        try:
            with compiled_layers(layers):
                found = _gradients(model, chosen, batch, arithmetic)
        # Compilers, drivers and kernels each raise their own, and the plain pass before it ran.
        except Exception as error:
            if is_out_of_memory(error):
                raise
            told = next(iter(str(error).strip().splitlines()), "")
            raise _refused(
                f"{type(error).__name__}: {told}",
                "install what torch.compile needs (on a CPU a C++ compiler, such as g++), or ",
            ) from error
    finally:
        model.train(trained)
    return _norm([a - b for a, b in zip(found, plain, strict=True)]) / size


def _refused(found: str, do: str = "") -> UsageError:
    return UsageError("training.torch_compile", found, f"{do}leave torch_compile out")


def _drops(layers: Iterable[nn.Module]) -> bool:
    """Whether layers leave something out by chance while they train."""
    modules = [module for layer in layers for module in layer.modules()]
    shares = [module.p for module in modules if isinstance(module, nn.Dropout)]
    shares += [getattr(module, "attention_dropout", 0.0) for module in modules]
    return any(isinstance(share, float) and share > 0 for share in shares)


def _norm(tensors: Iterable[Tensor]) -> float:
    return float(torch.stack([tensor.double().norm() for tensor in tensors]).norm())


def _gradients(
    model: nn.Module, chosen: Sequence[nn.Parameter], batch: Mapping[str, Any], arithmetic: Any
) -> list[Tensor]:
    """Return the gradients of the mean loss; none are left in the model."""
    with autocast(arithmetic, chosen[0].device):
        summed, count = labelled_cross_entropy(model, batch)
    if summed.requires_grad:
        (summed / count).backward()
    found = [
        torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for parameter in chosen
    ]
    model.zero_grad(set_to_none=True)
    return found
