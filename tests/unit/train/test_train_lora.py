"""LoRA for comparisons: on the recipe's layers alone, merged, and nothing of it left behind."""

from contextlib import suppress

import pytest
import torch

from narrowtune.core.errors import SelectionError
from narrowtune.core.study_settings import ArmSettings, LoraSettings
from narrowtune.models.load import load_model
from narrowtune.models.select import resolve
from narrowtune.train.lora import low_rank


@pytest.fixture
def model(tiny):
    return load_model(str(tiny("llama"))).model


def state(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_what_is_left_is_the_model_with_the_product_added(model):
    before, selection = state(model), resolve(model, "mlp_gate_up")
    settings = LoraSettings(rank=3, alpha=6.0)
    torch.manual_seed(0)
    with low_rank(model, selection, settings) as adapters:
        assert len(adapters.names) == 2 * len(selection.names)
        assert adapters.num_parameters == sum(
            3 * sum(before[name].shape) for name in selection.names
        )
        inside = dict(model.named_parameters())
        product = {}
        for name in selection.names:
            stem = name.removesuffix(".weight")
            down, up = (inside[f"{stem}.lora_{x}.default.weight"] for x in "AB")
            with torch.no_grad():
                up.normal_()
            product[name] = (6.0 / 3) * (up @ down).detach()
    after = state(model)
    assert list(after) == list(before)
    for name, value in after.items():
        if name in product:
            assert torch.allclose(value, before[name] + product[name], atol=1e-6)
            assert not torch.equal(value, before[name])
        else:
            assert torch.equal(value, before[name])
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_after_an_error_the_model_is_what_it_was(model):
    before = state(model)
    with (
        suppress(KeyboardInterrupt),
        low_rank(model, resolve(model, "sa_proj"), LoraSettings()) as adapters,
    ):
        with torch.no_grad():
            dict(model.named_parameters())[adapters.names[1]].normal_()
        raise KeyboardInterrupt
    after = state(model)
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_selection_without_linear_layers_is_refused(model):
    selection = resolve(model, "sa_proj")
    empty = type(selection)(**{**vars(selection), "names": ("model.norm.weight",)})
    with (
        pytest.raises(SelectionError, match="no linear layer"),
        low_rank(model, empty, LoraSettings()),
    ):
        pass


def test_an_average_of_adapters_is_refused():
    with pytest.raises(ValueError, match="lora with wise_ft, density or pull"):
        ArmSettings(recipe="mlp", learning_rates=[1e-3], lora=LoraSettings(), wise_ft=0.5)


def test_experts_have_no_adapters_nor_what_is_taken_for_them(tiny):
    model = load_model(str(tiny("qwen3_moe"))).model
    before, settings = state(model), LoraSettings(rank=2)
    attention = {name.removesuffix(".weight") for name in resolve(model, "sa_proj").names}
    with low_rank(model, resolve(model, "sa_proj+mlp_gate_up"), settings) as adapters:
        beside = {name.partition(".lora_")[0] for name in adapters.names}
        assert beside == attention
    assert list(state(model)) == list(before)
    with (
        pytest.raises(SelectionError, match="no linear layer"),
        low_rank(model, resolve(model, "mlp"), settings),
    ):
        pass
