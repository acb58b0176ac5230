"""Decoder layers as compiled kernels while a model trains.

Beside its products a layer is some dozens of operations that each read and write all of [B, T, H].
`torch.compile` makes a few kernels of them. One layer is compiled, for any B and T, and serves all.
It costs half a minute or more on a CPU, so it is for runs of some hundred steps or more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import torch
from torch import nn

from narrowtune.core.errors import UsageError
from narrowtune.engine.passes import Pass, difference
from narrowtune.models.shortage import is_out_of_memory

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


def compile_error(layers: Iterable[nn.Module], run: Callable[[], Pass], plain: Pass) -> float:
    """Return how much compiling `layers` changes one pass, and compile them.

    Args:
        layers: of a decoder.
        run: computes the pass.
        plain: the same without compiled layers.

    Returns:
        The `difference` of the two.

    Raises:
        UsageError: they can't be compiled here, as where a CPU has no C++ compiler beside it.
        RuntimeError: too little memory.
    """
    try:
        with compiled_layers(layers):
            return difference(run(), plain)
    # Compilers, drivers and kernels each raise their own, and the plain pass before it ran.
    except Exception as error:
        if is_out_of_memory(error):
            raise
        told = next(iter(str(error).strip().splitlines()), "")
        raise refused(
            f"{type(error).__name__}: {told}",
            "install what torch.compile needs (on a CPU a C++ compiler, such as g++), or ",
        ) from error


def refused(found: str, do: str = "") -> UsageError:
    """Return what is said where layers can't be compiled, or can't be compared."""
    return UsageError("training.torch_compile", found, f"{do}leave torch_compile out")
