"""Attention by plain products, where torch's own kernel is slow: training on a CPU.

torch 2.13's fused attention takes, backwards in bf16 on a CPU with matrix units, four times as long
as the products that it consists of, as long as rows are short. Forward and backward of 6 lines of
180 tokens, 9 heads: 23.5 ms fused, 5.6 ms by products; of 2 lines of 512 tokens 17.0 and 9.3; of
one of 1,024 tokens 29.7 and 43.3 (two cores, AMX). In fp32 with oneDNN's products 4 lines of 128
tokens, 3 heads, take 3.8 and 1.1 ms (two cores, AVX-512); with torch's own both take as long.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

MOST_TOKENS = 512
"""Of a line: its square is held for the backward pass; beyond it the fused kernel is quicker."""

AttentionKind = Literal["fused", "products"]

_Attend = Callable[..., tuple[Tensor, Tensor | None]]

_NAME = "sdpa"
_TRIED = (4, 128)
"""Rows and tokens of a layout on which both are timed."""
_REPEATS = 3
_MARGIN = 1.2
"""By which products must be quicker, since they hold a square for the backward pass."""
_MORE = ("position_bias", "softcap", "cache", "s_aux")
"""What changes the scores, or where keys are, if a model gives it."""


def attention_by_products(enabled: bool) -> AbstractContextManager[None]:
    """Inside the block, a layout's rows attend by products where that is quicker.

    Around whole steps and not around forward passes: what is computed again in the backward pass
    has to be computed alike.

    Args:
        enabled: False leaves everything as it is.
    """
    return _in_place_of_fused(_choosing) if enabled else nullcontext()


def attention_as_torch_has_it() -> AbstractContextManager[None]:
    """Inside the block, no attention is by products, whatever stands around the block."""
    return _in_place_of_fused(lambda attend: getattr(attend, "fused", attend))


def answering_by_torchs_products(enabled: bool) -> AbstractContextManager[None]:
    """Inside the block, fused attention of a model that answers multiplies by torch's own kernels.

    On a CPU in fp32. Where other products are oneDNN's (`float32_matmul_precision` medium), the
    fused kernel takes them for its small blocks too, and several times as long: 32 tokens, 8 rows,
    9 heads 1.2 ms in place of 0.3. A model that trains is left alone: its backward pass would
    multiply otherwise than its forward pass.

    Args:
        enabled: False leaves everything as it is.
    """
    return _in_place_of_fused(_by_torchs_own) if enabled else nullcontext()


@contextmanager
def _in_place_of_fused(make: Callable[[_Attend], _Attend]) -> Iterator[None]:
    """Have what is made of transformers' entry for fused attention stand there inside the block."""
    attend = make(ALL_ATTENTION_FUNCTIONS[_NAME])
    own = ALL_ATTENTION_FUNCTIONS._local_mapping
    before = own.get(_NAME)
    own[_NAME] = attend
    try:
        yield
    finally:
        if before is None:
            del own[_NAME]
        else:
            own[_NAME] = before


def _choosing(fused: _Attend) -> _Attend:
    """Return attention that is by products where that is exact and quicker, else `fused`."""

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
        # Training and not gradients: a teacher's pass without any computes as its student's does.
        plain = module.training and not dropout and all(others.get(name) is None for name in _MORE)
        if plain and attention_mask is not None and _is_quicker(query, key, attention_mask):
            return by_products(query, key, value, attention_mask, scaling), None
        return fused(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )

    choose.fused = fused  # type: ignore[attr-defined]
    return choose


def _by_torchs_own(fused: _Attend) -> _Attend:
    """Return `fused`, with torch's own products around it where a model answers on a CPU."""

    def attend(
        module: nn.Module, query: Tensor, *args: Any, **others: Any
    ) -> tuple[Tensor, Tensor | None]:
        if module.training or query.device.type != "cpu" or torch.compiler.is_compiling():
            return fused(module, query, *args, **others)
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            return fused(module, query, *args, **others)
        finally:
            torch.set_float32_matmul_precision(before)

    return attend


def quicker_attention(config: Any, dtype: torch.dtype) -> tuple[AttentionKind, str]:
    """Time one layer's attention on this CPU, forward and backward, in both ways.

    Args:
        config: of a language model.
        dtype: in which it will train; how fp32 is multiplied is as it is set now.

    Returns:
        The quicker, and what was measured, for people. Fused where the config doesn't say what a
        layer looks like.
    """
    heads = getattr(config, "num_attention_heads", None)
    hidden = getattr(config, "hidden_size", None)
    if not isinstance(heads, int) or not isinstance(hidden, int):
        return "fused", ""
    width = getattr(config, "head_dim", None) or hidden // heads
    rows, tokens = _TRIED
    draw = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(rows, heads, tokens, width, generator=draw).to(dtype).requires_grad_()
        for _ in range(3)
    )
    seen = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    mask = torch.zeros(rows, 1, tokens, tokens, dtype=dtype).masked_fill_(~seen, -torch.inf)
    ways: dict[AttentionKind, Callable[[], Tensor]] = {
        "fused": lambda: nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask
        ),
        "products": lambda: by_products(query, key, value, mask, None),
    }
    seconds = {way: _seconds(attend, (query, key, value)) for way, attend in ways.items()}
    told = ", ".join(f"{way} {1000 * taken:.1f} ms" for way, taken in seconds.items())
    chosen: AttentionKind = "products"
    if _MARGIN * seconds["products"] > seconds["fused"]:
        chosen = "fused"
    return chosen, f"attention {chosen} (a layer's: {told})"


def _seconds(attend: Callable[[], Tensor], inputs: tuple[Tensor, ...]) -> float:
    best = float("inf")
    for _ in range(_REPEATS):
        started = time.perf_counter()
        torch.autograd.grad(attend().sum(), inputs)
        best = min(best, time.perf_counter() - started)
    return best


def by_products(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None
) -> Tensor:
    """Return softmax(q kᵀ · scaling + mask) v, [B, L, H, E].

    What all keys of a row have in common adds the same to all scores of a query, which a softmax
    does not see. It is taken off before the product: scores are rounded to the dtype of the
    product, and large ones lose most.

    Args:
        query: [B, H, L, D].
        key, value: [B, K, L, D] and [B, K, L, E]; H is a multiple of K, and heads share in order.
        mask: [B, 1, L, L], added to the scores. Every token has to see one.
        scaling: 1/√D unless given.
    """
    num_rows, num_heads, length, width = query.shape
    num_shared = key.shape[1]
    shape = (num_rows, num_shared, num_heads // num_shared, length, length)
    factor = width**-0.5 if scaling is None else scaling
    stacked = (query * factor).reshape(num_rows, num_shared, -1, width)
    centred = key - key.float().mean(dim=2, keepdim=True).to(key.dtype)
    scores = torch.matmul(stacked, centred.transpose(-1, -2)).view(shape) + mask.unsqueeze(2)
    weights = scores.softmax(dim=-1).to(value.dtype).view(num_rows, num_shared, -1, length)
    mixed = torch.matmul(weights, value).view(num_rows, num_heads, length, -1)
    return mixed.transpose(1, 2).contiguous()


def _is_quicker(query: Tensor, key: Tensor, mask: Tensor) -> bool:
    kind = query.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
    return (
        kind == "cpu"
        and dtype in (torch.bfloat16, torch.float32)
        # A layout's numbers, in which every token sees itself; not a mask of truth values.
        and mask.is_floating_point()
        and mask.shape[1] == 1
        and query.shape[2] == key.shape[2] <= MOST_TOKENS
    )
