"""What a SigLIP tower and its projector are before they have learned anything.

Owns: positions that can be turned into their neighbours', heads that begin with looking there, and
a projector that keeps four patches apart until they are averaged.

With random positions, a tower finds its way to the patch beside only after hundreds of steps, and
four averaged patches are four letters in no order (docs/LOG.md). What layers write drowns it by and
by: before any training only the first layer's heads look where they should, and the projector tells
rows and columns apart on what patches are before the layers. Training brings both back.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

_NUM_TURNS = 8  # to an axis; of places less than 16 apart, only equal ones have like codes
_AXIS = 2 * _NUM_TURNS
_CODE = 2 * _AXIS  # numbers of a state that tell the row, then the column
_FAINT_PIXELS = 0.1  # of a patch's own in these
_SHARPNESS = 8.0  # a head's score where it looks, and before the norm, which doubles it
_ASIDE = 0.3  # of what is random in queries and keys
_BESIDE = ((0, -1), (0, 1), (-1, 0), (1, 0))
"""Rows down and columns to the right of where each head looks, taking turns."""
_GATE = 2.0  # by how much two axes open or shut a projector's unit


@torch.no_grad()
def look_around(tower: Any) -> None:
    """Let every head of a SigLIP tower begin with looking at one neighbour.

    Args:
        tower: with patches in up to 8 rows and columns, and heads of `_CODE` numbers at least.
    """
    config, embeddings = tower.config, tower.embeddings
    side = config.image_size // config.patch_size
    size = config.hidden_size // config.num_attention_heads
    assert side <= _NUM_TURNS
    assert size >= _CODE
    places = torch.arange(side)
    rows, columns = _code(places.repeat_interleave(side)), _code(places.repeat(side))
    positions = embeddings.position_embedding.weight
    positions.zero_()
    positions[:, :_CODE] = torch.cat((rows, columns), dim=-1)
    embeddings.patch_embedding.weight[:_CODE] *= _FAINT_PIXELS
    gain = math.sqrt(_SHARPNESS * math.sqrt(size) / _AXIS)
    for layer in tower.encoder.layers:
        query, key = layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight
        query *= _ASIDE
        key *= _ASIDE
        for head in range(config.num_attention_heads):
            down, right = _BESIDE[head % len(_BESIDE)]
            numbers = slice(head * size, head * size + _CODE)
            query[numbers, :_CODE] += gain * torch.block_diag(_turn(down), _turn(right))
            key[numbers, :_CODE] += gain * torch.eye(_CODE)


@torch.no_grad()
def take_apart(projector: Any) -> None:
    """Give each of four neighbouring patches a quarter of a projector's units.

    A unit is open where a patch stands in an even or odd row and column, and shut elsewhere: the
    fastest turn of a place is 1 in even ones and −1 in odd ones.
    """
    weight, bias = projector.linear_1.weight, projector.linear_1.bias
    signs = [(down, right) for down in (1, -1) for right in (1, -1)]
    for (down, right), units, shut in zip(
        signs, weight.chunk(len(signs)), bias.chunk(len(signs)), strict=True
    ):
        units[:, :_CODE] = 0
        units[:, _NUM_TURNS - 1] = _GATE * down
        units[:, _AXIS + _NUM_TURNS - 1] = _GATE * right
        shut.fill_(-2 * _GATE)


def _frequencies() -> Tensor:
    return torch.arange(1, _NUM_TURNS + 1) * math.pi / _NUM_TURNS


def _code(place: Tensor) -> Tensor:
    """Return cosines and sines of places along an axis [N, _AXIS]."""
    angles = place[:, None] * _frequencies()
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def _turn(by: int) -> Tensor:
    """Return the matrix that makes a place's code that of the place `by` further."""
    angles = by * _frequencies()
    cos, sin = angles.cos().diag(), angles.sin().diag()
    return torch.cat((torch.cat((cos, -sin), dim=1), torch.cat((sin, cos), dim=1)))
