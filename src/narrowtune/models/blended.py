"""A model at a place between two sets of weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


@torch.no_grad()
def set_between(
    model: nn.Module, base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], alpha: float
) -> None:
    """Set the named parameters to base + α (tuned − base), in place.

    Computed in fp32 and rounded to the base's dtype, as a delta holds it; at 0 and 1 the values are
    those of base and tuned, bit for bit.

    Args:
        model: whose parameters are set.
        base: by name in memory.
        tuned: the same names, in the base's dtype.
        alpha: 0 to 1.
    """
    parameters = dict(model.named_parameters())
    for name, before in base.items():
        after = tuned[name]
        if alpha in (0, 1):
            value = after if alpha else before
        else:
            value = torch.lerp(before.float(), after.float(), alpha).to(before.dtype)
        parameters[name].copy_(value)
