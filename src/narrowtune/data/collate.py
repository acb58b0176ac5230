"""Encoded rows become one batch of tensors.

Owns: `Encoded`, padding, and how each family's picture features are joined. B rows, T tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from narrowtune.core.errors import DataError
from narrowtune.data.digest import tensor_sha256

IGNORE_INDEX = -100
"""The label of a token that carries no loss."""

TILE_MASK = "pixel_attention_mask"
"""Which pixels of tiles are a picture's: pictures x tiles x height x width."""

PER_TOKEN_FEATURES = ("mm_token_type_ids", "token_type_ids")
"""Features with one value per token, which are padded like tokens; 0 is text."""


@dataclass(frozen=True)
class Encoded:
    """One row as tokens.

    Attributes:
        input_ids: T token ids, picture placeholders already as many as the model needs.
        labels: T values, the token's id where it carries loss, else `IGNORE_INDEX`.
        features: what else the model takes, with the row's pictures along dimension 0
            (`pixel_values`, `image_sizes`, `image_grid_thw`, …) or [T] per token.
    """

    input_ids: list[int]
    labels: list[int]
    features: dict[str, Tensor] = field(default_factory=dict)

    @cached_property
    def picture_digest(self) -> str:
        """Hash of the row's pictures; empty where it has none."""
        given = {n: value for n, value in self.features.items() if n not in PER_TOKEN_FEATURES}
        if not given:
            return ""
        lines = "".join(f"{name} {tensor_sha256(given[name])}\n" for name in sorted(given))
        return hashlib.sha256(lines.encode()).hexdigest()


def padding_id(tokenizer: Any) -> int:
    """Return an id to pad with: the tokenizer's own, else its end of text, else 0.

    Which one does not matter: padding is masked and never labelled.
    """
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


def collate(
    batch: Sequence[Encoded], pad_token_id: int, *, padding_side: str = "right"
) -> dict[str, Tensor]:
    """Pad rows to one length and join their pictures.

    Args:
        batch: B rows. Rows with and without pictures may be mixed.
        pad_token_id: any id that the model knows; the mask hides it and its labels are ignored.
        padding_side: "right" for training, "left" for generation.

    Returns:
        `input_ids`, `attention_mask` and `labels` [B, T], per-token features [B, T], and picture
        features joined along dimension 0 in the order of the rows. 5-D `pixel_values` (pictures ×
        tiles) are padded with empty tiles, as the processors do; the model leaves them out by
        `image_sizes`.

    Raises:
        DataError: pictures of the batch have sizes that can't be joined.
    """
    assert batch, "a batch has at least one row"
    assert padding_side in ("right", "left")
    length = max(len(row.input_ids) for row in batch)
    result = {
        "input_ids": _pad([row.input_ids for row in batch], length, pad_token_id, padding_side),
        "attention_mask": _pad(
            [[1] * len(row.input_ids) for row in batch], length, 0, padding_side
        ),
        "labels": _pad([row.labels for row in batch], length, IGNORE_INDEX, padding_side),
    }
    # Asked for once a row: where there is no room, its pictures are prepared for every answer.
    features = [row.features for row in batch]
    for name in dict.fromkeys(name for own in features for name in own):
        if name in PER_TOKEN_FEATURES:
            rows = [
                _per_token(own, name, len(row.input_ids))
                for own, row in zip(features, batch, strict=True)
            ]
            result[name] = _pad(rows, length, 0, padding_side)
        else:
            result[name] = join_pictures(name, [own[name] for own in features if name in own])
    return result


def _pad(rows: Sequence[Sequence[int]], length: int, value: int, side: str) -> Tensor:
    padded = torch.full((len(rows), length), value, dtype=torch.long)
    for index, row in enumerate(rows):
        start = 0 if side == "right" else length - len(row)
        padded[index, start : start + len(row)] = torch.tensor(row, dtype=torch.long)
    return padded


def _per_token(features: Mapping[str, Tensor], name: str, length: int) -> list[int]:
    """Values of one row; tokens that a caller has appended (an answer) are text."""
    known = features[name].flatten().tolist() if name in features else []
    return known + [0] * (length - len(known))


def check_pictures(rows: Iterable[Encoded]) -> None:
    """Make sure that any of `rows` can be in one batch with any other.

    Raises:
        DataError: pictures have sizes that can't be joined.
    """
    shapes: dict[str, list[torch.Size]] = {}
    for row in rows:
        for name, value in row.features.items():
            if name not in PER_TOKEN_FEATURES:
                shapes.setdefault(name, []).append(value.shape)
    for name, known in shapes.items():
        _check_sizes(name, known)


def join_pictures(name: str, values: Sequence[Tensor]) -> Tensor:
    """Return picture features of several rows, or of several batches, in their order.

    Raises:
        DataError: pictures have sizes that can't be joined.
    """
    _check_sizes(name, [value.shape for value in values])
    if _has_tiles(name, values[0].ndim):
        most = max(value.shape[1] for value in values)
        values = [_add_tiles(value, most) for value in values]
    return torch.cat(list(values))


def _has_tiles(name: str, num_dimensions: int) -> bool:
    return num_dimensions == 5 or name == TILE_MASK


def _check_sizes(name: str, whole: Sequence[torch.Size]) -> None:
    # Tiles are filled up; of a picture without them, every dimension counts.
    first = 2 if _has_tiles(name, len(whole[0])) else 1
    shapes = {tuple(shape[first:]) for shape in whole}
    if len(shapes) > 1:
        raise DataError(
            asked=f"one batch of rows with pictures ({name})",
            found="pictures of sizes that can't be joined: "
            + ", ".join(str(list(shape)) for shape in sorted(shapes)[:8]),
            do="use an image processor that gives every picture one size, pictures of one size, or "
            "(without an anchor) a batch size of 1",
        )


def _add_tiles(value: Tensor, most: int) -> Tensor:
    empty = value.new_zeros((value.shape[0], most - value.shape[1], *value.shape[2:]))
    return torch.cat([value, empty], dim=1)
