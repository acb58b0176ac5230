"""Attention by products: the same numbers as torch's own, and only where it is quicker."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from fp64 import InFp64, difference
from narrowtune.core.config import parse_config
from narrowtune.data.collate import IGNORE_INDEX, Encoded, collate
from narrowtune.engine import attention
from narrowtune.engine.arithmetic import (
    Arithmetic,
    apply_arithmetic,
    autocast,
    measure_arithmetic,
)
from narrowtune.engine.attention import attention_by_products, by_products
from narrowtune.engine.forward import labelled_cross_entropy
from narrowtune.engine.generate import generate_greedy
from narrowtune.engine.packing import as_numbers, packing
from narrowtune.models.load import load_model
from narrowtune.train.workload import Batches, Workload

BF16 = Arithmetic(compute_dtype="bfloat16", attention="products", threads=1)
FP32 = Arithmetic(compute_dtype="float32", attention="products", threads=1)


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


@pytest.mark.parametrize("width", [64, 96, 128])
@pytest.mark.parametrize("common", [0.0, 30.0])
def test_in_bf16_it_errs_like_the_fused_kernel(width, common):
    # Keys of some models have a large part in common, from biases: here in a few dimensions.
    sizes = {"heads": 4, "shared": 4, "length": 120, "width": width}
    inputs, mask = make_inputs(torch.bfloat16, **sizes)
    with torch.no_grad():
        inputs[1][..., :3] += common
    exact_inputs = [x.detach().double().requires_grad_() for x in inputs]
    exact = with_gradients(lambda *given: fused(*given, mask.double()), exact_inputs)
    ours = with_gradients(lambda *given: by_products(*given, mask, None), inputs)
    theirs = with_gradients(lambda *given: fused(*given, mask), inputs)

    def errors(found):
        return [
            float((x.double() - y).norm() / y.norm()) for x, y in zip(found, exact, strict=True)
        ]

    for mine, other in zip(errors(ours), errors(theirs), strict=True):
        assert mine < max(2 * other, 0.012)


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


def gradients(model, batch, arithmetic=BF16):
    model.zero_grad()
    with autocast(arithmetic, "cpu"):
        loss, number = labelled_cross_entropy(model, batch)
    (loss / number).backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return float(loss.detach()) / number, grads


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_is_computed_by_products_and_is_the_same(tiny, batch, calls, checkpointing):
    model = load_model(str(tiny("llama")), device="cpu").model
    model.train()
    plain, expected = gradients(model, batch)
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


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
def test_in_fp32_a_step_by_products_has_the_plain_gradients(tiny, batch, calls, family):
    model = load_model(str(tiny(family)), device="cpu").model.train()
    with packing("never"):
        plain, expected = gradients(model, batch, FP32)
    with apply_arithmetic(FP32), packing("always"):
        loss, found = gradients(model, batch, FP32)
    assert calls == [torch.float32] * model.config.num_hidden_layers
    assert loss == pytest.approx(plain, rel=1e-6)
    assert difference(found, expected) <= 1e-5


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
def test_in_fp64_a_step_by_products_has_the_plain_gradients(
    tiny, batch, calls, family, monkeypatch
):
    model = load_model(str(tiny(family)), device="cpu").model.double().train()
    # A run never computes in fp64, and so products are not taken there by themselves.
    monkeypatch.setattr(attention, "_is_quicker", lambda _q, _k, mask: mask.is_floating_point())
    with InFp64():
        with packing("never"):
            plain, expected = gradients(model, batch, FP32)
        with apply_arithmetic(FP32), packing("always"):
            loss, found = gradients(model, batch, FP32)
    assert calls == [torch.float64] * model.config.num_hidden_layers
    assert loss == pytest.approx(plain, rel=1e-12)
    assert difference(found, expected) <= 1e-12


def test_nothing_else_is_computed_by_products(tiny, batch, calls, monkeypatch):
    model = load_model(str(tiny("llama")), device="cpu").model.train()
    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    with packing("always"):
        gradients(model, batch)  # outside the block
    with apply_arithmetic(BF16.model_copy(update={"packing": False})):
        gradients(model, batch)  # the plain path
    with apply_arithmetic(BF16.model_copy(update={"attention": "fused"})), packing("always"):
        gradients(model, batch)  # where the fused kernel is quicker
    with apply_arithmetic(BF16), packing("always"):
        labelled_cross_entropy(model.double(), batch)  # neither in fp32 nor in bf16
        model.float().eval()
        gradients(model, batch)
        model.train()
        monkeypatch.setattr(attention, "MOST_TOKENS", 20)
        gradients(model, batch)  # a longer line
    assert calls == []
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before


def test_inside_it_a_step_is_as_torch_has_it(tiny, batch, calls):
    model = load_model(str(tiny("llama")), device="cpu").model
    model.train()
    with apply_arithmetic(BF16.model_copy(update={"attention": "fused"})), packing("always"):
        loss, expected = gradients(model, batch)
    with apply_arithmetic(BF16), packing("always"):
        with attention.attention_as_torch_has_it():
            found = gradients(model, batch)
        assert not calls
        gradients(model, batch)
        assert calls
    assert found[0] == loss
    assert all(found[1][name].equal(mine) for name, mine in expected.items())


def test_a_teacher_without_gradients_computes_as_its_student(tiny, batch, calls):
    model = load_model(str(tiny("llama")), device="cpu").model.train()
    with apply_arithmetic(BF16), packing("always"), autocast(BF16, "cpu"):
        with torch.no_grad():
            teacher, _ = labelled_cross_entropy(model, batch)
        student, _ = labelled_cross_entropy(model, batch)
    assert len(calls) == 2 * model.config.num_hidden_layers
    assert torch.equal(teacher, student.detach())


def test_a_wrapped_model_computes_by_products_too(tiny, batch, calls, one_process):
    model = load_model(str(tiny("llama")), device="cpu").model.train()
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
    with apply_arithmetic(BF16), packing("always"), autocast(BF16, "cpu"):
        labelled_cross_entropy(wrapped, batch)
    assert len(calls) == model.config.num_hidden_layers


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_quicker_is_measured_in_the_dtype_that_is_chosen(tiny, monkeypatch, dtype):
    model = load_model(str(tiny("llama")), device="cpu").model
    for quicker in ("fused", "products"):
        timed = _as_if(1.0 if quicker == "fused" else 3.0, 2.0)
        monkeypatch.setattr(attention, "_seconds", timed)
        found = measure_arithmetic(model, requested=dtype)
        assert timed.dtypes == [getattr(torch, dtype)] * 2
        assert found.attention == quicker
        assert f"attention {quicker} (a layer's: fused" in found.note
        assert Arithmetic.from_json(found.to_json()) == found


def _as_if(*seconds):
    left = list(seconds)

    def timed(attend, inputs):
        timed.dtypes.append(attend().dtype)
        return left.pop(0)

    timed.dtypes = []
    return timed


@pytest.mark.parametrize(("arithmetic", "item"), [(BF16, 2), (FP32, 4)])
def test_a_plan_counts_the_squares(tiny, tmp_path, arithmetic, item):
    loaded = load_model(str(tiny("llama")), device="cpu")
    values = {
        "model": "m",
        "skill": "rows.jsonl",
        "output_dir": str(tmp_path),
        "training": {"global_batch_size": 4, "per_device_train_batch_size": 4},
    }
    ids = list(range(5, 45))
    rows = [Encoded([*ids[:n], 7], [IGNORE_INDEX] * n + [7]) for n in range(20, 40)]
    batches = Batches(loaded, parse_config(values, "a test"), Workload(rows=rows), 1)
    config = loaded.model.config
    most = max(size.rows * size.length**2 for size, _ in batches.sizes)
    held = batches.attention_bytes(arithmetic, checkpointing=False)
    assert held == item * config.num_hidden_layers * config.num_attention_heads * most > 0
    one_layer = batches.attention_bytes(arithmetic, checkpointing=True)
    assert one_layer * config.num_hidden_layers == held
    fused = arithmetic.model_copy(update={"attention": "fused"})
    assert batches.attention_bytes(fused, checkpointing=False) == 0


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, 1),
        ({"sliding_window": 4096}, 1),
        ({"dropout": 0.1}, 0),
        ({"position_bias": torch.zeros(1, 6, 37, 37)}, 0),
    ],
)
def test_what_changes_the_scores_is_left_to_the_fused_kernel(calls, more, expected):
    inputs, mask = make_inputs(torch.bfloat16)
    module = torch.nn.Module().train()
    module.num_key_value_groups = 3
    with attention_by_products(True), autocast(BF16, "cpu"):
        found, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](module, *inputs, mask, **more)
    assert found.shape == (2, 37, 6, 16)
    assert len(calls) == expected


MEDIUM = Arithmetic(compute_dtype="float32", float32_matmul_precision="medium", threads=1)


@pytest.mark.parametrize("precision", ["medium", "highest"])
def test_a_model_that_answers_attends_by_torchs_own_products(monkeypatch, precision):
    seen, module = [], torch.nn.Module().eval()

    def fused(_, query, **others):
        seen.append((torch.get_float32_matmul_precision(), others))
        if "fail" in others:
            raise KeyError
        return query, None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "sdpa", fused)
    before = torch.get_float32_matmul_precision()
    query = torch.ones(1)
    with apply_arithmetic(MEDIUM.model_copy(update={"float32_matmul_precision": precision})):
        assert ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, scaling=2.0) == (query, None)
        with pytest.raises(KeyError):
            ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, fail=True)
        assert torch.get_float32_matmul_precision() == precision
        ALL_ATTENTION_FUNCTIONS["sdpa"](module.train(), query)
    assert [told for told, _ in seen] == ["highest", "highest", precision]
    assert seen[0][1] == {"scaling": 2.0}
    assert torch.get_float32_matmul_precision() == before
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is fused


def test_its_answers_are_the_same(tiny):
    loaded = load_model(str(tiny("llama")), device="cpu")
    prompts = [Encoded(list(range(5, 5 + n)), [IGNORE_INDEX] * n) for n in (4, 9, 17)]
    sizes = {"max_new_tokens": 6, "batch_size": 3}
    plain = generate_greedy(loaded, prompts, **sizes)
    with apply_arithmetic(MEDIUM):
        found = generate_greedy(loaded, prompts, **sizes)
    assert [answer.step_ids for answer in found] == [answer.step_ids for answer in plain]


def test_what_was_there_is_there_again_after_an_error():
    before = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def fail():
        with attention_by_products(True), attention_by_products(True):
            assert ALL_ATTENTION_FUNCTIONS["sdpa"] is not before
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before
