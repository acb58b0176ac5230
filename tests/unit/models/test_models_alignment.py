"""Loaded weights lie where copies of them would, so that both compute the same bits."""

from __future__ import annotations

import torch
from safetensors.torch import load_file

from narrowtune.models.alignment import align_weights, is_aligned
from narrowtune.models.load import load_model
from narrowtune.models.swap import WeightSwap


def misaligned(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, starting 8 bytes after a multiple of 64."""
    room = torch.empty(tensor.numel() + 32, dtype=tensor.dtype)
    skip = (8 - room.data_ptr()) % 64 // tensor.element_size()
    return room[skip : skip + tensor.numel()].view_as(tensor).copy_(tensor)


def test_a_loaded_model_is_aligned_and_has_the_files_values(tiny):
    for dtype in (torch.float32, torch.bfloat16):
        loaded = load_model(str(tiny("qwen2", dtype)), device="cpu")
        assert all(is_aligned(p) for p in loaded.model.parameters())
        stored = load_file(tiny("qwen2", dtype) / "model.safetensors")
        live = dict(loaded.model.named_parameters())
        assert stored.keys() == live.keys()
        assert all(torch.equal(live[name], tensor) for name, tensor in stored.items())


def test_parameters_stay_the_same_objects_and_tied():
    model = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Linear(6, 6))
    model[1].weight = model[0].weight
    model[0].weight.data = misaligned(model[0].weight.data)
    before, values = list(model.parameters()), model[0].weight.detach().clone()
    assert not is_aligned(model[0].weight)
    align_weights(model)
    assert all(is_aligned(p) for p in model.parameters())
    assert all(a is b for a, b in zip(model.parameters(), before, strict=True))
    assert model[1].weight is model[0].weight
    assert torch.equal(model[0].weight, values)


def test_a_swap_aligns_what_it_exchanges():
    model = torch.nn.Linear(6, 6)
    model.weight.data = misaligned(model.weight.data)
    swap = WeightSwap(model, {"weight": model.weight.detach().clone()})
    assert is_aligned(model.weight)
    with swap.base():
        assert is_aligned(model.weight)
