"""A place between two sets of weights: part of the way for all, or all of the way for some."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from narrowtune.core.delta_results import DialWay


def between(base: Tensor, tuned: Tensor, alpha: float) -> Tensor:
    """Return base + α (tuned − base) in the base's dtype.

    Computed in fp32 (fp64 for fp64) and rounded once. At 0 and 1 it is base and tuned, bit for bit,
    and where these are equal it is that value, whatever α is.

    Args:
        base: of any shape.
        tuned: of the same shape and dtype.
        alpha: any number; 0 to 1 lies between.
    """
    if alpha in (0, 1):
        return (tuned if alpha else base).clone()
    wide = _wide(base)
    left, right = base.to(wide), tuned.to(wide)
    return torch.where(base == tuned, base, (left + alpha * (right - left)).to(base.dtype))


def largest(base: Tensor, tuned: Tensor, density: float) -> Tensor:
    """Return the tuned elements that moved furthest, and the base's for all others.

    The first step of TIES-merging ("trim", arXiv 2306.01708), by tensor. At 0 and 1 it is base and
    tuned, bit for bit. Of elements that moved equally far at the edge, all are kept, so that more
    may stay: at small rates many elements of bf16 weights move by the same few last bits.

    Args:
        base: of any shape.
        tuned: of the same shape and dtype.
        density: share of the elements that stays, 0 to 1.
    """
    left_out = base.numel() - round(density * base.numel())
    if left_out == 0 or density == 0:
        return (tuned if density else base).clone()
    wide = _wide(base)
    moved = (tuned.to(wide) - base.to(wide)).abs()
    edge = moved.flatten().kthvalue(min(left_out + 1, moved.numel())).values
    return torch.where((moved >= edge) & (moved > 0), tuned, base)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


@torch.no_grad()
def set_between(
    model: nn.Module,
    base: Mapping[str, Tensor],
    tuned: Mapping[str, Tensor],
    place: float,
    way: DialWay = "linear",
) -> None:
    """Set the parameters named in `base` to a place on the way to `tuned`, in place.

    Args:
        model: whose parameters are set.
        base: by name in memory.
        tuned: the same names, in the base's dtype.
        place: 0, the base, to 1.
        way: `linear` goes that share of the way with every element (`between`), `largest` all of
            the way with that share of each tensor's elements (`largest`).
    """
    step = between if way == "linear" else largest
    parameters = dict(model.named_parameters())
    for name, before in base.items():
        parameters[name].copy_(step(before, tuned[name], place))
