"""Passes in fp64 throughout: what a model computes in fp32 whatever its dtype, too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class InFp64(TorchFunctionMode):
    """Inside the block fp32 is fp64: norms, rotary turns and softmaxes ask for it by name."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call `func` with every fp32 that is asked for widened."""
        wide = [_wide(value) for value in args]
        named = {name: _wide(value) for name, value in (kwargs or {}).items()}
        return (Tensor.double if func is Tensor.float else func)(*wide, **named)


def _wide(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


def in_dtype(model: Any, dtype: torch.dtype) -> Any:
    """Return `model` in `dtype`; experts expert by expert in fp64, for which no kernel is."""
    if dtype == torch.float64 and any(".experts." in name for name, _ in model.named_parameters()):
        model.set_experts_implementation("eager")
    return model.to(dtype)


def difference(found: dict[str, Tensor], plain: dict[str, Tensor]) -> float:
    """‖difference‖ / ‖plain‖, of the parameter of which that is largest.

    Those without a gradient to speak of, such as biases of keys, count by all of them.
    """
    assert found.keys() == plain.keys()
    all_of_them = torch.stack([gradient.norm() for gradient in plain.values()]).norm()
    assert all_of_them > 0
    return max(
        float((found[name] - gradient).norm() / gradient.norm().clamp_min(1e-3 * all_of_them))
        for name, gradient in plain.items()
    )


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Return the gradients of `loss` by name; none are left in the model."""
    model.zero_grad()
    loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found
