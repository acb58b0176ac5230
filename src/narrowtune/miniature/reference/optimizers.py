"""How a reference model's weights are moved.

Owns: which optimiser has which weights, and how the rate rises and falls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

_WARMUP = 100  # steps
_WEIGHT_DECAY = 0.01

Kind = Literal["matrix", "writer", "table", "other"]
"""Of a weight: a matrix between layers, one that adds to the language model's residual stream,
words' embeddings, and everything else."""

_WRITERS = ("o_proj.weight", "down_proj.weight")

Named = tuple[str, nn.Parameter]
"""A weight and its name in the model."""


def rate_factor(step: int, num_steps: int, *, decay_share: float) -> float:
    """Return the share of the highest rate at a step: up, level, and down to nothing.

    Args:
        decay_share: share of the steps over which it falls.
    """
    decay = max(1, round(decay_share * num_steps))
    return min(1.0, (step + 1) / _WARMUP, (num_steps - step) / decay)


def make_optimizers(
    groups: Sequence[Mapping[str, Any]], factors: Mapping[Kind, float]
) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices inside layers, AdamW for embeddings, biases and norms.

    AdamW alone stays at chance on questions that bind for several times as many steps
    (docs/LOG.md).

    Args:
        groups: `params`, pairs of name and parameter, and `factor` of the learning rate.
        factors: further ones, by kind of weight.
    """
    matrices: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    for group in groups:
        for kind, factor in factors.items():
            params = [p for name, p in group["params"] if _kind(name, p) == kind]
            made = {"params": params, "factor": factor * group["factor"]}
            (matrices if kind in ("matrix", "writer") else others).append(made)
    return [
        torch.optim.Muon(matrices, weight_decay=_WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=_WEIGHT_DECAY),
    ]


def _kind(name: str, parameter: nn.Parameter) -> Kind:
    if "embed_tokens" in name or "lm_head" in name:
        return "table"
    if parameter.ndim != 2 or "embed" in name or "classify" in name:
        return "other"
    writes = name.startswith("model.language_model.") and name.endswith(_WRITERS)
    return "writer" if writes else "matrix"
