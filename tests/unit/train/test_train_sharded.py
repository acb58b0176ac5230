"""What FSDP is told to share out; that it does is in tests/e2e/test_e2e_sharded.py."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from narrowtune.core.errors import UsageError
from narrowtune.data.collate import Encoded
from narrowtune.models.load import load_model
from narrowtune.models.select import resolve
from narrowtune.train.sharded import check_sharing, plan_sharing, shareable_copy
from tiny_models import FAMILIES, VISION_FAMILIES


def trainer_of(model: object, plugin: object, *, bf16: bool = False) -> SimpleNamespace:
    return SimpleNamespace(
        model=model,
        args=SimpleNamespace(bf16=bf16, device=torch.device("cpu")),
        accelerator=SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin)),
    )


def new_plugin(wrapped: list[str] | None = None) -> SimpleNamespace:
    return SimpleNamespace(
        ignored_modules=None, transformer_cls_names_to_wrap=wrapped, mixed_precision_policy=None
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_shared_out_and_frozen_eyes_are_not(tiny, family):
    loaded = load_model(str(tiny(family)), device="cpu")
    layers = loaded.model.get_submodule(loaded.family.language_model.layers)
    plugin = new_plugin()
    plan_sharing(trainer_of(loaded.model, plugin), loaded, resolve(loaded.model, "sa_proj"))
    assert plugin.transformer_cls_names_to_wrap == [type(layers[0]).__name__]
    assert plugin.mixed_precision_policy is None
    kept = {id(p) for module in plugin.ignored_modules or () for p in module.parameters()}
    eyes = {
        name: id(parameter)
        for name, parameter in loaded.model.named_parameters()
        if loaded.family.component(name) != "language_model"
    }
    assert kept <= set(eyes.values())
    # What stands by itself belongs to the whole model, which every device calls.
    alone = {name.rpartition(".")[2] for name, number in eyes.items() if number not in kept}
    assert alone <= {"image_newline"}
    assert bool(kept) == (family in VISION_FAMILIES)


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_eyes_that_train_are_shared_out_too(tiny, family):
    loaded = load_model(str(tiny(family)), device="cpu")
    plugin = new_plugin()
    trainer = trainer_of(loaded.model, plugin, bf16=True)
    plan_sharing(trainer, loaded, resolve(loaded.model, "vision_tower"))
    assert plugin.ignored_modules is None
    # Qwen3-VL has a list of mergers too.
    assert len(plugin.transformer_cls_names_to_wrap) == (
        3 if family in ("qwen3_vl", "qwen3_vl_moe") else 2
    )
    found = {type(module).__name__ for module in loaded.model.modules()}
    assert set(plugin.transformer_cls_names_to_wrap) <= found
    # Gradients are added up in fp32, as without FSDP.
    assert plugin.mixed_precision_policy.param_dtype == torch.bfloat16
    assert plugin.mixed_precision_policy.reduce_dtype == torch.float32
    own = new_plugin(["Mine"])
    plan_sharing(trainer_of(loaded.model, own), loaded, resolve(loaded.model, "vision_tower"))
    assert own.transformer_cls_names_to_wrap == ["Mine"]


def test_where_nothing_is_shared_out_it_is_said(tiny):
    loaded = load_model(str(tiny("llama")), device="cpu")
    with pytest.raises(UsageError, match="does not share out on cpu"):
        plan_sharing(trainer_of(loaded.model, None), loaded, resolve(loaded.model, "sa_proj"))


def test_eyes_train_only_where_every_row_has_a_picture(tiny):
    loaded = load_model(str(tiny("qwen2_5_vl")), device="cpu")
    text = Encoded([1], [1])
    pictured = Encoded([1], [1], {"pixel_values": torch.zeros(1)})
    check_sharing(loaded, resolve(loaded.model, "sa_proj"), [pictured, text])
    check_sharing(loaded, resolve(loaded.model, "vision_tower"), [pictured, pictured])
    with pytest.raises(UsageError, match="rows without a picture"):
        check_sharing(loaded, resolve(loaded.model, "vision_tower"), [pictured, text])


@pytest.mark.parametrize(
    "family", ["llama", "qwen2_5_vl", "qwen3_vl", "llava_onevision", "gemma3", "internvl"]
)
def test_the_copy_shares_what_is_frozen_and_nothing_that_trains(tiny, family):
    loaded = load_model(str(tiny(family)), device="cpu")
    chosen = set(resolve(loaded.model, "sa_proj").names)
    for name, parameter in loaded.model.named_parameters():
        parameter.requires_grad_(name in chosen)
    copied = shareable_copy(loaded.model)
    others = dict(copied.named_parameters(remove_duplicate=False))
    for name, parameter in loaded.model.named_parameters(remove_duplicate=False):
        other = others[name]
        assert other is not parameter
        assert torch.equal(other, parameter)
        assert other.requires_grad == (name in chosen)
        assert (other.data_ptr() == parameter.data_ptr()) == (name not in chosen)
    # Tied weights stay tied.
    assert len(list(copied.parameters())) == len(list(loaded.model.parameters()))
