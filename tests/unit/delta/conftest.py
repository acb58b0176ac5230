"""Models that were tuned, and their deltas."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from delta_cases import Case, disturb, load, weights
from narrowtune.delta.extract import extract
from narrowtune.models.select import select


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
