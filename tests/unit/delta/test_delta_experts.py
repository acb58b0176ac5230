"""Experts, which are one tensor in memory and many, or a transposed one, on disk."""

from __future__ import annotations

import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from delta_cases import disturb, load, same_bits, weights
from narrowtune.core.errors import DeltaError, ModelError
from narrowtune.delta.apply import apply
from narrowtune.delta.base import Base
from narrowtune.delta.extract import extract
from narrowtune.delta.folder import apply_to_folder, merge, undo_folder
from narrowtune.delta.low_rank import LowRank
from narrowtune.delta.store import Delta
from narrowtune.models.select import select

MIXTURES = ("qwen3_moe", "mixtral", "qwen3_vl_moe", "qwen3_5_moe")


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def change(folder, name, out):
    """Copy a folder and change one tensor of its weights."""
    shutil.copytree(folder, out)
    tensors = load_file(out / "model.safetensors")
    tensors[name] = tensors[name] + 1
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


@pytest.mark.parametrize(
    ("family", "recipe"),
    [
        *((family, "mlp_gate_up") for family in MIXTURES),
        ("qwen3_moe", "language_model"),
        ("mixtral", "language_model"),  # whose router has another name on disk
        ("qwen3_5_moe", "mlp"),
    ],
)
def test_applied_is_tuned_and_undone_is_the_same_files(make_case, tmp_path, family, recipe):
    case = make_case(family, torch.bfloat16, recipe)
    before = files(case.folder)
    result = apply_to_folder(case.folder, case.path, tmp_path / "tuned")
    stored = load_file(case.folder / "model.safetensors")
    tuned = load_file(tmp_path / "tuned" / "model.safetensors")
    changed = {name for name, tensor in stored.items() if not torch.equal(tensor, tuned[name])}
    assert result.num_tensors == len(changed)
    assert any(".experts." in name for name in changed)
    assert same_bits(weights(load(tmp_path / "tuned")), case.tuned)
    merge(case.folder, case.path, tmp_path / "merged", max_shard_size="20KB")
    assert same_bits(weights(load(tmp_path / "merged")), case.tuned)
    undo_folder(tmp_path / "tuned", case.path, tmp_path / "again")
    assert files(tmp_path / "again") == before


@pytest.mark.parametrize("family", MIXTURES)
def test_a_folder_as_in_memory_is_the_same_base(make_case, tmp_path, family):
    case = make_case(family, torch.bfloat16, "mlp_gate_up")
    base = tmp_path / "base"
    shutil.copytree(case.folder, base)
    save_file(case.base, base / "model.safetensors", metadata={"format": "pt"})
    assert same_bits(weights(load(base)), case.base)
    apply_to_folder(base, case.path, tmp_path / "out")
    assert same_bits(load_file(tmp_path / "out" / "model.safetensors"), case.tuned)


@pytest.mark.parametrize("family", MIXTURES)
def test_values_before_training_are_read_from_the_folder(tiny, tmp_path, family):
    folder = tiny(family, torch.bfloat16)
    model = load(folder)
    selection = select(model, "mlp")
    base = weights(model)
    disturb(model, selection.names)
    delta = extract(model, selection, folder)
    given = extract(model, selection, {name: base[name] for name in selection.names})
    assert delta.metadata == given.metadata
    read = Base(folder, [delta], "read the base")
    for name in selection.names:
        assert torch.equal(read.read(name), base[name])
        assert torch.equal(read.tuned(delta, name), model.get_parameter(name).bfloat16())


@pytest.mark.parametrize("family", MIXTURES)
def test_an_expert_that_is_not_the_bases_is_refused(make_case, tmp_path, family):
    case = make_case(family, torch.bfloat16, "sa_proj")
    stored = load_file(case.folder / "model.safetensors")
    one = max(name for name in stored if ".experts." in name)
    other = change(case.folder, one, tmp_path / "other")
    with pytest.raises(DeltaError, match=r"leaves alone are not its base's: .*\.experts\."):
        apply_to_folder(other, case.path, tmp_path / "out")
    with pytest.raises(DeltaError, match=r"leaves alone are not its base's: .*\.experts\."):
        Base(other, [Delta.load(case.path)], "read the base")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_lacks_an_experts_part_is_refused(make_case, tmp_path):
    case = make_case("qwen3_moe", torch.bfloat16, "mlp_gate_up")
    other = tmp_path / "other"
    shutil.copytree(case.folder, other)
    tensors = load_file(other / "model.safetensors")
    del tensors["model.layers.1.mlp.experts.3.up_proj.weight"]
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises((DeltaError, ModelError), match=r"experts\.gate_up_proj"):
        apply_to_folder(other, case.path, tmp_path / "out")


@pytest.mark.parametrize("recipe", ["mlp_gate_up", "sa_proj"])
def test_parts_that_do_not_fit_each_other_are_refused(make_case, tmp_path, recipe):
    case = make_case("qwen3_moe", torch.bfloat16, recipe)
    other = tmp_path / "other"
    shutil.copytree(case.folder, other)
    tensors = load_file(other / "model.safetensors")
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    tensors[name] = tensors[name][:-1].contiguous()
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="do not fit each other"):
        apply_to_folder(other, case.path, tmp_path / "out")


def test_adapters_are_of_linear_layers_alone(make_case):
    case = make_case("qwen3_moe", torch.bfloat16, "language_model")
    kept = LowRank(case.folder, Delta.load(case.path), rank=4).kept()
    experts = {"mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"}
    assert {f"model.layers.1.{name}" for name in experts} <= set(kept.left_out)
    assert "model.layers.0.self_attn.q_proj.weight" in kept.by_tensor
    # peft would look for adapters of the layer without experts in the experts of others.
    assert "model.layers.0.mlp.gate_proj.weight" in kept.left_out
    alone = make_case("mixtral", torch.bfloat16, "mlp_gate_up")
    with pytest.raises(DeltaError, match="no matrix of a linear layer"):
        LowRank(alone.folder, Delta.load(alone.path), rank=4)


@pytest.mark.parametrize("family", ["qwen3_moe", "qwen3_5_moe"])
def test_an_adapter_of_a_mixture_is_what_peft_loads(make_case, tmp_path, family):
    case = make_case(family, torch.float32, "language_model")
    adapter = LowRank(case.folder, Delta.load(case.path), rank=4)
    adapter.save(tmp_path / "adapter", "card")
    expected = case.load()
    apply(expected, adapter.as_delta())
    loaded = PeftModel.from_pretrained(case.load(), tmp_path / "adapter").merge_and_unload()
    expected = dict(expected.named_parameters())
    for name, parameter in loaded.named_parameters():
        torch.testing.assert_close(parameter, expected[name], atol=1e-6, rtol=1e-5)
