"""Attention of vision towers that look at chunks: those of equal length at once.

Towers with dynamic resolution (Qwen2-VL and its successors) lay the patches of all pictures
end to end and attend within chunks: a picture, or a window of 8 x 8 patches. Without flash
attention, transformers calls its kernel once a chunk. For 8 pictures of 784 x 784 pixels that is
392 calls in every layer with windows of a tower of Qwen2.5-VL's shape: 8.2 ms on an H200, where one
call for all takes 0.14 (docs/performance.md).

Owns: when and how chunks go through the kernel together.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "flash_chunks_by_sdpa"
"""Under which transformers finds it. A name with "flash" in it is given all chunks at once."""

_PLAIN = "sdpa"

_TOGETHER: ContextVar[bool] = ContextVar("chunks_together", default=True)


@contextmanager
def chunk_by_chunk(enabled: bool) -> Iterator[None]:
    """Inside the block, chunks go through the kernel one by one, as transformers has them."""
    token = _TOGETHER.set(not enabled)
    try:
        yield
    finally:
        _TOGETHER.reset(token)


def attend_to_chunks_together(model: nn.Module) -> int:
    """Have the towers of a model attend to chunks of equal length at once; return their layers.

    Only layers that are told where chunks end, and that attend by SDPA. Results are the same sums;
    on a GPU kernels may round them otherwise.
    """
    layers = [module for module in model.modules() if _is_told_of_chunks(module)]
    for layer in layers:
        # A tower's layers have one configuration, which is not the language model's.
        config: Any = layer.config
        config._attn_implementation = NAME
    return len(layers)


def _is_told_of_chunks(module: nn.Module) -> bool:
    config: Any = getattr(module, "config", None)
    if getattr(config, "_attn_implementation", None) not in (_PLAIN, NAME):
        return False
    return "cu_seqlens" in inspect.signature(module.forward).parameters


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    cu_seq_lens_q: Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend within chunks, every token to its whole chunk.

    Args:
        module: the layer.
        query, key, value: [1, H, P, D].
        attention_mask: None.
        cu_seq_lens_q: [chunks + 1], where chunks begin, and P.
        scaling, dropout: as everywhere.

    Returns:
        [1, P, H, D], and None in place of weights.
    """
    plain = ALL_ATTENTION_FUNCTIONS[_PLAIN]
    given = {"scaling": scaling, "dropout": dropout, "is_causal": False}
    lengths = (cu_seq_lens_q[1:] - cu_seq_lens_q[:-1]).tolist()
    if not _TOGETHER.get():
        split = [torch.split(each, lengths, dim=2) for each in (query, key, value)]
        parts = zip(*split, strict=True)
        seen = [plain(module, *part, attention_mask=None, **given)[0] for part in parts]
        return torch.cat(seen, dim=1), None

    def at_once(length: int, *tensors: Tensor) -> Tensor:
        """Return [tokens, H, D] of chunks [1, H, tokens, D] that are all as long."""
        stacked = [each[0].unflatten(1, (-1, length)).transpose(0, 1) for each in tensors]
        return plain(module, *stacked, attention_mask=None, **given)[0].flatten(0, 1)

    if len(set(lengths)) == 1:
        return at_once(lengths[0], query, key, value)[None], None
    by_length: dict[int, list[int]] = {}
    ends = 0
    for length in lengths:
        by_length.setdefault(length, []).extend(range(ends, ends + length))
        ends += length
    by_length.pop(0, None)
    found = []
    for length, tokens in by_length.items():
        chosen = torch.tensor(tokens, device=query.device)
        found.append(at_once(length, *(each[:, :, chosen] for each in (query, key, value))))
    order = torch.tensor([token for tokens in by_length.values() for token in tokens])
    return torch.cat(found)[order.argsort().to(query.device)][None], None


ALL_ATTENTION_FUNCTIONS.register(NAME, _attend)
