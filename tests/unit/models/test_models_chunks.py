"""Towers give the same for chunks of one length put together as for one after the other."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch

from narrowtune.models import chunks
from narrowtune.models.chunks import (
    NAME,
    _config,
    _Together,
    attend_chunk_by_chunk,
    attend_to_chunks_together,
    chunk_by_chunk,
)
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


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Have chunks of several lengths put in order here, as on a GPU."""
    monkeypatch.setattr(chunks, "_puts_in_order", lambda *_: True)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_what_is_seen_and_learned_is_the_same(loaded, grid, device, request):
    if device == "gpu":
        request.getfixturevalue("as_on_a_gpu")
    tower, found = tower_of(loaded), []
    tower.requires_grad_(True)
    given = patches(tower, grid)
    for way in (nullcontext(), chunk_by_chunk(loaded.model)):
        tower.zero_grad()
        with way:
            seen = tower(given, grid_thw=torch.tensor(grid)).pooler_output
            seen.square().sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in tower.parameters() if p.grad is not None])
        found.append((seen.detach(), gradient))
    for together, one_by_one in zip(*found, strict=True):
        assert (one_by_one - together).norm() <= 1e-12 * one_by_one.norm()


def test_windows_of_a_size_are_one_call(tiny, monkeypatch):
    model = load_model(str(tiny("qwen2_5_vl")), device="cpu").model
    tower, alike = model.model.visual, torch.tensor([[1, 12, 20], [1, 12, 20]])
    unlike = torch.tensor([[1, 12, 20], [1, 8, 8], [1, 12, 20]])
    calls = kernel_calls(monkeypatch)

    def called(grid):
        calls.clear()
        with torch.no_grad():
            tower(patches(tower, grid.tolist()).float(), grid_thw=grid)
        return list(calls)

    together, apart = called(alike), called(unlike)
    with chunk_by_chunk(model):
        singly, singly_unlike = called(alike), called(unlike)
    assert sum(together) == len(singly), "the same windows"
    assert set(singly) == {1}
    assert len(together) == len(tower.blocks) < len(singly)
    # Windows are all as large here; pictures aren't, and go one by one on a CPU.
    assert apart == [len(singly_unlike) - 3, 1, 1, 1]
    monkeypatch.setattr(chunks, "_puts_in_order", lambda *_: True)
    ordered = called(unlike)
    assert sorted(ordered) == sorted([apart[0], 1, 2])


def test_a_gpu_puts_many_windows_of_few_sizes_in_order():
    assert chunks._puts_in_order("cuda", [64] * 40 + [32] * 5)
    assert not chunks._puts_in_order("cuda", [*range(40, 60)]), "nothing is saved"
    assert not chunks._puts_in_order("cpu", [64] * 40 + [32] * 5)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_what_is_computed_again_is_computed_alike(family, tiny):
    """As on a GPU, where autograd's own thread knows nothing of this one's settings."""
    model = load_model(str(tiny(family)), device="cpu").model.train().requires_grad_(True)
    tower = model.model.visual
    tower.gradient_checkpointing_enable()
    given = patches(tower, [[1, 12, 20]]).float()
    for settle in (attend_to_chunks_together, attend_chunk_by_chunk):
        settle(model)
        loss = tower(given, grid_thw=torch.tensor([[1, 12, 20]])).pooler_output.square().sum()
        with ThreadPoolExecutor(1) as other:
            other.submit(loss.backward).result()
        assert all(p.grad is not None for p in tower.blocks[0].parameters())
        model.zero_grad()


def test_the_models_configuration_names_nothing_new(loaded, tmp_path):
    layers = [m for m in loaded.model.modules() if isinstance(_config(m), _Together)]
    assert layers
    assert set(layers) <= set(tower_of(loaded).modules())
    assert {layer.config._attn_implementation for layer in layers} == {NAME}
    assert loaded.model.config.vision_config._attn_implementation == "sdpa"
    again = type(loaded.model)(copy.deepcopy(loaded.model.config))
    assert not any(isinstance(_config(m), _Together) for m in again.modules())
    loaded.model.save_pretrained(tmp_path)
    assert "flash" not in (tmp_path / "config.json").read_text("utf-8")
    copied = copy.deepcopy(loaded.model)
    inner = next(m for m in copied.modules() if isinstance(_config(m), _Together)).config
    assert inner.plain is copied.config.vision_config
    pickle.loads(pickle.dumps(inner))


def test_a_model_without_chunks_is_left_alone(tiny):
    assert attend_to_chunks_together(load_model(str(tiny("llama")), device="cpu").model) == 0


def test_how_a_tower_attends_can_be_changed_later(loaded, monkeypatch):
    tower, calls = tower_of(loaded), kernel_calls(monkeypatch)
    loaded.model.set_attn_implementation("eager")
    with torch.no_grad():
        tower(patches(tower, GRIDS[0]), grid_thw=torch.tensor(GRIDS[0]))
    assert not calls
    loaded.model.set_attn_implementation("sdpa")
    with torch.no_grad():
        tower(patches(tower, GRIDS[0]), grid_thw=torch.tensor(GRIDS[0]))
    assert calls
