"""Attention by plain products, where torch's own kernel is slow: training in bf16 on a CPU.

torch 2.13's fused attention takes, backwards in bf16 on a CPU with matrix units, four times as long
as the products that it consists of, as long as rows are short. Forward and backward of 6 lines of
180 tokens, 9 heads: 23.5 ms fused, 5.6 ms by products; of 2 lines of 512 tokens 17.0 and 9.3; of
one of 1,024 tokens 29.7 and 43.3 (two cores, AMX).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

MOST_TOKENS = 512
"""Of a line: its square is held for the backward pass; beyond it the fused kernel is quicker."""

_NAME = "sdpa"


@contextmanager
def attention_by_products(enabled: bool) -> Iterator[None]:
    """Inside the block, a layout's rows attend by products where that is quicker.

    Around whole steps and not around forward passes: what is computed again in the backward pass
    has to be computed alike.

    Args:
        enabled: False leaves everything as it is.
    """
    if not enabled:
        yield
        return
    fused = ALL_ATTENTION_FUNCTIONS[_NAME]

    def choose(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        **others: Any,
    ) -> tuple[Tensor, Tensor | None]:
        if attention_mask is not None and not dropout and _is_quicker(query, key, attention_mask):
            return by_products(query, key, value, attention_mask, scaling), None
        found: tuple[Tensor, Tensor | None] = fused(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
        return found

    local = ALL_ATTENTION_FUNCTIONS._local_mapping
    before = dict(local)
    local[_NAME] = choose
    try:
        yield
    finally:
        local.clear()
        local.update(before)


def by_products(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None
) -> Tensor:
    """Return softmax(q kᵀ · scaling + mask) v, [B, L, H, D].

    Args:
        query: [B, H, L, D].
        key, value: [B, K, L, D]; H is a multiple of K, and heads share in order.
        mask: [B, 1, L, L], added to the scores. Every token has to see one.
        scaling: 1/√D unless given.
    """
    num_rows, num_heads, length, width = query.shape
    num_shared = key.shape[1]
    shape = (num_rows, num_shared, num_heads // num_shared, length, length)
    factor = width**-0.5 if scaling is None else scaling
    stacked = (query * factor).reshape(num_rows, num_shared, -1, width)
    scores = torch.matmul(stacked, key.transpose(-1, -2)).view(shape) + mask.unsqueeze(2)
    weights = scores.softmax(dim=-1).to(value.dtype).view(num_rows, num_shared, -1, length)
    mixed = torch.matmul(weights, value).view(query.shape)
    return mixed.transpose(1, 2).contiguous()


def _is_quicker(query: Tensor, key: Tensor, mask: Tensor) -> bool:
    kind = query.device.type
    return (
        kind == "cpu"
        and torch.is_autocast_enabled(kind)
        and torch.get_autocast_dtype(kind) == torch.bfloat16
        and torch.is_grad_enabled()
        and query.requires_grad
        # A layout's numbers, in which every token sees itself; not a mask of truth values.
        and mask.is_floating_point()
        and query.shape[2] == key.shape[2] <= MOST_TOKENS
    )
