"""What a forward and backward pass computes, and what running for some time costs.

FLOPs are counted on the model's own operations with their real shapes, so a vision tower, a fused
projection, a tied head at labelled positions or a recipe's frozen matrices need no formula of
their own. Only matrix products count (the rest is below one per cent). For a decoder with P
parameters in its layers, of which p train, H in the head, a share r of positions labelled and
S = 2 x heads x head size x T per token and layer for attention, it comes to

    forward 2P + 2rH + S      backward 2P + 2p + 2rH + 2S

per token, less what no trained tensor lies before: the input's gradient of the first trained layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from narrowtune.core.config import CostSettings
from narrowtune.core.results import CostEstimate

_JOULES_PER_KWH = 3.6e6


class CountFlops(TorchFunctionMode):
    """Context manager that counts the floating-point operations of the matrix products inside it.

    Attributes:
        forward: operations executed; a multiplication and its addition are two.
        backward: operations that the backward pass of those would execute: as many again for each
            operand that needs a gradient. Attention's own recomputation is not counted.
        attention: what attention's scores and averages are of both.
        attention_square: what they would be if no half of a square was skipped.

    Causal attention without a mask counts half of the square, since kernels skip the other half.
    """

    def __init__(self) -> None:
        super().__init__()
        self.forward = 0
        self.backward = 0
        self.attention = 0
        self.attention_square = 0

    @property
    def total(self) -> int:
        """Forward and backward together."""
        return self.forward + self.backward

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run `func`, and count it if it is a matrix product."""
        named = dict(kwargs or {})
        result = func(*args, **named)
        name = getattr(func, "__name__", "")
        if name == "scaled_dot_product_attention":
            self._count_attention(*args, **named)
        elif name in _PRODUCTS:
            operands = [value for value in (*args, *named.values()) if isinstance(value, Tensor)]
            left, right = operands[_PRODUCTS[name] : _PRODUCTS[name] + 2]
            self._add(2 * result.numel() * _inner_size(name, left, right), left, right)
        return result

    def _add(self, flops: int, *operands: Tensor) -> None:
        self.forward += flops
        if torch.is_grad_enabled():
            self.backward += flops * sum(operand.requires_grad for operand in operands)

    def _count_attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **_: Any,
    ) -> None:
        scores = query.shape[:-1].numel() * key.shape[-2]
        square = 2 * scores * (query.shape[-1] + value.shape[-1])
        flops = square // (2 if is_causal else 1)
        learns = any(part.requires_grad for part in (query, key, value))
        passes = 3 if torch.is_grad_enabled() and learns else 1  # the backward pass is two
        self.forward += flops
        self.backward += (passes - 1) * flops
        self.attention += passes * flops
        self.attention_square += passes * square


_PRODUCTS = {
    "linear": 0,
    "matmul": 0,
    "__matmul__": 0,
    "mm": 0,
    "bmm": 0,
    "addmm": 1,
    "baddbmm": 1,
    "grouped_mm": 0,
    "_grouped_mm": 0,
    "conv1d": 0,
    "conv2d": 0,
    "conv3d": 0,
}
"""Operations that count, and the position of the first of the two operands."""


def _inner_size(name: str, left: Tensor, right: Tensor) -> int:
    """Return the length of the sum behind each output element."""
    if name.startswith("conv"):
        return right[0].numel()
    return left.shape[-1]


def estimate_cost(settings: CostSettings, seconds: float) -> CostEstimate | None:
    """Return what `seconds` of this machine cost, by the factors given; None if there are none.

    Energy is power x time, emissions energy x grid factor, money hours x hourly price plus
    energy x price per kWh. What lacks a factor stays None.
    """
    power = settings.power_watts
    energy = None if power is None else power * seconds / _JOULES_PER_KWH
    parts = []
    if settings.price_per_hour is not None:
        parts.append(settings.price_per_hour * seconds / 3600)
    if settings.price_per_kwh is not None and energy is not None:
        parts.append(settings.price_per_kwh * energy)
    if energy is None and not parts:
        return None
    factor = settings.co2_kg_per_kwh
    return CostEstimate(
        power_watts=power,
        energy_kwh=energy,
        co2_kg=None if energy is None or factor is None else energy * factor,
        money=sum(parts) if parts else None,
        currency=settings.currency if parts else None,
        source="given factors x time",
    )
