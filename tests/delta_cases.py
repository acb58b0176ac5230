"""What tests of deltas share: loading, disturbing and comparing tiny models."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from narrowtune.delta.store import Delta
from narrowtune.models.select import Selection


def load(folder: Path) -> nn.Module:
    """The folder's model, as transformers loads it."""
    vision = "vision_config" in json.loads((folder / "config.json").read_text())
    loader = AutoModelForImageTextToText if vision else AutoModelForCausalLM
    return loader.from_pretrained(folder)


def disturb(model: nn.Module, names: tuple[str, ...], seed: int = 0) -> None:
    """Move each parameter as training does: in fp32, by little, not everywhere."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name in names:
            noise = torch.randn(parameter.shape, generator=generator)
            noise *= torch.rand(parameter.shape, generator=generator) < 0.5
            noise.view(-1)[0] = 5.0  # somewhere, also where a tensor is small
            parameter.data = parameter.data.float() + 0.01 * noise


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of everything that the model saves."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same_bits(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Whether two sets of tensors are equal bit for bit, -0.0 and NaN included."""
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype
        and left[name].shape == right[name].shape
        and left[name]
        .contiguous()
        .view(-1)
        .view(torch.uint8)
        .equal(right[name].contiguous().view(-1).view(torch.uint8))
        for name in left
    )


@dataclass
class Case:
    """A base folder, and a delta made by disturbing the model in it."""

    folder: Path
    selection: Selection
    base: dict[str, Tensor]
    tuned: dict[str, Tensor]
    delta: Delta
    path: Path

    def load(self) -> nn.Module:
        """The base again."""
        return load(self.folder)
