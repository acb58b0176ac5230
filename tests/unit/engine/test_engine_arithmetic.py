from __future__ import annotations

import pytest
import torch
from torch import nn

from narrowtune.core.errors import UsageError
from narrowtune.engine import arithmetic as module
from narrowtune.engine.arithmetic import (
    MAX_FLOAT32_ERROR,
    Arithmetic,
    Mode,
    apply_arithmetic,
    autocast,
    measure_arithmetic,
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 32), nn.Linear(48, 32))


def test_the_choice_is_the_fastest_and_says_how_it_was_made(model):
    found = measure_arithmetic(model, num_tokens=32)
    assert found.threads == 1  # the tests run with one thread
    assert set(found.seconds) >= {"float32 highest, 1 thread", "bfloat16 highest, 1 thread"}
    margin = {name: 1.25 if "medium" in name else 1 for name in found.seconds}
    fastest = min(found.seconds, key=lambda name: found.seconds[name] * margin[name])
    assert found.compute_dtype == fastest.split()[0]
    assert fastest in found.note
    assert found.float32_error is not None
    assert found.float32_error < MAX_FLOAT32_ERROR


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_request_is_honoured(model, dtype):
    found = measure_arithmetic(model, num_tokens=16, requested=dtype)
    assert found.compute_dtype == dtype
    assert found.error is not None
    assert (found.error < MAX_FLOAT32_ERROR) == (dtype == "float32")
    assert f"{dtype} as requested" in found.note


def test_medium_is_not_used_where_it_rounds(model, monkeypatch):
    exact = module._Product.error

    def rounding(product, dtype):
        rounds = torch.get_float32_matmul_precision() == "medium"
        return 3e-3 if rounds else exact(product, dtype)

    monkeypatch.setattr(module._Product, "error", rounding)
    found = measure_arithmetic(model, num_tokens=16, requested="float32")
    assert found.float32_matmul_precision == "highest"
    assert not any("medium" in label for label in found.seconds)
    assert "'medium' is not used: its relative error is 3.0e-03" in found.note


HIGHEST, MEDIUM, BF16 = (
    Mode("float32", "highest"),
    Mode("float32", "medium"),
    Mode("bfloat16", "highest"),
)


@pytest.fixture
def exact_medium(monkeypatch):
    """A processor on which no fp32 product is rounded, whatever this one does."""
    monkeypatch.setattr(
        module._Product, "error", lambda _, dtype: 1e-7 if dtype == "float32" else 3e-3
    )


@pytest.mark.usefixtures("exact_medium")
@pytest.mark.parametrize(
    ("seconds", "requested", "expected"),
    [
        # an idle machine with good bf16
        ((4, 2, 1, 2, 1, 0.5), "auto", ("bfloat16", "medium", 4)),
        # bf16 is emulated, as where there is no avx512_bf16
        ((4, 4.1, 90, 2, 2.1, 45), "auto", ("float32", "highest", 4)),
        # another process holds a core: several threads wait for it
        ((4, 2, 1, 40, 20, 9), "auto", ("bfloat16", "medium", 1)),
        # a little slower than one thread is no reason to give the other cores up
        ((4, 2, 1, 4, 2, 1.1), "auto", ("bfloat16", "medium", 4)),
        ((4, 2, 1, 2, 1, 0.5), "float32", ("float32", "medium", 4)),
        ((4, 2, 1, 4, 2, 90), "bfloat16", ("bfloat16", "medium", 1)),
    ],
)
def test_what_is_chosen(model, monkeypatch, seconds, requested, expected):
    keys = [(mode, threads) for threads in (1, 4) for mode in (HIGHEST, MEDIUM, BF16)]
    table = dict(zip(keys, seconds, strict=True))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(module, "_time", lambda _, mode, threads, __: table[mode, threads])
    monkeypatch.setattr(module, "_PAUSE", 0)
    found = measure_arithmetic(model, num_tokens=16, requested=requested)
    assert (found.compute_dtype, found.float32_matmul_precision, found.threads) == expected


@pytest.mark.usefixtures("exact_medium")
def test_other_work_for_a_moment_does_not_decide(model, monkeypatch):
    """As measured once beside a burst of work: fp32 was chosen, and a run took twice as long."""
    one = {HIGHEST: [2.03], MEDIUM: [1.85], BF16: [1.17]}
    two = {HIGHEST: [1.10], MEDIUM: [1.93, 0.90], BF16: [1.54, 1.49, 0.53]}
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(
        module, "_time", lambda _, mode, threads, __: (one if threads == 1 else two)[mode].pop(0)
    )
    monkeypatch.setattr(module, "_PAUSE", 0)
    found = measure_arithmetic(model, num_tokens=16)
    assert (found.compute_dtype, found.threads) == ("bfloat16", 2)
    assert found.seconds["bfloat16 highest, 2 threads"] == 0.53
    assert not any([*one.values(), *two.values()])  # no more looks than it took


def test_measuring_changes_nothing(model):
    before = [p.detach().clone() for p in model.parameters()]
    state, precision = torch.get_rng_state(), torch.get_float32_matmul_precision()
    measure_arithmetic(model, num_tokens=16)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(state, torch.get_rng_state())
    assert torch.get_float32_matmul_precision() == precision
    assert torch.get_num_threads() == 1


def test_a_model_without_linear_layers():
    with pytest.raises(UsageError, match="no linear layer"):
        measure_arithmetic(nn.Sequential(nn.LayerNorm(4)))


def test_json_round_trip(model):
    found = measure_arithmetic(model, num_tokens=16)
    assert Arithmetic.from_json(found.to_json()) == found
    bare = Arithmetic(compute_dtype="float32", threads=2)
    assert Arithmetic.from_json(bare.to_json()) == bare


def test_settings_hold_inside_and_not_after():
    chosen = Arithmetic(compute_dtype="float32", float32_matmul_precision="medium", threads=2)
    with apply_arithmetic(chosen):
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.get_num_threads() == 2
    assert torch.get_float32_matmul_precision() == "highest"
    with pytest.raises(KeyError), apply_arithmetic(chosen):
        raise KeyError
    assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_num_threads() == 1


def test_autocast_follows_the_dtype_and_sees_new_weights(model):
    x = torch.ones(2, 32)
    bf16 = Arithmetic(compute_dtype="bfloat16", threads=1)
    assert bf16.torch_dtype == torch.bfloat16
    with autocast(Arithmetic(compute_dtype="float32", threads=1), "cpu"):
        assert model[0](x).dtype == torch.float32
    with autocast(bf16, "cpu"):
        first = model[0](x)
    with torch.no_grad():
        model[0].weight.add_(1)
    with autocast(bf16, "cpu"):
        second = model[0](x)
    assert first.dtype == torch.bfloat16
    assert (second - first).abs().min() > 1


def test_a_gpu_without_bf16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "an old GPU")
    device = torch.device("cuda")
    assert module._for_accelerator(device, "auto").compute_dtype == "float32"
    with pytest.raises(UsageError, match="an old GPU"):
        module._for_accelerator(device, "bfloat16")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert module._for_accelerator(device, "auto").compute_dtype == "bfloat16"
    assert module._for_accelerator(device, "float32").compute_dtype == "float32"


@pytest.mark.parametrize(("gain", "chosen"), [(1.1, "highest"), (2.0, "medium")])
def test_onednn_is_taken_where_it_is_faster_by_a_margin(monkeypatch, gain, chosen):
    def timed(products, mode, threads, enough):
        slow = {"bfloat16": 3.0, "float32": 1.0}[mode.dtype]
        return slow / (gain if mode.precision == "medium" else 1) / threads

    monkeypatch.setattr(module, "_time", timed)
    monkeypatch.setattr(module._Product, "error", lambda *_: 1e-7)
    found = measure_arithmetic(nn.Sequential(nn.Linear(32, 32)))
    assert (found.compute_dtype, found.float32_matmul_precision) == ("float32", chosen)


def test_a_cpu_computes_an_fp16_base_in_fp32():
    half = torch.nn.Sequential(torch.nn.Linear(16, 16)).half()
    found = measure_arithmetic(half, num_tokens=16)
    assert found.compute_dtype == "float32"
    assert not any("bfloat16" in name for name in found.seconds)
    with pytest.raises(UsageError, match="dtype: bfloat16"):
        measure_arithmetic(half, num_tokens=16, requested="bfloat16")
