"""How a reference model's weights are moved.

Owns: which optimiser has which weights, and how the rate rises and falls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

_DECAY = 0.25  # share of a stage over which its rate falls to nothing
_WARMUP = 100  # steps
_WEIGHT_DECAY = 0.01

Named = tuple[str, nn.Parameter]
"""A weight and its name in the model."""


def rate_factor(step: int, num_steps: int) -> float:
    """Return the share of the highest rate at a step: up, level, and down to nothing."""
    decay = max(1, round(_DECAY * num_steps))
    return min(1.0, (step + 1) / _WARMUP, (num_steps - step) / decay)


def make_optimizers(
    groups: Sequence[Mapping[str, Any]], matrix_factor: float
) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices inside layers, AdamW for embeddings, biases and norms.

    AdamW alone stays at chance on questions that bind for several times as many steps
    (docs/LOG.md).

    Args:
        groups: `params`, pairs of name and parameter, and `factor` of the learning rate.
        matrix_factor: a further factor for the matrices.
    """
    matrices: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    for group in groups:
        inside = {name for name, p in group["params"] if p.ndim == 2 and not _is_table(name)}
        for kind, chosen, factor in ((matrices, True, matrix_factor), (others, False, 1.0)):
            params = [p for name, p in group["params"] if (name in inside) is chosen]
            kind.append({"params": params, "factor": factor * group["factor"]})
    return [
        torch.optim.Muon(matrices, weight_decay=_WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=_WEIGHT_DECAY),
    ]


def _is_table(name: str) -> bool:
    """Whether a matrix is looked up in or scored against, not multiplied between layers."""
    return any(word in name for word in ("embed", "lm_head", "classify"))
