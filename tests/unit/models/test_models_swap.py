"""Hashes and swaps are exact, bit for bit."""

from __future__ import annotations

import hashlib

import pytest
import torch

from narrowtune.core.errors import ModelError, SelectionError
from narrowtune.data.digest import tensor_sha256
from narrowtune.models.fingerprint import fingerprint, tensor_hashes
from narrowtune.models.load import load_model
from narrowtune.models.select import select
from narrowtune.models.swap import WeightSwap


def test_tensor_hash_is_of_dtype_shape_and_bytes() -> None:
    value = torch.tensor([[1.0, -2.5]], dtype=torch.bfloat16)
    raw = b"bfloat16 [1, 2]\n" + bytes([0x80, 0x3F, 0x20, 0xC0])
    assert tensor_sha256(value) == hashlib.sha256(raw).hexdigest()
    grid = torch.arange(6.0).reshape(2, 3)
    assert tensor_sha256(grid.T.contiguous().T) == tensor_sha256(grid)
    assert tensor_sha256(grid.T) != tensor_sha256(grid)
    assert tensor_sha256(torch.tensor(0.0)) != tensor_sha256(torch.tensor(-0.0))
    assert tensor_sha256(torch.zeros(2)) != tensor_sha256(torch.zeros(2, dtype=torch.bfloat16))
    assert tensor_sha256(torch.zeros(0)) != tensor_sha256(torch.zeros(0, 1))


def test_fingerprint_sees_every_parameter_and_persistent_buffer() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    model.register_buffer("scratch", torch.zeros(1), persistent=False)
    base = fingerprint(model)
    assert set(tensor_hashes(model)) == {
        "0.weight",
        "0.bias",
        "1.weight",
        "1.bias",
        "1.running_mean",
        "1.running_var",
        "1.num_batches_tracked",
    }
    model.scratch.add_(1)
    assert fingerprint(model) == base
    for name, tensor in model.state_dict().items():
        tensor.view(-1)[0] += 1
        assert fingerprint(model) != base, name
        tensor.view(-1)[0] -= 1
    assert fingerprint(model, ["0.weight"]) == fingerprint(model, iter(["0.weight"]))
    with pytest.raises(SelectionError, match=r"no 2\.weight"):
        fingerprint(model, ["2.weight"])


def test_a_tied_tensor_is_counted_once(tiny) -> None:
    hashes = tensor_hashes(load_model(str(tiny("llama"))).model)
    assert "model.embed_tokens.weight" in hashes
    assert "lm_head.weight" not in hashes


def tuned_model(folder, recipe: str = "sa_proj"):
    """A model with changed selected weights, and the base's tensors."""
    model = load_model(str(folder), device="cpu").model
    selection = select(model, recipe)
    base = {n: p.detach().clone() for n, p in model.named_parameters() if n in selection.names}
    torch.manual_seed(0)
    with torch.no_grad():
        for name in selection.names:
            parameter = model.get_parameter(name)
            parameter.add_(torch.randn_like(parameter))
    return model, base


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swap_gives_base_inside_and_tuned_after(tiny, dtype) -> None:
    folder = tiny("qwen2", dtype)
    before = fingerprint(load_model(str(folder)).model)
    model, base = tuned_model(folder, "language_model")
    after = fingerprint(model)
    pointers = {name: model.get_parameter(name).data_ptr() for name in base}
    swap = WeightSwap(model, base)
    with swap.base():
        assert fingerprint(model) == before
    assert fingerprint(model) == after != before
    assert {name: model.get_parameter(name).data_ptr() for name in base} == pointers
    with swap.tuned():
        assert fingerprint(model) == after
    with swap.base():
        assert fingerprint(model) == before


def test_swap_restores_after_an_error(tiny) -> None:
    model, base = tuned_model(tiny("llama"))
    after = fingerprint(model)
    swap = WeightSwap(model, base)
    with pytest.raises(ZeroDivisionError), swap.base():
        raise ZeroDivisionError
    assert fingerprint(model) == after
    with swap.base():
        assert fingerprint(model) != after


def test_nested_swaps_are_refused(tiny) -> None:
    model, base = tuned_model(tiny("llama"))
    after = fingerprint(model)
    swap = WeightSwap(model, base)
    for inner in (swap.base, swap.tuned):
        with pytest.raises(ModelError, match="in it already"), swap.base(), inner():
            pass
        assert fingerprint(model) == after


def test_masters_of_a_bfloat16_base(tiny) -> None:
    """float32 masters: base is exact, tuned is what a delta stores, masters come back."""
    model, base = tuned_model(tiny("llama", torch.bfloat16))
    masters = {}
    for name in base:
        parameter = model.get_parameter(name)
        parameter.data = parameter.data.float() * 1.0001
        masters[name] = parameter.data.clone()
    swap = WeightSwap(model, base)
    with swap.base():
        for name, tensor in base.items():
            assert model.get_parameter(name).dtype == torch.float32
            assert torch.equal(model.get_parameter(name).to(torch.bfloat16), tensor)
            assert torch.equal(model.get_parameter(name), tensor.float())
    with swap.tuned():
        for name, master in masters.items():
            assert torch.equal(model.get_parameter(name), master.to(torch.bfloat16).float())
            assert not torch.equal(model.get_parameter(name), master)
    for name, master in masters.items():
        assert torch.equal(model.get_parameter(name), master)


def test_swap_refuses_what_does_not_fit(tiny) -> None:
    model, base = tuned_model(tiny("llama", torch.bfloat16))
    with pytest.raises(SelectionError, match="no such parameter"):
        WeightSwap(model, {"model.nothing": torch.zeros(1)})
    name = next(iter(base))
    with pytest.raises(SelectionError, match="a parameter of shape"):
        WeightSwap(model, {name: torch.zeros(1)})
    with pytest.raises(ModelError, match="can't hold those values exactly"):
        WeightSwap(model, {name: base[name].float()})
    with pytest.raises(ModelError, match="can't hold those values exactly"):
        WeightSwap(model, {name: base[name].half()})


def test_training_inside_a_swap_is_noticed(tiny) -> None:
    model, base = tuned_model(tiny("llama"))
    after = fingerprint(model)
    swap = WeightSwap(model, base)
    name = next(iter(base))
    with (
        pytest.raises(ModelError, match="changed inside it"),
        swap.base(),
        torch.no_grad(),
    ):
        model.get_parameter(name).add_(1)
    assert fingerprint(model) == after
