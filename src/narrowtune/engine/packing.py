"""Rows laid out anew: no padding, and what several begin with only once.

Causal attention makes every state depend on nothing behind it, so rows that begin alike share the
states of that beginning, and rows laid end to end don't see each other under the right mask. The
sums are the same as row by row, up to rounding. Rows make a few lines (`engine.grouping`), in each
of which they form a tree: a system turn that all share, a picture or a question that some share, an
answer of each.

Shapes: B rows of T tokens, padding included; G lines of L tokens in the layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from narrowtune.engine.grouping import Groups, group_rows
from narrowtune.engine.padding import (
    attends_causally,
    is_masked,
    is_padded_right,
    relative_cost,
)
from narrowtune.engine.pictures import PICTURE_KINDS, pictures_in_rows

When = Literal["never", "cheaper", "always"]

_WHEN: ContextVar[When] = ContextVar("packing", default="cheaper")

_MARGIN = 1.05  # by which a layout must be cheaper: its masks have to be made
_ALIGNED = 8


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


def is_packing_allowed() -> bool:
    """Whether what is exact and quicker than rows as they come is taken here."""
    return _WHEN.get() != "never"


class Layout(NamedTuple):
    """A batch laid out anew.

    Attributes:
        inputs: `input_ids` [G, L], `position_ids` [G, L] or [3, G, L], `attention_mask`
            [G, 1, L, L] (true where a token is seen), and what pictures are given by.
        mask: [G, L], the positions that were asked for.
        order: which of these, row by row, each position of the batch is; some may be several.
    """

    inputs: dict[str, Tensor]
    mask: Tensor
    order: Tensor


def pack(model: nn.Module, inputs: Mapping[str, Any], mask: Tensor) -> Layout | None:
    """Lay the rows of a batch out anew, where that is exact and cheaper.

    What rows of a line begin with alike is there once, pictures too, and seen by the tower once.
    Positions go on from there in every branch, in three axes for models whose rotary embedding has
    three.

    Args:
        model: the unwrapped model that will see it.
        inputs: `input_ids` and `attention_mask` [B, T], padded on the right.
        mask: [B, T] bool, positions whose logits are wanted.

    Returns:
        None where rows go through the model as they are: inside `packing("never")`, and where a
        layout would not be exact or not be cheaper. That is one row, several pictures in a row
        that are seen together, other features, padding on the left, attention that is not SDPA or
        that reaches back fewer tokens than a row has, layers that don't attend, or rows so long and
        so different that the empty part of the layout's squares costs more than the padding.
    """
    groups = _group(model, inputs, mask, mask.device.type)
    if groups is None:
        return None
    ids, valid = inputs["input_ids"], inputs["attention_mask"].bool()
    row, position, filled = _laid_out(groups, valid)
    owner = _owners(groups, ids.shape[1]).to(ids.device)
    # What fills a row up must not look like a picture.
    placeholder = getattr(model.config, "image_token_id", None)
    laid = {
        "input_ids": ids[row, position].masked_fill(~filled, int(placeholder == 0)),
        "attention_mask": _seen(row, position, filled, owner, inputs.get(PICTURE_KINDS))[:, None],
        "position_ids": _positions(model, inputs)[..., row, position],
        **groups.pictures,
    }
    place = torch.zeros_like(ids)
    place[row[filled], position[filled]] = filled.flatten().nonzero()[:, 0]
    wanted = mask.nonzero()
    found = place[owner[wanted[:, 0], wanted[:, 1]].long(), wanted[:, 1]]
    asked = torch.zeros_like(filled).flatten().index_fill_(0, found, True).view_as(filled)
    return Layout(laid, asked, found.unique(return_inverse=True)[1])


def as_numbers(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a layout's mask as what is added to attention's scores: 0, and -inf where unseen.

    From a mask of truth values every layer makes such numbers of its own, and keeps them for the
    backward pass; these are made once. Rows begin at multiples of eight numbers, without which a
    GPU's kernel would copy them in every layer; and are never as wide as they are long, since a
    compiled layer would be compiled once more for those that are.
    """
    length = seen.shape[-1]
    width = (length // _ALIGNED + 1) * _ALIGNED
    room = torch.zeros((*seen.shape[:-1], width), dtype=dtype, device=seen.device)
    return room[..., :length].masked_fill_(~seen, -torch.inf)


class LayoutSize(NamedTuple):
    """What a model computes for a batch.

    Attributes:
        rows: G.
        length: L, so that it is G x L positions, padding included.
        rows_with_pictures: whose pictures go through the tower.
        masked: whether there is padding or a layout; without, half of attention's square is
            skipped.
    """

    rows: int
    length: int
    rows_with_pictures: int
    masked: bool

    @property
    def positions(self) -> int:
        """Positions of the language model."""
        return self.rows * self.length


def layout_size(
    model: nn.Module, inputs: Mapping[str, Any], mask: Tensor, kind: str | None = None
) -> LayoutSize:
    """Return what `model` computes for a batch: its layout's, or B x T positions.

    Args:
        model, inputs, mask: as for `pack`.
        kind: of the device on which it would; where the batch is, unless given.
    """
    kind = kind or mask.device.type
    groups = _group(model, inputs, mask, kind)
    if groups is not None:
        return LayoutSize(len(groups.rows), groups.length, groups.num_pictured, masked=True)
    ids = inputs["input_ids"]
    placeholder = getattr(model.config, "image_token_id", None)
    pictured = 0 if placeholder is None else int((ids == placeholder).any(dim=1).sum())
    rows, length = ids.shape
    return LayoutSize(rows, length, pictured, masked=_is_masked(model, inputs, kind))


def _is_masked(model: nn.Module, inputs: Mapping[str, Any], kind: str) -> bool:
    return is_masked(model.config, inputs, kind, bare=is_packing_allowed())


def _group(model: nn.Module, inputs: Mapping[str, Any], mask: Tensor, kind: str) -> Groups | None:
    """Share a batch's rows out over a layout, where there is one that is exact and pays."""
    if not _can_be_laid_out(model, inputs, mask):
        return None
    groups = group_rows(model, inputs, kind)
    if groups is None:
        return None
    config = model.config
    cost = relative_cost(config, len(groups.rows), groups.length, masked=True, kind=kind)
    rows, length = mask.shape
    plain = _is_masked(model, inputs, kind)
    pays = _MARGIN * cost < relative_cost(config, rows, length, masked=plain, kind=kind)
    return groups if pays or _WHEN.get() == "always" else None


def _owners(groups: Groups, length: int) -> Tensor:
    """Return whose token [B, T] each token of a row is: its own, or that of an earlier row."""
    # Two bytes each: of these, a mask's square is gathered.
    owner = torch.zeros(sum(map(len, groups.rows)), length, dtype=torch.int16)
    for rows, starts in zip(groups.rows, groups.starts, strict=True):
        for before, row, start in zip([rows[0], *rows], rows, starts, strict=False):
            owner[row] = row
            owner[row, :start] = owner[before, :start]
    return owner


def _seen(
    row: Tensor, position: Tensor, filled: Tensor, owner: Tensor, kinds: Tensor | None
) -> Tensor:
    """Return which token [G, L, L] sees which: those before it that are its row's.

    Args:
        row, position, filled: [G, L], from `_laid_out`.
        owner: [B, T], from `_owners`.
        kinds: [B, T], where pictures see themselves whole (`PICTURE_KINDS`).
    """
    seen = owner[row[:, :, None], position[:, None, :]] == row.to(owner.dtype)[:, None, :]
    allowed = position[:, None, :] <= position[:, :, None]
    if kinds is not None:
        block = pictures_in_rows(kinds)[row, position]
        allowed |= (block[:, None, :] == block[:, :, None]) & (block >= 0)[:, None, :]
    seen &= allowed & filled[:, None, :]
    # What fills a row up sees itself: a softmax over nothing is not a number, and would spread.
    return seen | torch.eye(row.shape[1], dtype=torch.bool, device=seen.device)


def _can_be_laid_out(model: nn.Module, inputs: Mapping[str, Any], mask: Tensor) -> bool:
    """Whether another layout of these rows, whichever it is, is allowed and exact."""
    if "attention_mask" not in inputs:  # rows that are given without one are all tokens
        return False
    ids, valid = inputs["input_ids"], inputs["attention_mask"].bool()
    num_rows, length = ids.shape
    if _WHEN.get() == "never" or num_rows < 2 or mask.shape != ids.shape:
        return False
    config: Any = model.config
    text = config.get_text_config()
    window = getattr(text, "sliding_window", None)
    if not attends_causally(text):
        return False
    if config._attn_implementation != "sdpa" or (window is not None and length > window):
        return False
    outside = bool((mask & ~valid).any())
    return is_padded_right(valid) and not outside and bool(mask.any())


def _laid_out(groups: Groups, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each token [G, L] its row and place in the batch, and whether it is one at all."""
    tokens = valid.sum(dim=1).tolist()
    row, position = torch.zeros(2, len(groups.rows), groups.length, dtype=torch.long)
    filled = torch.zeros_like(row, dtype=torch.bool)
    for line, (rows, starts) in enumerate(zip(groups.rows, groups.starts, strict=True)):
        own = [(number, start, tokens[number]) for number, start in zip(rows, starts, strict=True)]
        places = torch.cat([torch.arange(start, end) for _, start, end in own])
        row[line, : len(places)] = torch.repeat_interleave(
            torch.tensor(rows), torch.tensor([end - start for _, start, end in own])
        )
        position[line, : len(places)] = places
        filled[line, : len(places)] = True
    return row.to(valid.device), position.to(valid.device), filled.to(valid.device)


def _positions(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """Return the positions of a batch as the model would give them: [B, T], or [3, B, T]."""
    ids = inputs["input_ids"]
    if "image_grid_thw" not in inputs:
        return torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
    inner: Any = model.model
    positions: Tensor
    positions, _ = inner.get_rope_index(
        ids,
        mm_token_type_ids=inputs["mm_token_type_ids"],
        image_grid_thw=inputs["image_grid_thw"],
        attention_mask=inputs["attention_mask"],
    )
    return positions
