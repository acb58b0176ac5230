"""Towers give the same for chunks of one length put together as for one after the other."""

from __future__ import annotations

import pytest
import torch

from narrowtune.models.chunks import NAME, attend_to_chunks_together, chunk_by_chunk
from narrowtune.models.load import load_model

WITH_CHUNKS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5")
"""Of the tiny families."""

GRIDS = ([[1, 8, 8]], [[1, 4, 8], [1, 4, 8]], [[1, 12, 20], [1, 8, 8], [1, 12, 20]], [[1, 10, 6]])
"""Patches of pictures: one, two alike, three of two sizes, one that ends within a window."""


@pytest.fixture(params=WITH_CHUNKS)
def loaded(request, tiny):
    loaded = load_model(str(tiny(request.param)), device="cpu")
    loaded.model.double()
    return loaded


def tower_of(loaded):
    return loaded.model.model.visual


def patches(tower, grid):
    num = int(torch.tensor(grid).prod(dim=1).sum())
    draw = torch.Generator().manual_seed(num)
    width = tower.patch_embed.proj.weight[0].numel()
    return torch.randn(num, width, generator=draw, dtype=torch.float64)


def kernel_calls(monkeypatch):
    """Return a list that gets the number of rows of every call of the kernel."""
    calls, plain = [], torch.nn.functional.scaled_dot_product_attention

    def counted(query, *args, **kwargs):
        calls.append(len(query))
        return plain(query, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    return calls


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_what_is_seen_and_learned_is_the_same(loaded, grid):
    tower, found = tower_of(loaded), []
    tower.requires_grad_(True)
    given = patches(tower, grid)
    for plain in (True, False):
        tower.zero_grad()
        with chunk_by_chunk(plain):
            seen = tower(given, grid_thw=torch.tensor(grid)).pooler_output
            seen.square().sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in tower.parameters() if p.grad is not None])
        found.append((seen.detach(), gradient))
    for one_by_one, together in zip(*found, strict=True):
        assert (one_by_one - together).norm() <= 1e-12 * one_by_one.norm()


def test_windows_of_a_size_are_one_call(tiny, monkeypatch):
    tower = tower_of(load_model(str(tiny("qwen2_5_vl")), device="cpu"))
    grid = torch.tensor([[1, 12, 20], [1, 12, 20]])
    given = patches(tower, grid.tolist()).float()
    calls = kernel_calls(monkeypatch)
    with torch.no_grad():
        tower(given, grid_thw=grid)
        together = list(calls)
        calls.clear()
        with chunk_by_chunk(True):
            tower(given, grid_thw=grid)
    assert sum(together) == len(calls), "the same windows"
    assert set(calls) == {1}
    assert len(together) < len(calls) / 2


def test_only_towers_that_are_told_of_chunks_are_changed(loaded, tiny):
    layers = [
        module
        for module in loaded.model.modules()
        if getattr(getattr(module, "config", None), "_attn_implementation", None) == NAME
    ]
    tower = set(tower_of(loaded).modules())
    assert layers
    assert set(layers) <= tower
    assert loaded.model.config._attn_implementation == "sdpa"
    assert loaded.model.config.get_text_config()._attn_implementation == "sdpa"
    text = load_model(str(tiny("llama")), device="cpu").model
    assert attend_to_chunks_together(text) == 0
    assert "_attn_implementation" not in str(loaded.model.config.to_dict())


def test_a_tower_that_computes_otherwise_is_left_alone(tiny):
    model = load_model(str(tiny("qwen2_5_vl")), device="cpu").model
    tower = model.model.visual
    tower.config._attn_implementation = "eager"
    assert attend_to_chunks_together(model) == 0
    assert tower.config._attn_implementation == "eager"
