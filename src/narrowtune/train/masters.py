"""The dtype that each parameter has while training: fp32 masters for what trains, only there.

At fine-tuning rates a bf16 weight swallows about nine Adam-sized steps in ten, so the selected
parameters are held in fp32. A frozen bf16 parameter never changes and stays as it is; where the
machine computes faster in fp32, it is widened for the run, which is exact, and narrowed after.
Buffers (rotary tables and the like) keep their own dtype throughout.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@torch.no_grad()
def set_parameter_dtype(model: nn.Module, dtype: torch.dtype, names: Iterable[str] | None) -> None:
    """Hold the parameters called `names` (all, if None) in `dtype`; ties stay tied.

    A parameter that already has the dtype is not copied.
    """
    chosen = None if names is None else set(names)
    for name, parameter in model.named_parameters():
        if (chosen is None or name in chosen) and parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)


@torch.no_grad()
def copy_tensors(
    model: nn.Module, names: Iterable[str], dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Return copies of the parameters called `names`, on the CPU, in `dtype` or else their own."""
    chosen = set(names)
    return {
        name: parameter.detach().to("cpu", dtype or parameter.dtype, copy=True)
        for name, parameter in model.named_parameters()
        if name in chosen
    }


def layer_norm_names(model: nn.Module) -> list[str]:
    """Return the names of LayerNorm parameters (those of vision towers, as a rule).

    On a CPU they can't be narrower than their input, which is fp32 wherever something fp32 that
    trains comes before them: while training in bf16 they are held in fp32.
    """
    return [
        f"{path}.{name}"
        for path, module in model.named_modules()
        if isinstance(module, nn.LayerNorm)
        for name, _ in module.named_parameters(recurse=False)
    ]


@contextmanager
def computing_in(
    model: nn.Module, dtype: torch.dtype, names: Iterable[str] | None = None
) -> Iterator[None]:
    """Hold the parameters called `names` (all, if None) in `dtype` inside the block, not after it.

    Widening bf16 to fp32 and narrowing it again is exact, so the weights come back bit for bit
    unless the block trained them.
    """
    before = {name: parameter.dtype for name, parameter in model.named_parameters()}
    set_parameter_dtype(model, dtype, names)
    try:
        yield
    finally:
        for name, parameter in model.named_parameters():
            if parameter.dtype != before[name]:
                parameter.data = parameter.data.to(before[name])
