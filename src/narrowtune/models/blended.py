"""A place between two sets of weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


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
    wide = torch.float64 if base.dtype == torch.float64 else torch.float32
    left, right = base.to(wide), tuned.to(wide)
    return torch.where(base == tuned, base, (left + alpha * (right - left)).to(base.dtype))


@torch.no_grad()
def set_between(
    model: nn.Module, base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], alpha: float
) -> None:
    """Set the parameters named in `base` to what is `between` there, in place.

    Args:
        model: whose parameters are set.
        base: by name in memory.
        tuned: the same names, in the base's dtype.
        alpha: 0 to 1.
    """
    parameters = dict(model.named_parameters())
    for name, before in base.items():
        parameters[name].copy_(between(before, tuned[name], alpha))
