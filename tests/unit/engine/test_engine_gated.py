"""MLPs that keep less compute the same bits, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from narrowtune.data.collate import Encoded, collate
from narrowtune.engine.forward import labelled_cross_entropy
from narrowtune.engine.gated import keeping_operands
from narrowtune.engine.memory import SavedTensors
from narrowtune.engine.packing import packing
from narrowtune.models.load import load_model
from tiny_models import FAMILIES

GATED = sorted(set(FAMILIES) - {"phi3", "mixtral", "qwen3_vl_moe"})
"""Of which a layer has an MLP of separate matrices, if only in one layer or beside experts."""


def batch(length=16):
    ids = [5 + 3 * place % 50 for place in range(length)]
    return collate([Encoded(ids, [-100] * (length - 12) + ids[-12:])], pad_token_id=0)


def passed(model, parts):
    """Return loss, gradients and kept bytes of one pass, nothing packed, as written."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name for part in parts))
        parameter.grad = None
    with packing("never"), SavedTensors(model) as saved:
        loss, _ = labelled_cross_entropy(model, batch())
    loss.backward()
    return (
        loss.detach(),
        [p.grad for p in model.parameters() if p.grad is not None],
        saved.num_bytes,
    )


@pytest.mark.parametrize("family", GATED)
@pytest.mark.parametrize("parts", [("q_proj", "qkv_proj"), ("gate", "up"), ("",)])
def test_bits_are_those_of_the_module(family, parts, tiny):
    model = load_model(str(tiny(family, torch.float32)), device="cpu").model
    loss, gradients, kept = passed(model, parts)
    with keeping_operands(model):
        found = passed(model, parts)
    assert found[0] == loss
    assert gradients
    assert all(torch.equal(a, b) for a, b in zip(found[1], gradients, strict=True))
    assert found[2] < kept


@pytest.fixture
def llama(tiny):
    return load_model(str(tiny("llama", torch.float32)), device="cpu").model


def test_modules_are_as_they_were_afterwards_even_after_an_error(llama):
    mlp = llama.get_decoder().layers[0].mlp
    inside = []

    def fail():
        with keeping_operands(llama):
            inside.append("forward" in vars(mlp))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert inside == [True]
    assert "forward" not in vars(mlp)


def test_nothing_is_replaced_without_gradients(llama):
    with torch.no_grad(), keeping_operands(llama):
        assert "forward" not in vars(llama.get_decoder().layers[0].mlp)


def test_an_mlp_that_computes_something_else_is_left_alone(llama):
    class Other(type(llama.get_decoder().layers[0].mlp)):
        def forward(self, x):
            return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x)) * 2

    llama.get_decoder().layers[0].mlp.__class__ = Other
    with keeping_operands(llama):
        assert "forward" not in vars(llama.get_decoder().layers[0].mlp)
        assert "forward" in vars(llama.get_decoder().layers[1].mlp)


def test_layers_that_are_computed_again_are_left_alone(llama):
    llama.gradient_checkpointing_enable({"use_reentrant": False})
    llama.train()
    with keeping_operands(llama):
        assert "forward" not in vars(llama.get_decoder().layers[0].mlp)


def test_a_model_without_a_decoder_is_left_alone():
    with keeping_operands(nn.Linear(2, 2)):
        pass
