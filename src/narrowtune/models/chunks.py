"""Attention of vision towers that look at chunks: those of equal length at once.

Towers with dynamic resolution (Qwen2-VL and its successors) lay the patches of all pictures end to
end and attend within chunks: a picture, or a window of 8 x 8 patches. Without flash attention,
transformers calls its kernel once a chunk. For 8 pictures of 784 x 784 pixels that is 392 calls in
every layer with windows of a tower of Qwen2.5-VL's shape: 8.2 ms on an H200, where one call for all
takes 0.14 (docs/performance.md).

Owns: when and how chunks go through the kernel together.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "flash_chunks_by_sdpa"
"""Under which transformers finds it. A name with "flash" in it is given all chunks at once."""

_PLAIN = "sdpa"
_CALLS_SAVED = 16
"""On a GPU, launches of a kernel that must be saved for chunks of several lengths to be put in
order for it. On a CPU putting them in order takes longer than the calls."""


class _Together:
    """A tower's configuration as its layers see it, which attend to chunks at once.

    Everything but how they attend is the configuration's own, and that too where it isn't SDPA; so
    the model's configuration names nothing that only exists here, and changing it has effect.
    """

    def __init__(self, config: Any) -> None:
        self.plain = config

    def __getattr__(self, name: str) -> Any:
        if name == "plain":  # while this is being copied
            raise AttributeError(name)
        return getattr(self.plain, name)

    @property
    def _attn_implementation(self) -> Any:
        own = self.plain._attn_implementation
        return NAME if own == _PLAIN else own


def attend_to_chunks_together(model: nn.Module) -> int:
    """Have the towers of a model attend to chunks of equal length at once; return their layers.

    Only layers that are told where chunks end; they do where they attend by SDPA. Results are the
    same sums; on a GPU kernels may round them otherwise. For a whole model and run, and not for a
    while: what is computed again in a backward pass has to be computed alike.
    """
    layers = [module for module in model.modules() if _is_told_of_chunks(module)]
    seen: dict[int, Any] = {}
    for layer in layers:
        config = _config(layer)
        if not isinstance(config, _Together):
            layer.config = seen.setdefault(id(config), _Together(config))
    return len(layers)


def attend_chunk_by_chunk(model: nn.Module) -> None:
    """Take that back: a call of the kernel for each, as transformers has it."""
    for module in model.modules():
        config = _config(module)
        if isinstance(config, _Together):
            module.config = config.plain


@contextmanager
def chunk_by_chunk(model: nn.Module) -> Iterator[None]:
    """Inside the block, for comparisons: a call of the kernel for each chunk."""
    held = [module for module in model.modules() if isinstance(_config(module), _Together)]
    configs = [module.config for module in held]
    attend_chunk_by_chunk(model)
    try:
        yield
    finally:
        for module, config in zip(held, configs, strict=True):
            module.config = config


def _config(module: nn.Module) -> Any:
    return getattr(module, "config", None)


def _is_told_of_chunks(module: nn.Module) -> bool:
    if not hasattr(_config(module), "_attn_implementation"):
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
    lengths: list[int] = (cu_seq_lens_q[1:] - cu_seq_lens_q[:-1]).tolist()
    states = (query, key, value)

    def at_once(length: int, *tensors: Tensor) -> Tensor:
        """Return [tokens, H, D] of chunks [1, H, tokens, D] that are all as long."""
        stacked = [each[0].unflatten(1, (-1, length)).transpose(0, 1) for each in tensors]
        return plain(module, *stacked, attention_mask=None, **given)[0].flatten(0, 1)

    different = set(lengths)
    if len(different) == 1:
        return at_once(lengths[0], *states)[None], None
    if not _puts_in_order(query.device.type, lengths):
        split = (torch.split(each, lengths, dim=2) for each in states)
        parts = zip(*split, strict=True)
        seen = [plain(module, *part, attention_mask=None, **given)[0] for part in parts]
        return torch.cat(seen, dim=1), None
    order, back = (torch.from_numpy(each).to(query.device) for each in _by_length(tuple(lengths)))
    gathered = [each[:, :, order] for each in states]
    sizes = [length * lengths.count(length) for length in sorted(different)]
    blocks = zip(*(each.split(sizes, dim=2) for each in gathered), strict=True)
    found = [
        at_once(length, *block) for length, block in zip(sorted(different), blocks, strict=True)
    ]
    return torch.cat(found)[back][None], None


def _puts_in_order(kind: str, lengths: Sequence[int]) -> bool:
    """Whether chunks of several lengths go together on a kind of device."""
    return kind != "cpu" and len(lengths) - len(set(lengths)) >= _CALLS_SAVED


@lru_cache(maxsize=16)
def _by_length(lengths: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens in the order of their chunks' lengths, and where each token of old is then."""
    sizes = np.array(lengths)
    starts = np.cumsum(sizes) - sizes
    order = np.concatenate(
        [
            (starts[sizes == size][:, None] + np.arange(size)).ravel()
            for size in sorted(set(lengths))
        ]
    )
    return order, np.argsort(order)


ALL_ATTENTION_FUNCTIONS.register(NAME, _attend)
