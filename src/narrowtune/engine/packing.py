"""Rows in one line: no padding, and what they all begin with only once.

Causal attention makes every state depend on nothing behind it, so rows that begin alike share the
states of that beginning, and rows laid end to end don't see each other under the right mask. The
sums are the same as row by row, up to rounding; the positions that are asked for come out in the
same order.

Shapes: B rows of T tokens, padding included; L tokens in the line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

When = Literal["never", "cheaper", "always"]

_WHEN: ContextVar[When] = ContextVar("packing", default="cheaper")

_TEXT = {"input_ids", "attention_mask"}
_LINEAR_WIDTH = 6
"""A layer's products with weights cost a token about as much as attending to this many times the
hidden size in tokens: some 12 h² weights against 2 h per token attended to."""


@contextmanager
def packing(when: When) -> Iterator[None]:
    """Pack rows inside the block where it is exact: never, where it is cheaper, or always.

    Outside it is as before; the default is where it is cheaper.
    """
    token = _WHEN.set(when)
    try:
        yield
    finally:
        _WHEN.reset(token)


class Line(NamedTuple):
    """A batch as one row.

    Attributes:
        inputs: `input_ids` and `position_ids` [1, L], `attention_mask` [1, 1, L, L] (true where a
            token is seen).
        mask: [1, L], the positions that were asked for.
    """

    inputs: dict[str, Tensor]
    mask: Tensor


def pack(model: nn.Module, inputs: Mapping[str, Any], mask: Tensor) -> Line | None:
    """Lay the rows of a batch end to end behind the beginning that they share.

    Args:
        model: the unwrapped model that will see it.
        inputs: `input_ids` and `attention_mask` [B, T], padded on the right.
        mask: [B, T] bool, positions whose logits are wanted. The shared beginning ends before the
            first of them, so that each row has its own.

    Returns:
        None where rows go through the model as they are: inside `packing("never")`, and where a
        line would not be exact or not be cheaper. That is one row, pictures or other features,
        padding on the left, attention that is not SDPA or that reaches back fewer tokens than a row
        has, or rows so long and so different that the empty part of the line's square costs more
        than the padding.
    """
    found = _kept_tokens(model, inputs, mask)
    if found is None:
        return None
    kept, shared = found
    row, position = kept.nonzero(as_tuple=True)
    seen = (row[:, None] == row) | (position < shared)
    seen &= position <= position[:, None]
    line = {
        "input_ids": inputs["input_ids"][kept][None],
        "position_ids": position[None],
        "attention_mask": seen[None, None],
    }
    return Line(line, mask[kept][None])


def num_positions(model: nn.Module, inputs: Mapping[str, Any], mask: Tensor) -> int:
    """Return how many positions `model` computes for a batch: those of its line, or B x T."""
    found = _kept_tokens(model, inputs, mask)
    return mask.numel() if found is None else int(found[0].sum())


def _kept_tokens(
    model: nn.Module, inputs: Mapping[str, Any], mask: Tensor
) -> tuple[Tensor, int] | None:
    """Return which tokens [B, T] make the line, and how many of the first row's all share."""
    if _WHEN.get() == "never" or set(inputs) != _TEXT:
        return None
    ids, valid = inputs["input_ids"], inputs["attention_mask"].bool()
    num_rows, length = ids.shape
    if num_rows < 2 or mask.shape != ids.shape:
        return None
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    if model.config._attn_implementation != "sdpa" or (window is not None and length > window):
        return None
    gaps = valid[:, 1:] & ~valid[:, :-1]
    if bool(gaps.any()) or bool((mask & ~valid).any()) or not bool(mask.any()):
        return None
    alike = (ids == ids[:1]).all(dim=0) & valid.all(dim=0) & ~mask.any(dim=0)
    shared = int(alike.long().cumprod(dim=0).sum())
    kept = valid.clone()
    kept[1:, :shared] = False
    if _WHEN.get() == "always":
        return kept, shared
    tokens = int(kept.sum())
    width = _LINEAR_WIDTH * model.config.get_text_config().hidden_size
    if tokens * (width + tokens) >= num_rows * length * (width + length):
        return None
    return kept, shared
