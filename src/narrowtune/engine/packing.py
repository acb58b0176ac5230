"""Rows laid out anew: no padding, and what they begin with only once.

Causal attention makes every state depend on nothing behind it, so rows that begin alike share the
states of that beginning, and rows laid end to end don't see each other under the right mask. The
sums are the same as row by row, up to rounding. Rows of text make one line; rows about the same
picture make one row, in which each question is a branch behind the picture.

Shapes: B rows of T tokens, padding included; G rows of L tokens in the layout (one for text).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from narrowtune.engine.pictures import PICTURE_INPUTS, pictures_apart

When = Literal["never", "cheaper", "always"]

_WHEN: ContextVar[When] = ContextVar("packing", default="cheaper")

_TEXT = {"input_ids", "attention_mask"}
_PROBED = 64  # pixels by which pictures are told apart before all of them are compared
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


class Layout(NamedTuple):
    """A batch laid out anew.

    Attributes:
        inputs: `input_ids` [G, L], `position_ids` [G, L] or [3, G, L], `attention_mask`
            [G, 1, L, L] (true where a token is seen), and what pictures are given by.
        mask: [G, L], the positions that were asked for.
        order: which of these, row by row, each position of the batch is; None where they come out
            in the batch's order.
    """

    inputs: dict[str, Tensor]
    mask: Tensor
    order: Tensor | None = None


def pack(model: nn.Module, inputs: Mapping[str, Any], mask: Tensor) -> Layout | None:
    """Lay the rows of a batch out anew, where that is exact and cheaper.

    Rows of text are laid end to end behind the beginning that they share; rows about the same
    picture become branches behind it (`_branches`).

    Args:
        model: the unwrapped model that will see it.
        inputs: `input_ids` and `attention_mask` [B, T], padded on the right.
        mask: [B, T] bool, positions whose logits are wanted. The shared beginning ends before the
            first of them, so that each row has its own.

    Returns:
        None where rows go through the model as they are: inside `packing("never")`, and where a
        layout would not be exact or not be cheaper. That is one row, pictures that no two rows
        share, other features, padding on the left, attention that is not SDPA or that reaches back
        fewer tokens than a row has, or rows so long and so different that the empty part of the
        layout's squares costs more than the padding.
    """
    if set(inputs) != _TEXT:
        return _branches(model, inputs, mask)
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
    return Layout(line, mask[kept][None])


def num_positions(model: nn.Module, inputs: Mapping[str, Any], mask: Tensor) -> int:
    """Return how many positions `model` computes for a batch: those of its layout, or B x T."""
    found = pack(model, inputs, mask)
    return mask.numel() if found is None else found.mask.numel()


def _kept_tokens(
    model: nn.Module, inputs: Mapping[str, Any], mask: Tensor
) -> tuple[Tensor, int] | None:
    """Return which tokens [B, T] make the line, and how many of the first row's all share."""
    if not _can_be_laid_out(model, inputs, mask):
        return None
    ids, valid = inputs["input_ids"], inputs["attention_mask"].bool()
    shared = _shared(ids, valid, mask)
    kept = valid.clone()
    kept[1:, :shared] = False
    tokens = int(kept.sum())
    return (kept, shared) if _pays(model, (1, tokens), ids.shape) else None


def _can_be_laid_out(model: nn.Module, inputs: Mapping[str, Any], mask: Tensor) -> bool:
    """Whether another layout of these rows, whichever it is, is allowed and exact."""
    ids, valid = inputs["input_ids"], inputs["attention_mask"].bool()
    num_rows, length = ids.shape
    if _WHEN.get() == "never" or num_rows < 2 or mask.shape != ids.shape:
        return False
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    if model.config._attn_implementation != "sdpa" or (window is not None and length > window):
        return False
    gaps = valid[:, 1:] & ~valid[:, :-1]
    return not bool(gaps.any()) and not bool((mask & ~valid).any()) and bool(mask.any())


def _shared(ids: Tensor, valid: Tensor, mask: Tensor) -> int:
    """Return how many tokens rows [B, T] begin with alike, none of them asked for."""
    alike = (ids == ids[:1]).all(dim=0) & valid.all(dim=0) & ~mask.any(dim=0)
    return int(alike.long().cumprod(dim=0).sum())


def _pays(model: nn.Module, layout: tuple[int, int], rows: tuple[int, int]) -> bool:
    """Whether a layout, as rows and their length, is cheaper than the rows as they are."""
    width = _LINEAR_WIDTH * model.config.get_text_config().hidden_size
    costs = [number * length * (width + length) for number, length in (layout, rows)]
    return _WHEN.get() == "always" or costs[0] < costs[1]


def _branches(model: nn.Module, inputs: Mapping[str, Any], mask: Tensor) -> Layout | None:
    """Lay rows that have one picture each out in one row per picture, each question a branch.

    What stands before the first difference, the picture among it, is computed once, and the picture
    goes through the tower once. Positions go on from there in every branch, in three axes for
    models whose rotary embedding has three. Rows without a picture stay rows of their own.

    Returns:
        None where no two rows share their picture and what is before it, or as `pack`.
    """
    known = {*_TEXT, *PICTURE_INPUTS, "mm_token_type_ids"}
    placeholder = getattr(model.config, "image_token_id", None)
    if placeholder is None or not set(inputs) <= known or not _can_be_laid_out(model, inputs, mask):
        return None
    ids, valid = inputs["input_ids"], inputs["attention_mask"].bool()
    given = {name: inputs[name] for name in PICTURE_INPUTS if name in inputs}
    pictures = pictures_apart(given, model.config)
    places = ids == placeholder
    pictured = places.any(dim=1).nonzero()[:, 0].tolist()
    # As many pictures as rows with places for one: one in each.
    if pictures is None or len(pictures) != len(pictured):
        return None
    groups = _groups(ids, places, dict(zip(pictured, pictures, strict=True)))
    if len(groups) == len(ids):
        return None
    starts = [_shared(ids[g], valid[g], mask[g]) if len(g) > 1 else 0 for g in groups]
    row, position, filled = _laid_out(groups, starts, valid)
    if not _pays(model, tuple(row.shape), tuple(ids.shape)):
        return None
    begins = torch.tensor(starts, device=ids.device)[:, None]
    seen = (row[:, :, None] == row[:, None, :]) | (position < begins)[:, None]
    seen &= (position[:, None, :] <= position[:, :, None]) & filled[:, None, :]
    # What fills a row up sees itself: a softmax over nothing is not a number, and would spread.
    seen |= torch.eye(row.shape[1], dtype=torch.bool, device=seen.device)
    asked = mask[row, position] & filled
    chosen = [pictured.index(group[0]) for group in groups if group[0] in pictured]
    laid = {
        # What fills a row up must not look like a picture.
        "input_ids": ids[row, position].masked_fill(~filled, int(placeholder == 0)),
        "attention_mask": seen[:, None],
        "position_ids": _positions(model, inputs)[..., row, position],
        **_joined(given, pictures, chosen),
    }
    return Layout(laid, asked, (row * ids.shape[1] + position)[asked].argsort())


def _groups(
    ids: Tensor, places: Tensor, pictures: Mapping[int, Mapping[str, Tensor]]
) -> list[list[int]]:
    """Return the rows that are alike up to their picture's end; one without is by itself.

    Tokens, sizes and some of the pixels are compared first, so that all pixels are looked at only
    where two pictures are likely the same.
    """
    alike: dict[Any, list[list[int]]] = {}
    for number in range(len(ids)):
        picture = pictures.get(number)
        if picture is None:
            alike[number] = [[number]]
            continue
        end = int(places[number].nonzero().max()) + 1
        pixels = picture["pixel_values"].flatten()
        some = pixels[:: max(1, len(pixels) // _PROBED)].tolist()
        sizes = [value.tolist() for name, value in picture.items() if name != "pixel_values"]
        key = (tuple(ids[number, :end].tolist()), str(sizes), tuple(some))
        groups = alike.setdefault(key, [])
        for group in groups:
            if torch.equal(pictures[group[0]]["pixel_values"], picture["pixel_values"]):
                group.append(number)
                break
        else:
            groups.append([number])
    return [group for groups in alike.values() for group in groups]


def _laid_out(
    groups: Sequence[Sequence[int]], starts: Sequence[int], valid: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each token [G, L] its row and place in the batch, and whether it is one at all."""
    kept = []
    for group, start in zip(groups, starts, strict=True):
        own = valid[list(group)].clone()
        own[1:, :start] = False
        place = own.nonzero()
        kept.append(torch.stack((torch.tensor(group).to(place)[place[:, 0]], place[:, 1])))
    length = max(part.shape[1] for part in kept)
    row, position = torch.stack(
        [torch.nn.functional.pad(part, (0, length - part.shape[1])) for part in kept], dim=1
    )
    sizes = torch.tensor([part.shape[1] for part in kept], device=row.device)
    return row, position, torch.arange(length, device=row.device) < sizes[:, None]


def _positions(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """Return the positions of a batch as the model would give them: [B, T], or [3, B, T]."""
    ids = inputs["input_ids"]
    if "image_grid_thw" not in inputs:
        return torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
    positions, _ = model.model.get_rope_index(
        ids,
        mm_token_type_ids=inputs["mm_token_type_ids"],
        image_grid_thw=inputs["image_grid_thw"],
        attention_mask=inputs["attention_mask"],
    )
    return positions  # type: ignore[no-any-return]


def _joined(
    given: Mapping[str, Tensor], pictures: Sequence[Mapping[str, Tensor]], chosen: Sequence[int]
) -> dict[str, Tensor]:
    """Return the inputs of the chosen pictures alone, joined as a batch has them."""
    if "image_grid_thw" in given:
        return {name: torch.cat([pictures[number][name] for number in chosen]) for name in given}
    return {name: value[list(chosen)] for name, value in given.items()}
