"""One pass of a run computed in two ways: how far loss and gradients lie apart."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from narrowtune.engine.arithmetic import Arithmetic, autocast
from narrowtune.engine.forward import labelled_cross_entropy

MAX_ERROR = {"float32": 1e-4, "bfloat16": 0.2}
"""Difference up to which two ways count as the same computation, by what they compute in.

In bf16 plain layers differ from fp32's gradients by 3 to 4 per cent and compiled ones, which round
less often, by 2 to 3, so that they differ from each other by 4 to 5 (SmolLM2; docs/decisions/0033).
A kernel that computes something else, or a model that is deaf to a layout, differs by all of it.
"""


class Pass(NamedTuple):
    """The mean loss of a batch in nats per label, and its gradients."""

    loss: float
    gradients: list[Tensor]


def run_pass(
    model: nn.Module,
    chosen: Sequence[nn.Parameter],
    batch: Mapping[str, Any],
    arithmetic: Arithmetic,
) -> Pass:
    """Compute one pass in training mode; modes stay, and no gradient is left in the model.

    Args:
        model: ready to train: `requires_grad` and dtypes as they will be.
        chosen: its parameters whose gradients are wanted.
        batch: inputs with `labels`, on the model's device.
        arithmetic: what the pass computes in.

    Raises:
        RuntimeError: too little memory.
    """
    trained = model.training
    model.train()
    try:
        with autocast(arithmetic, chosen[0].device):
            summed, count = labelled_cross_entropy(model, batch)
        if summed.requires_grad:
            (summed / count).backward()
        gradients = [
            torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for parameter in chosen
        ]
    finally:
        model.zero_grad(set_to_none=True)
        model.train(trained)
    return Pass(float(summed.detach()) / count, gradients)


def difference(found: Pass, plain: Pass) -> float:
    """Return the relative difference of the losses or of all gradients, whichever is larger.

    Of gradients it is the norm of the difference over that of `plain`'s, which must not be 0.
    What is not finite is the largest number there is.
    """
    apart = norm(a - b for a, b in zip(found.gradients, plain.gradients, strict=True))
    losses = abs(found.loss - plain.loss) / max(abs(plain.loss), torch.finfo(torch.float32).tiny)
    largest = max(apart / norm(plain.gradients), losses)
    return largest if math.isfinite(largest) else sys.float_info.max


def norm(tensors: Iterable[Tensor]) -> float:
    """Return the norm of all of them together."""
    return float(torch.stack([tensor.double().norm() for tensor in tensors]).norm())


def draws(modules: Iterable[nn.Module]) -> bool:
    """Whether modules leave something out by chance while they train."""
    found = list(modules)
    shares = [module.p for module in found if isinstance(module, nn.Dropout)]
    # Many have a bare number, under names of their own, and call the function.
    shares += [value for module in found for name, value in vars(module).items() if "drop" in name]
    return any(isinstance(share, float) and share > 0 for share in shares)
