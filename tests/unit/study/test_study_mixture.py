"""A mixture of experts begins as the base, and leaves nothing behind."""

import pytest
import torch

from narrowtune.core.study_settings import ArmSettings
from narrowtune.models.load import load_model
from narrowtune.models.select import resolve
from narrowtune.study.mixture import expert_mixture


@pytest.fixture
def model(tiny):
    return load_model(str(tiny("llama"))).model


IDS = torch.tensor([[5, 9, 3, 7, 2]])


def test_a_copy_like_its_original_is_the_base_whatever_the_router_says(model):
    before = dict(model.named_parameters())
    with torch.no_grad():
        expected = model(IDS).logits
        with expert_mixture(model, resolve(model, "mlp"), 0) as mixed:
            inside = dict(model.named_parameters())
            assert {inside[name].shape for name in mixed.twins} == {
                before[twin].shape for twin in mixed.twins.values()
            }
            assert set(mixed.twins.values()) == set(resolve_names(before))
            for name in mixed.selection.names:
                if ".router." in name:
                    inside[name].normal_()
            assert torch.allclose(model(IDS).logits, expected, atol=1e-5)
            inside[next(iter(mixed.twins))].add_(0.5)
            assert not torch.allclose(model(IDS).logits, expected, atol=1e-3)
        assert list(dict(model.named_parameters())) == list(before)
        assert torch.equal(model(IDS).logits, expected)


@pytest.mark.parametrize("family", ["qwen3_moe", "qwen3_5_moe"])
def test_where_there_are_experts_what_trains_is_what_the_recipe_trains(tiny, family):
    model = load_model(str(tiny(family))).model
    selection = resolve(model, "mlp")
    with expert_mixture(model, selection, 0) as mixed:
        assert sorted(mixed.twins.values()) == sorted(selection.names)
        inside = dict(model.named_parameters())
        for name, parameter in inside.items():
            parameter.requires_grad_(name in mixed.selection.names)
        model(torch.arange(1, 60)[None]).logits.sum().backward()
        assert all(inside[name].grad is not None for name in mixed.selection.names)
        routers = len(mixed.selection.names) - len(mixed.twins)
        assert routers == 2 * model.config.get_text_config().num_hidden_layers


def resolve_names(parameters):
    return [name for name in parameters if ".mlp." in name]


def test_the_router_weighs_token_by_token(model):
    with torch.no_grad(), expert_mixture(model, resolve(model, "mlp"), 0):
        mixture = model.model.layers[0].mlp
        # Drawn here, and not too far from even shares: what ran before must not matter.
        generator = torch.Generator().manual_seed(0)
        states = torch.randn(1, 3, model.config.hidden_size, generator=generator)
        for parameter in mixture.tuned.parameters():
            parameter.mul_(1.5)
        mixture.router.weight.normal_(std=0.3, generator=generator)
        share = (states @ mixture.router.weight.T).softmax(-1)
        expected = share[..., :1] * mixture.original(states)
        expected = expected + share[..., 1:] * mixture.tuned(states)
        assert torch.allclose(mixture(states), expected, atol=1e-6)
        assert share[0, :, 0].std() > 0.01


def test_experts_go_with_whole_mlps_alone():
    for wrong in ({"recipe": "sa_proj"}, {"recipe": "mlp", "wise_ft": 0.5}):
        with pytest.raises(ValueError, match="experts: only with the recipe mlp"):
            ArmSettings(learning_rates=[1e-3], experts=True, **wrong)
