"""The pictures of a batch, one by one.

Owns: how the inputs that pictures of several rows are joined to are taken apart again, and how two
pictures are found to be the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from narrowtune.data.collate import TILE_MASK
from narrowtune.data.digest import tensor_sha256

PICTURE_INPUTS = (
    "pixel_values",
    "image_grid_thw",
    "image_sizes",
    "batch_num_images",
    TILE_MASK,
)
"""What models take pictures by."""

PICTURE_KINDS = "token_type_ids"
"""1 where a token is a picture's, given by processors of models whose pictures see themselves
whole, also what is behind."""


def pictures_apart(inputs: Mapping[str, Any], config: Any) -> list[dict[str, Tensor]] | None:
    """Return the inputs of each picture alone, in order.

    Args:
        inputs: what a batch's pictures are given by.
        config: of the model, whose settings say how many tiles a picture has.

    Tiles that are seen by themselves count as pictures.

    None where they can't be told apart: other inputs than `PICTURE_INPUTS` decide too, or a row has
    several pictures, each of which LLaVA-OneVision sees otherwise than alone.
    """
    rest = dict(inputs)
    pixels, grids = rest.pop("pixel_values", None), rest.pop("image_grid_thw", None)
    numbers, sizes = rest.pop("batch_num_images", None), rest.pop("image_sizes", None)
    masks = rest.pop(TILE_MASK, None)
    several = numbers is not None and bool((numbers != 1).any())
    if rest or several or not isinstance(pixels, Tensor):
        return None
    if grids is not None:
        parts = pixels.split(grids.prod(-1).tolist())
        return [
            {"pixel_values": part, "image_grid_thw": grid[None]}
            for part, grid in zip(parts, grids, strict=True)
        ]
    if masks is not None:
        rows = _rows_of_tiles(pixels, masks)
        return [
            {name: value[:, [number]] for name, value in row.items()}
            for row in rows
            for number in range(row[TILE_MASK].shape[1])
        ]
    found = []
    for number, picture in enumerate(pixels):
        own = {"pixel_values": picture[None]}
        if sizes is not None:
            if picture.ndim == 4:
                # Behind a picture's own tiles are those that fill up the batch.
                own["pixel_values"] = picture[None, : _num_tiles(sizes[number], config)]
            own["image_sizes"] = sizes[number][None]
        found.append(own)
    return found


def pictures_of_rows(
    inputs: Mapping[str, Any], places: Tensor, config: Any
) -> list[dict[str, Tensor]] | None:
    """Return the inputs of each row's pictures, for rows that have any, in order.

    Args:
        inputs: what a batch's pictures are given by.
        places: [B, T], true where a token stands for a part of a picture.
        config: of the model.

    None where they can't be told apart, or a row has several that are not tiles: pixels alone,
    each seen by itself and in as many places as any other.
    """
    tokens = [number for number in places.sum(dim=1).tolist() if number]
    pixels = inputs.get("pixel_values")
    if set(inputs) == {"pixel_values"} and isinstance(pixels, Tensor) and len(pixels):
        each, rest = divmod(sum(tokens), len(pixels))
        if rest or each == 0 or any(number % each for number in tokens):
            return None
        return [{"pixel_values": own} for own in pixels.split([n // each for n in tokens])]
    if TILE_MASK in inputs and isinstance(pixels, Tensor):
        pictures: list[dict[str, Tensor]] | None = _rows_of_tiles(pixels, inputs[TILE_MASK])
    else:
        pictures = pictures_apart(inputs, config)
    # As many pictures as rows with places for one: one in each.
    return pictures if pictures is not None and len(pictures) == len(tokens) else None


def pictures_in_rows(kinds: Tensor) -> Tensor:
    """Return the number of the picture that each token [B, T] is of, within its row; -1 for text.

    Neighbouring tokens of pictures are of one picture, as for the model.
    """
    is_picture = kinds == 1
    starts = is_picture & ~nn.functional.pad(is_picture, (1, 0))[:, :-1]
    return torch.where(is_picture, starts.cumsum(dim=1) - 1, -1)


def picture_sha256(picture: Mapping[str, Tensor]) -> str:
    """Return the hash of one of `pictures_apart`: equal only for the same pixels and sizes."""
    lines = "".join(f"{name} {tensor_sha256(picture[name])}\n" for name in sorted(picture))
    return hashlib.sha256(lines.encode()).hexdigest()


def _rows_of_tiles(pixels: Tensor, masks: Tensor) -> list[dict[str, Tensor]]:
    """Return each row's tiles [1, tiles, …] without those that fill up the batch behind them.

    By models those are known as zeros, and left out.
    """
    numbers = pixels.flatten(2).any(dim=2).sum(dim=1).tolist()
    return [
        {"pixel_values": row[None, :number], TILE_MASK: mask[None, :number]}
        for row, mask, number in zip(pixels, masks, numbers, strict=True)
    ]


def _num_tiles(size: Tensor, config: Any) -> int:
    """Return how many tiles a picture of this height and width has, the overview among them."""
    number: int = image_size_to_num_patches(
        size, config.image_grid_pinpoints, config.vision_config.image_size
    )
    return number


def picture_shift(model: nn.Module) -> Tensor | None:
    """Return how far the pictures of each row of the last batch moved its positions, [B, 1].

    Models with M-RoPE keep that (`rope_deltas`) and add it wherever a cache is handed in; None for
    others.
    """
    found = (getattr(module, "rope_deltas", None) for module in model.modules())
    shift: Tensor | None = next((each for each in found if each is not None), None)
    return shift


def set_picture_shift(model: nn.Module, shift: Tensor | None) -> None:
    """Have a batch that goes on from a cache moved so far; None drops that of an earlier batch.

    A shared beginning is of other rows than those that go on from it, and so are the rows that are
    left of a batch of those that it had.
    """
    for module in model.modules():
        if hasattr(module, "rope_deltas"):
            module.rope_deltas = shift  # type: ignore[assignment]


def picture_tokens(model: nn.Module) -> tuple[int, ...]:
    """Return the tokens that stand for pictures and videos; none for a model of text."""
    found = (getattr(model.config, name, None) for name in ("image_token_id", "video_token_id"))
    return tuple(token for token in found if isinstance(token, int))
