"""Rows padded on the right give the same without a mask, and keep it where it says something."""

from __future__ import annotations

import pytest
import torch

from narrowtune.data.collate import Encoded, collate
from narrowtune.engine import forward
from narrowtune.engine.forward import label_positions, labelled_cross_entropy
from narrowtune.engine.packing import layout_size, packing
from narrowtune.engine.padding import is_masked, is_padded_right, relative_cost, without_mask
from narrowtune.engine.pictures import PICTURE_KINDS
from narrowtune.models.load import load_model
from tiny_models import FAMILIES, WITH_STATE

GPU = "cuda"
WITH_PICTURES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


def rows(lengths=(4, 9, 6)):
    made = []
    for number, length in enumerate(lengths):
        ids = [20 + (7 * number + place) % 30 for place in range(length)]
        made.append(Encoded(ids, [-100] * (length - 2) + ids[-2:]))
    return made


def inputs_of(batch):
    return {name: value for name, value in batch.items() if name != "labels"}


def as_on_a_gpu(monkeypatch):
    """Have rows go without a mask here as they would on a GPU; return what models are given."""
    given = []

    def bare(model, inputs, _):
        fewer = without_mask(model, inputs, GPU)
        given.append(set(fewer))
        return fewer

    monkeypatch.setattr(forward, "without_mask", bare)
    monkeypatch.setattr(forward, "pack", lambda *_: None)
    return given


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(WITH_STATE)))
def test_loss_and_gradients_are_those_with_a_mask(family, tiny, monkeypatch):
    model = load_model(str(tiny(family)), device="cpu").model.double().requires_grad_(True)
    batch, found = collate(rows(), pad_token_id=0), []
    given = as_on_a_gpu(monkeypatch)
    for when in ("never", "cheaper"):
        model.zero_grad()
        with packing(when):
            total, _ = labelled_cross_entropy(model, batch)
        total.backward()
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        found.append((total.item(), torch.cat(gradients)))
    assert given == [{"input_ids"}], "the plain path keeps its mask, the other has none"
    (plain, expected), (bare, gradient) = found
    assert bare == pytest.approx(plain, rel=1e-9)
    assert (gradient - expected).norm() < 1e-6 * expected.norm()


@pytest.mark.parametrize("family", WITH_PICTURES)
def test_rows_with_pictures_are_given_their_positions(family, tiny, monkeypatch):
    model = load_model(str(tiny(family)), device="cpu").model.double()
    config, tower = model.config, model.model.visual
    token = config.image_token_id
    grid = torch.tensor([[1, 4, 8]])
    size = getattr(config.vision_config, "spatial_merge_size", 2) ** 2
    shown = [2, *[token] * (int(grid.prod()) // size), 3]
    made = []
    for number, length in enumerate((3, 8)):
        ids = [*shown, *range(20, 20 + length)]
        row = Encoded(ids, [-100] * (len(ids) - 2) + ids[-2:])
        draw = torch.Generator().manual_seed(number)
        width = tower.patch_embed.proj.weight[0].numel()
        row.features.update(
            pixel_values=torch.randn(int(grid.prod()), width, generator=draw),
            image_grid_thw=grid,
            mm_token_type_ids=torch.tensor([int(one == token) for one in ids]),
        )
        made.append(row)
    batch = collate(made, pad_token_id=0)
    batch["pixel_values"] = batch["pixel_values"].double()
    given = as_on_a_gpu(monkeypatch)
    losses = []
    for when in ("never", "cheaper"):
        with packing(when), torch.no_grad():
            losses.append(labelled_cross_entropy(model, batch)[0].item())
    (seen,) = given
    assert "position_ids" in seen
    assert "attention_mask" not in seen
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)


def test_a_mask_that_says_something_stays(tiny):
    model = load_model(str(tiny("llama")), device="cpu").model
    given = inputs_of(collate(rows(), pad_token_id=0))
    assert set(without_mask(model, given, GPU)) == {"input_ids"}
    assert without_mask(model, given, "cpu") is given
    left = {**given, "attention_mask": given["attention_mask"].flip(1)}
    assert without_mask(model, left, GPU) is left
    both_ways = {**given, PICTURE_KINDS: torch.zeros_like(given["input_ids"])}
    assert without_mask(model, both_ways, GPU) is both_ways
    unknown = {**given, "something": torch.zeros(1)}
    assert without_mask(model, unknown, GPU) is unknown
    model.set_attn_implementation("eager")
    assert without_mask(model, given, GPU) is given


@pytest.mark.parametrize("family", sorted(WITH_STATE))
def test_layers_with_a_state_keep_their_mask(family, tiny):
    model = load_model(str(tiny(family)), device="cpu").model
    given = inputs_of(collate(rows(), pad_token_id=0))
    assert without_mask(model, given, GPU) is given


def test_padding_is_on_the_right_if_no_token_is_behind_it():
    assert is_padded_right(torch.tensor([[1, 1, 0], [1, 1, 1]]))
    assert not is_padded_right(torch.tensor([[0, 1, 1], [1, 1, 1]]))
    assert not is_padded_right(torch.tensor([[1, 0, 1], [1, 1, 1]]))


def test_a_gpu_takes_more_lines_and_fewer_masks(tiny):
    model = load_model(str(tiny("llama")), device="cpu").model
    batch = collate(rows([40, 9, 9, 9, 9, 9, 9, 9]), pad_token_id=0)
    mask, _ = label_positions(batch["labels"])
    inputs = inputs_of(batch)
    on_cpu, on_gpu = (layout_size(model, inputs, mask, kind) for kind in ("cpu", GPU))
    assert on_gpu.rows > on_cpu.rows
    alike = inputs_of(collate(rows([30, 29, 30]), pad_token_id=0))
    assert is_masked(model.config, alike, "cpu")
    assert not is_masked(model.config, alike, GPU)
    for kind in ("cpu", GPU):
        bare, masked = (
            relative_cost(model.config, 4, 500, masked=masked, kind=kind)
            for masked in (False, True)
        )
        assert bare < masked
