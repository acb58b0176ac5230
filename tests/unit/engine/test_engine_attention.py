"""Attention by products: the same numbers as torch's own, and only where it is quicker."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from narrowtune.data.collate import IGNORE_INDEX, Encoded, collate
from narrowtune.engine import attention
from narrowtune.engine.arithmetic import Arithmetic, apply_arithmetic, autocast
from narrowtune.engine.attention import attention_by_products, by_products
from narrowtune.engine.forward import labelled_cross_entropy
from narrowtune.engine.packing import as_numbers, packing
from narrowtune.models.load import load_model

BF16 = Arithmetic(compute_dtype="bfloat16", threads=1)


def make_inputs(dtype, *, heads=6, shared=2, length=37, width=16, seed=0):
    draw = torch.Generator().manual_seed(seed)
    made = [
        torch.randn(2, number, length, width, generator=draw, dtype=torch.float64)
        for number in (heads, shared, shared)
    ]
    seen = torch.rand(2, 1, length, length, generator=draw) < 0.5
    seen |= torch.eye(length, dtype=torch.bool)
    return [x.to(dtype).requires_grad_() for x in made], as_numbers(seen, dtype)


def with_gradients(function, inputs):
    weights = torch.linspace(-1, 1, inputs[0].shape[-1], dtype=inputs[0].dtype)
    out = function(*inputs)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), inputs)]


def fused(query, key, value, mask, scaling=None):
    found = scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scaling, enable_gqa=True
    )
    return found.transpose(1, 2)


@pytest.mark.parametrize(("heads", "shared"), [(6, 2), (4, 4), (4, 1)])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_it_is_attention(heads, shared, scaling):
    inputs, mask = make_inputs(torch.float64, heads=heads, shared=shared)
    ours = with_gradients(lambda *given: by_products(*given, mask, scaling), inputs)
    theirs = with_gradients(lambda *given: fused(*given, mask, scaling), inputs)
    for mine, other in zip(ours, theirs, strict=True):
        assert float((mine - other).norm() / other.norm()) <= 1e-12


def test_in_bf16_it_errs_like_the_fused_kernel():
    exact_inputs, exact_mask = make_inputs(torch.float64, heads=4, shared=4, length=120, width=64)
    exact = with_gradients(lambda *given: fused(*given, exact_mask), exact_inputs)
    inputs, mask = make_inputs(torch.bfloat16, heads=4, shared=4, length=120, width=64)
    ours = with_gradients(lambda *given: by_products(*given, mask, None), inputs)
    theirs = with_gradients(lambda *given: fused(*given, mask), inputs)

    def errors(found):
        return [
            float((x.double() - y).norm() / y.norm()) for x, y in zip(found, exact, strict=True)
        ]

    for mine, other in zip(errors(ours), errors(theirs), strict=True):
        assert mine < max(2 * other, 0.01)


@pytest.fixture
def batch():
    draw = torch.Generator().manual_seed(1)
    rows = []
    for length in (9, 14, 11, 8):
        ids = torch.randint(5, 60, (length,), generator=draw).tolist()
        rows.append(Encoded(ids, [IGNORE_INDEX] * (length - 3) + ids[-3:]))
    return collate(rows, 0)


@pytest.fixture
def calls(monkeypatch):
    found = []

    def counted(*given):
        found.append(given[2].dtype)  # of values: turned queries and keys may be wider
        return by_products(*given)

    monkeypatch.setattr(attention, "by_products", counted)
    return found


def gradients(model, batch):
    model.zero_grad()
    with autocast(BF16, "cpu"):
        loss, number = labelled_cross_entropy(model, batch)
    (loss / number).backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return float(loss.detach()) / number, grads


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_is_computed_by_products_and_is_the_same(tiny, batch, calls, checkpointing):
    model = load_model(str(tiny("llama")), device="cpu").model
    plain, expected = gradients(model, batch)
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    with apply_arithmetic(BF16), packing("always"):
        loss, found = gradients(model, batch)
    layers = model.config.num_hidden_layers
    assert calls == [torch.bfloat16] * layers * (1 + checkpointing)
    assert loss == pytest.approx(plain, rel=2e-2)
    assert found.keys() == expected.keys()
    for name, mine in found.items():
        assert float((mine - expected[name]).norm() / expected[name].norm()) < 0.1, name


def test_nothing_else_is_computed_by_products(tiny, batch, calls, monkeypatch):
    model = load_model(str(tiny("llama")), device="cpu").model
    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    with packing("always"):
        gradients(model, batch)  # outside the block
    with apply_arithmetic(BF16.model_copy(update={"packing": False})):
        gradients(model, batch)  # the plain path
    fp32 = BF16.model_copy(update={"compute_dtype": "float32"})
    with apply_arithmetic(fp32), packing("always"):
        labelled_cross_entropy(model, batch)
    with apply_arithmetic(BF16), packing("always"):
        with torch.no_grad(), autocast(BF16, "cpu"):
            labelled_cross_entropy(model, batch)  # no gradient
        monkeypatch.setattr(attention, "MOST_TOKENS", 20)
        gradients(model, batch)  # a longer line
    assert calls == []
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before


def test_what_was_there_is_there_again_after_an_error():
    before = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def fail():
        with attention_by_products(True), attention_by_products(True):
            assert ALL_ATTENTION_FUNCTIONS["sdpa"] is not before
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before
