"""The weights of a chain at hand: kept between stages, put back to the base, held against it.

Owns: the file from which a stopped chain goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from narrowtune.train.masters import copy_tensors


@torch.no_grad()
def put_back(model: nn.Module, base: Mapping[str, Tensor]) -> None:
    """Give the parameters the base's values and dtypes again."""
    for name, parameter in model.named_parameters():
        if name in base:
            parameter.data = parameter.data.to(base[name].dtype)
            parameter.copy_(base[name])


@torch.no_grad()
def relative_update(model: nn.Module, base: Mapping[str, Tensor]) -> float:
    """Return ‖W − W_base‖ / ‖W_base‖ over all tensors of `base`."""
    moved = total = 0.0
    for name, parameter in model.named_parameters():
        if name in base:
            before = base[name].double()
            moved += float((parameter.detach().cpu().double() - before).square().sum())
            total += float(before.square().sum())
    return (moved / total) ** 0.5


def save_chain(model: nn.Module, path: Path, stage: int, names: Sequence[str]) -> None:
    """Keep the weights called `names` after a stage."""
    tensors = copy_tensors(model, names)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    save_file(tensors, part, {"stage": str(stage)})
    part.replace(path)


@torch.no_grad()
def restore_chain(model: nn.Module, path: Path, stage: int) -> bool:
    """Put a chain's weights after `stage` into the model; False if they are not there."""
    if not path.exists():
        return False
    with safe_open(path, "pt") as file:
        if file.metadata() != {"stage": str(stage)}:
            return False
        parameters: dict[str, Any] = dict(model.named_parameters())
        for name in file.keys():  # noqa: SIM118 (not a dictionary)
            parameters[name].copy_(file.get_tensor(name))
    return True
