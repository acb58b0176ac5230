"""Rows padded on the right give the same without a mask, and keep it where it says something."""

from __future__ import annotations

import io

import PIL.Image
import pytest
import torch

from fp64 import in_dtype
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.collate import Encoded, collate, padding_id
from narrowtune.data.examples import Image, Message, Text
from narrowtune.engine import forward
from narrowtune.engine.forward import (
    label_positions,
    labelled_cross_entropy,
    logits_at,
    packing_error,
)
from narrowtune.engine.packing import layout_size, pack, packing
from narrowtune.engine.padding import is_masked, is_padded_right, relative_cost, without_mask
from narrowtune.engine.pictures import PICTURE_KINDS
from narrowtune.models.load import load_model
from tiny_models import FAMILIES, VISION_FAMILIES, WITH_STATE

GPU = "cuda"


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
    model = in_dtype(load_model(str(tiny(family)), device="cpu").model, torch.float64)
    model.requires_grad_(True)
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


@pytest.mark.parametrize("family", sorted(set(VISION_FAMILIES) - set(WITH_STATE) - {"gemma3"}))
def test_rows_with_pictures_are_as_with_a_mask(family, tiny, monkeypatch):
    loaded = load_model(str(tiny(family)), device="cpu")
    encoder = ChatEncoder(loaded.tokenizer, loaded.processor)
    buffer = io.BytesIO()
    PIL.Image.effect_noise((40, 30), 40).convert("RGB").save(buffer, "PNG")
    picture = Image(data=buffer.getvalue())
    made = [
        encoder.encode_answer([Message("user", (picture, Text(question)))], answer)
        for question, answer in (("how many are there here?", "four"), ("which?", "a red one"))
    ]
    batch = collate(made, padding_id(loaded.tokenizer))
    assert not batch["attention_mask"].all(), "rows of two lengths"
    given = as_on_a_gpu(monkeypatch)
    logits = []
    for when in ("never", "cheaper"):
        with packing(when), torch.no_grad():
            logits.append(logits_at(loaded.model, batch, label_positions(batch["labels"])[0]))
    (seen,) = given
    assert "attention_mask" not in seen
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-5)


def test_rows_longer_than_a_window_are_as_with_a_mask(tiny, monkeypatch):
    model = load_model(str(tiny("mistral")), device="cpu").model
    model.config.sliding_window = 6
    batch = collate(rows((30, 11, 25)), pad_token_id=0)
    given = as_on_a_gpu(monkeypatch)
    losses = []
    for when in ("never", "cheaper"):
        with packing(when), torch.no_grad():
            losses.append(labelled_cross_entropy(model, batch)[0].item())
    model.config.sliding_window = None
    with packing("never"), torch.no_grad():
        assert labelled_cross_entropy(model, batch)[0].item() != pytest.approx(losses[0], rel=2e-6)
    assert given == [{"input_ids"}]
    assert losses[1] == pytest.approx(losses[0], rel=2e-6)


def test_the_check_before_a_run_sees_rows_without_a_mask(tiny, monkeypatch):
    model = load_model(str(tiny("llama")), device="cpu").model
    batch = collate(rows(), pad_token_id=0)
    assert packing_error(model, batch) < 1e-5
    monkeypatch.setattr(forward, "without_mask", lambda m, i, _: without_mask(m, i, GPU))
    assert packing_error(model, batch) < 1e-5
    monkeypatch.setattr(forward, "without_mask", lambda *_: {"input_ids": batch["input_ids"] * 0})
    assert packing_error(model, batch) > 0.1


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
    model.config.is_causal = False
    assert without_mask(model, given, GPU) is given
    assert pack(model, given, label_positions(collate(rows(), 0)["labels"])[0]) is None
    model.config.is_causal = True
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
    assert is_masked(model.config, alike, "cpu", bare=True)
    assert not is_masked(model.config, alike, GPU, bare=True)
    assert is_masked(model.config, alike, GPU, bare=False)
    model.config.sliding_window = 8
    assert is_masked(model.config, alike, GPU, bare=True)
    for kind in ("cpu", GPU):
        bare, masked = (
            relative_cost(model.config, 4, 500, masked=masked, kind=kind)
            for masked in (False, True)
        )
        assert bare < masked
