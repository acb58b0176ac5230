"""How a reference model sees pictures that all have the same size, by architecture.

Owns: from pixels to what the language model is given, and where the visual tokens stand.

Shapes: B pictures, S their side in pixels, H the width of the language model, V visual tokens, of
which G x G cover the picture.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

See = Callable[[PreTrainedModel, Tensor, bool], Tensor]
"""From pixels [B, 3, S, S] to visual tokens [B, V, H]; without an overview if told so."""


def normalise(pixels: Tensor) -> Tensor:
    """Return pixels of 0 to 255 as the processors scale them, to −1 to 1."""
    return pixels.float() / 127.5 - 1


def see_llava_onevision(model: PreTrainedModel, pixels: Tensor, whole: bool = True) -> Tensor:
    """Return the projected overview, then the tiles side by side with the end of each row marked.

    Of the tiles' tokens each four neighbours are averaged, as `anyres_max_1` has it, so that tiles
    and overview have as many. The tower's last layer is taken before its norm.

    Args:
        whole: False leaves the overview out.
    """
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    tile, patch = tower.config.image_size, tower.config.patch_size
    num_pictures, num_channels, size, _ = pixels.shape
    cut, side = size // tile, tile // patch
    tiles = pixels.view(num_pictures, num_channels, cut, tile, cut, tile)
    tiles = tiles.permute(0, 2, 4, 1, 3, 5).reshape(-1, num_channels, tile, tile)
    if whole:
        overview = functional.interpolate(pixels, (tile, tile), mode="bicubic", antialias=True)
        tiles = torch.cat((overview, tiles))
    features = projector(_look(tower, normalise(tiles)))
    width = features.shape[-1]
    above = features[: num_pictures if whole else 0]
    grid = features[len(above) :].view(num_pictures, cut, cut, side, side, width)
    grid = grid.transpose(2, 3).reshape(num_pictures, side, cut, side, cut, width).mean(dim=(2, 4))
    newline = model.model.image_newline.expand(num_pictures, side, 1, width)
    rows = torch.cat((grid, newline.to(grid)), dim=2).flatten(1, 2)
    return torch.cat((above, rows), dim=1) if whole else rows


def _look(tower: Any, pixels: Tensor) -> Tensor:
    """Return a SigLIP tower's last states, of patches that don't overlap."""
    patch, embeddings = tower.config.patch_size, tower.embeddings
    num_tiles, num_channels, size, _ = pixels.shape
    side = size // patch
    patches = pixels.view(num_tiles, num_channels, side, patch, side, patch)
    patches = patches.permute(0, 2, 4, 1, 3, 5).reshape(num_tiles, side * side, -1)
    # One product in place of the convolution, as below.
    kernel = embeddings.patch_embedding
    states = functional.linear(patches, kernel.weight.flatten(1), kernel.bias)
    # What blocks add up stays in fp32 under autocast.
    states = states.float() + embeddings.position_embedding.weight
    found: Tensor = tower.encoder(inputs_embeds=states).last_hidden_state
    return found


def see_qwen2_5_vl(model: PreTrainedModel, pixels: Tensor, whole: bool = True) -> Tensor:
    """Return each four patches as one visual token; there is no overview to leave out."""
    tower = model.model.visual
    merge, patch = tower.spatial_merge_size, tower.patch_size
    num_pictures, num_channels, size, _ = pixels.shape
    side = size // patch
    blocks = normalise(pixels).view(
        num_pictures, num_channels, side // merge, merge, patch, side // merge, merge, patch
    )
    # Patches in the order in which they are merged; a still picture is two equal frames.
    patches = blocks.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6)
    patches = patches.expand(*patches.shape[:6], tower.config.temporal_patch_size, patch, patch)
    # What blocks add up stays in fp32 under autocast, as in a SigLIP tower.
    # One product does what the convolution does to patches that don't overlap; going back, a CPU
    # takes half of a step for the convolution.
    kernel = tower.patch_embed.proj.weight.flatten(1)
    states = functional.linear(patches.reshape(num_pictures * side * side, -1), kernel).float()
    places = torch.arange(side).view(side // merge, merge)
    rows = places[:, None, :, None].expand(-1, side // merge, -1, merge).flatten()
    columns = places[None, :, None, :].expand(side // merge, -1, merge, -1).flatten()
    turns = tower.rotary_pos_emb(states, torch.stack((rows, columns), dim=-1))
    states = states.view(num_pictures, side * side, -1)
    for block in tower.blocks:
        states = states + _attend(block.attn, block.norm1(states), turns)
        states = states + block.mlp(block.norm2(states))
    merged: Tensor = tower.merger(states.reshape(num_pictures * side * side, -1))
    return merged.view(num_pictures, (side // merge) ** 2, -1)


def _attend(attention: Any, states: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Attend within each picture: what the module does picture by picture, in one product."""
    num_pictures, num_patches, size = states.shape
    heads = attention.qkv(states).view(num_pictures, num_patches, 3, attention.num_heads, -1)
    query, key, value = heads.unbind(2)
    query, key = apply_rotary_pos_emb_vision(query, key, *turns)
    found = functional.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2).to(query)
    )
    return attention.proj(found.transpose(1, 2).reshape(num_pictures, num_patches, size))


def covering(model: PreTrainedModel, looked: Tensor) -> Tensor:
    """Return the visual tokens that cover the picture row by row: [B, G * G, H].

    For LLaVA-OneVision those of the tiles, which may have an overview before them. Their ends of
    rows are left out.

    Args:
        looked: [B, V, H], all visual tokens or their states.
    """
    if model.config.model_type == "qwen2_5_vl":
        return looked
    vision = model.config.vision_config
    side = vision.image_size // vision.patch_size
    num_pictures, _, width = looked.shape
    rows = looked[:, -side * (side + 1) :].view(num_pictures, side, side + 1, width)
    return rows[:, :, :side].reshape(num_pictures, side * side, width)


def place(model: PreTrainedModel, before: int, visual: int, offset: Tensor) -> Tensor:
    """Return the positions of rows: [B, L], or [3, B, L] where pictures have two axes.

    Every question goes on from the picture.

    Args:
        before: tokens before the picture.
        visual: visual tokens.
        offset: [B, T], places of the tokens after the picture in their questions.
    """
    num_rows = len(offset)
    if model.config.model_type != "qwen2_5_vl":
        trunk = torch.arange(before + visual).expand(num_rows, -1)
        return torch.cat((trunk, before + visual + offset), dim=1)
    side = round(visual**0.5)
    rows = torch.arange(side).repeat_interleave(side)
    columns = torch.arange(side).repeat(side)
    picture = before + torch.stack((torch.zeros_like(rows), rows, columns))
    # What follows goes on from the largest position in the picture.
    after = (before + side + offset).expand(3, -1, -1)
    trunk = torch.cat((torch.arange(before).expand(3, -1), picture), dim=1)
    return torch.cat((trunk[:, None].expand(-1, num_rows, -1), after), dim=2)


SEE: dict[str, See] = {
    "llava_onevision": see_llava_onevision,
    "qwen2_5_vl": see_qwen2_5_vl,
}
"""By architecture."""
