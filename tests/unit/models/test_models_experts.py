"""A mixture's experts compute in what autocast asks for, and train in what they are held in."""

from __future__ import annotations

import copy

import pytest
import torch

from narrowtune.models.load import load_model
from narrowtune.models.select import select

MIXTURES = ("qwen3_moe", "mixtral", "qwen3_vl_moe", "qwen3_5_moe")
TOKENS = torch.arange(10, 26).reshape(2, 8)


@pytest.fixture
def products(monkeypatch):
    """The dtypes of all products of experts."""
    seen = []
    grouped_mm = torch.nn.functional.grouped_mm

    def watched(left, right, **kwargs):
        seen.append((left.dtype, right.dtype))
        return grouped_mm(left, right, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "grouped_mm", watched)
    return seen


def passed(model, *, autocast):
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        logits = model(input_ids=TOKENS).logits
    logits.float().log_softmax(-1)[..., 7].mean().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", MIXTURES)
def test_experts_follow_autocast_and_have_gradients_in_their_own_dtype(tiny, family, products):
    model = load_model(str(tiny(family, torch.bfloat16)), device="cpu").model
    select(model, "mlp_gate_up", dtype=torch.float32)
    narrow = passed(model, autocast=True)
    assert set(products) == {(torch.bfloat16, torch.bfloat16)}
    products.clear()
    wide = passed(model.float(), autocast=False)
    assert set(products) == {(torch.float32, torch.float32)}
    experts = [name for name in narrow if name.endswith("experts.gate_up_proj")]
    assert experts
    for name in experts:
        assert narrow[name].dtype == torch.float32
        error = (narrow[name] - wide[name]).norm() / wide[name].norm()
        assert 0 < error < 0.1


def test_nothing_is_left_of_it_even_after_an_error(tiny, monkeypatch, products):
    model = load_model(str(tiny("mixtral", torch.float32)), device="cpu").model
    experts = model.model.layers[0].mlp.experts
    names = [name for name, _ in model.named_parameters()]

    def fail(*_, **__):
        assert "gate_up_proj" in vars(experts)
        assert [name for name, _ in model.named_parameters()] == names
        raise RuntimeError("stop")

    with monkeypatch.context() as patched:
        patched.setattr(torch.nn.functional, "grouped_mm", fail)
        with pytest.raises(RuntimeError, match="stop"):
            passed(model, autocast=True)
    assert not {"gate_up_proj", "down_proj"} & set(vars(experts))
    # A copy follows by itself.
    copied = copy.deepcopy(model)
    passed(copied, autocast=True)
    assert set(products) == {(torch.bfloat16, torch.bfloat16)}
    assert not {"gate_up_proj", "down_proj"} & set(vars(copied.model.layers[0].mlp.experts))


def test_recomputed_layers_follow_too(tiny, products):
    model = load_model(str(tiny("mixtral", torch.bfloat16)), device="cpu").model.train()
    select(model, "mlp_gate_up", dtype=torch.float32)
    plain = passed(model, autocast=True)
    model.gradient_checkpointing_enable()
    again = passed(model, autocast=True)
    assert set(products) == {(torch.bfloat16, torch.bfloat16)}
    assert all(torch.equal(again[name], gradient) for name, gradient in plain.items())
