"""Models that were tuned, and their deltas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from narrowtune.delta.extract import extract
from narrowtune.delta.store import Delta
from narrowtune.models.select import Selection, select
from tiny_models import VISION_FAMILIES


def load(folder: Path) -> nn.Module:
    """The folder's model, as transformers loads it."""
    vision = any(f"tiny-{family}" in str(folder) for family in VISION_FAMILIES)
    loader = AutoModelForImageTextToText if vision else AutoModelForCausalLM
    return loader.from_pretrained(folder)


def disturb(model: nn.Module, names: tuple[str, ...], seed: int = 0) -> None:
    """Move each parameter as training does: in fp32, by little, not everywhere."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name in names:
            noise = torch.randn(parameter.shape, generator=generator)
            noise *= torch.rand(parameter.shape, generator=generator) < 0.5
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


@pytest.fixture(scope="session")
def make_case(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory):
    """`make_case(family, dtype, recipe)`; treat what it returns as read-only."""
    made: dict[tuple, Case] = {}

    def build(
        family: str = "llama", dtype: torch.dtype = torch.bfloat16, recipe: str = "sa_proj"
    ) -> Case:
        key = (family, dtype, recipe)
        if key not in made:
            folder = tiny(family, dtype)
            model = load(folder)
            base = weights(model)
            selection = select(model, recipe)
            disturb(model, selection.names)
            delta = extract(model, selection, {n: base[n] for n in selection.names}, notes=["toy"])
            path = tmp_path_factory.mktemp("delta") / "skill.safetensors"
            delta.save(path)
            for name, parameter in model.named_parameters():
                parameter.data = parameter.data.to(base[name].dtype)
            made[key] = Case(folder, selection, base, weights(model), delta, path)
        return made[key]

    return build
