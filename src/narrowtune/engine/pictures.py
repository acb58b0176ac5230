"""The pictures of a batch, one by one.

Owns: how the inputs that pictures of several rows are joined to are taken apart again, and how two
pictures are found to be the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from narrowtune.models.fingerprint import tensor_sha256

PICTURE_INPUTS = ("pixel_values", "image_grid_thw", "image_sizes", "batch_num_images")
"""What models take pictures by."""


def pictures_apart(inputs: Mapping[str, Any]) -> list[dict[str, Tensor]] | None:
    """Return the inputs of each picture alone, in order.

    None where they can't be told apart: other inputs than `PICTURE_INPUTS` decide too, or a row has
    several pictures, each of which LLaVA-OneVision sees otherwise than alone.
    """
    rest = dict(inputs)
    pixels, grids = rest.pop("pixel_values", None), rest.pop("image_grid_thw", None)
    numbers, sizes = rest.pop("batch_num_images", None), rest.pop("image_sizes", None)
    several = numbers is not None and bool((numbers != 1).any())
    if rest or several or not isinstance(pixels, Tensor):
        return None
    if grids is not None:
        parts = pixels.split(grids.prod(-1).tolist())
        return [
            {"pixel_values": part, "image_grid_thw": grid[None]}
            for part, grid in zip(parts, grids, strict=True)
        ]
    found = []
    for number, picture in enumerate(pixels):
        own = {"pixel_values": _without_empty_tiles(picture)[None]}
        if sizes is not None:
            own["image_sizes"] = sizes[number][None]
        found.append(own)
    return found


def picture_sha256(picture: Mapping[str, Tensor]) -> str:
    """Return the hash of one of `pictures_apart`: equal only for the same pixels and sizes."""
    lines = "".join(f"{name} {tensor_sha256(picture[name])}\n" for name in sorted(picture))
    return hashlib.sha256(lines.encode()).hexdigest()


def _without_empty_tiles(picture: Tensor) -> Tensor:
    """Return a picture's tiles [K, C, H, W] without those, all zero, that fill up a batch.

    The model leaves them out by the picture's size; a black tile is not zero once it is normalised.
    """
    if picture.ndim < 4:
        return picture
    filled = picture.flatten(1).any(dim=1).nonzero()
    return picture[: int(filled.max()) + 1] if len(filled) else picture
