"""Gated MLPs that keep less for the backward pass.

`down(act(gate) * up)` as modules write it keeps the gate, the activated gate and `up`, each [B, T,
I]. The activated gate is made again from the gate, element by element, with the same kernels: the
gradients are the same bits, and a third of what a frozen MLP keeps is gone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from narrowtune.engine.last_layer import computes_as_written, decoder_layers

_FORM = "return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))"
"""What a module computes that may be computed here, in transformers' words."""

_WORDS = {_FORM, _FORM.replace("return ", "down_proj = ") + " return down_proj"}


class _Gated(torch.autograd.Function):
    """`activation(gate) * up`, of which the two operands are kept."""

    @staticmethod
    def forward(
        ctx: Any, gate: Tensor, up: Tensor, activation: Callable[[Tensor], Tensor]
    ) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return activation(gate) * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        gate, up = ctx.saved_tensors
        with torch.enable_grad():
            again = gate.detach().requires_grad_()
            activated = ctx.activation(again)
        (of_gate,) = torch.autograd.grad(activated, again, gradient * up)
        return of_gate, gradient * activated.detach(), None


@contextmanager
def keeping_operands(model: nn.Module) -> Iterator[None]:
    """Compute gated MLPs of the decoder inside the block so that they keep two tensors, not three.

    Nothing changes without gradients, nor where layers are compiled (kernels keep what they need)
    or computed a second time in the backward pass, after the block.
    """
    modules = _gated_modules(model) if torch.is_grad_enabled() else []
    for module in modules:
        module.forward = partial(_forward, module)
    try:
        yield
    finally:
        for module in modules:
            vars(module).pop("forward", None)


def _forward(module: Any, x: Tensor) -> Tensor:
    # Its own function: hooks that follow modules would meet it again in the backward pass.
    activation = getattr(module.act_fn, "forward", module.act_fn)
    gated: Tensor = _Gated.apply(module.gate_proj(x), module.up_proj(x), activation)
    output: Tensor = module.down_proj(gated)
    return output


def _gated_modules(model: nn.Module) -> list[nn.Module]:
    mlps: list[nn.Module | None] = [
        getattr(layer, "mlp", None) for layer in decoder_layers(model) if computes_as_written(layer)
    ]
    # A mixture of experts may have an MLP in it that all tokens go through.
    return [
        module
        for mlp in mlps
        if mlp is not None
        for module in mlp.modules()
        if computes_as_written(module) and _is_gated(type(module).forward)
    ]


@cache
def _is_gated(forward: Callable[..., Any]) -> bool:
    """Whether a module's `forward` computes `_FORM` and nothing else."""
    try:
        lines = inspect.getsource(forward).splitlines()
    except (OSError, TypeError):
        return False
    return " ".join(" ".join(lines[1:]).split()) in _WORDS
