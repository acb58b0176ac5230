"""Loading: folders that must be refused are, before transformers sees them; the rest is exact."""

from __future__ import annotations

import json
import logging
import re
import shutil
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import PIL.Image
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file

from narrowtune.core import extras as extras_module
from narrowtune.core.errors import DeltaError, ModelError, UnknownFamilyError, UsageError
from narrowtune.core.recipes import RECIPES
from narrowtune.delta.extract import extract
from narrowtune.delta.folder import apply_to_folder, undo_folder
from narrowtune.models import hub as hub_module
from narrowtune.models import load as load_module
from narrowtune.models.disk import check_folder, disk_files, locate
from narrowtune.models.families import find_family, known_families
from narrowtune.models.fingerprint import fingerprint, tensor_hashes
from narrowtune.models.load import load_model, load_reader, save_pretrained
from narrowtune.models.processors import picture_settings
from narrowtune.models.select import resolve
from narrowtune.models.stored import Stored
from narrowtune.models.structure import find_ties
from narrowtune.train.masters import copy_tensors
from tiny_models import FAMILIES, VISION_FAMILIES


@pytest.fixture
def copy(tiny, tmp_path):
    """A copy of a tiny folder that a test may damage."""
    return lambda family="llama": shutil.copytree(tiny(family), tmp_path / "model")


@pytest.fixture
def no_transformers(monkeypatch):
    """Fails the test if a folder gets as far as transformers."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("transformers saw the folder")

    for auto in ("AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoTokenizer"):
        monkeypatch.setattr(getattr(load_module, auto), "from_pretrained", fail)
    monkeypatch.setattr(load_module.AutoProcessor, "from_pretrained", fail)


def edit(path: Path, **changes: Any) -> None:
    value = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**value, **changes}))


def edit_weights(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("family", FAMILIES)
def test_a_loaded_model_is_the_stored_one(tiny, family: str) -> None:
    loaded = load_model(str(tiny(family)), device="cpu")
    assert loaded.family.name == family
    assert not loaded.model.training
    assert loaded.dtype == torch.float32
    assert loaded.model.config._attn_implementation == "sdpa"
    assert (loaded.processor is not None) == (family in VISION_FAMILIES)
    stored = load_file(tiny(family) / "model.safetensors")
    ties = find_ties(loaded.model)
    parameters = dict(loaded.model.named_parameters())
    places = locate(loaded.family, parameters, tiny(family), ties)
    parts = [part for found in places.values() for place in found for part in place.names]
    assert len(parts) == len(stored)
    assert set(parts) == set(stored)
    for name, (place, *copies) in places.items():
        assert not copies
        found = place.assemble(stored.__getitem__, tuple(parameters[name].shape))
        assert torch.equal(parameters[name], found)
        taken = dict(place.take_apart(parameters[name].detach(), stored.__getitem__))
        assert set(taken) == set(place.names)
        assert all(torch.equal(part, stored[disk]) for disk, part in taken.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_names_on_disk_exist_in_the_folder(tiny, family: str) -> None:
    model = load_model(str(tiny(family)), device="cpu").model
    stored = set(disk_files(tiny(family)))
    for recipe in RECIPES:
        if recipe in ("projector", "vision_tower") and family not in VISION_FAMILIES:
            continue
        selection = resolve(model, recipe)
        assert set(selection.disk_names) == set(selection.names)
        parts = [part for name in selection.disk_names.values() for part in name.split(", ")]
        assert {part.replace("*", "3") for part in parts} <= stored
        assert {part.replace("*", "4") for part in parts if "*" in part}.isdisjoint(stored)


@pytest.mark.parametrize(
    ("family", "memory", "disk"),
    [
        ("llama", "model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"),
        (
            "llava",
            "model.language_model.layers.1.mlp.up_proj.weight",
            "language_model.model.layers.1.mlp.up_proj.weight",
        ),
        ("llava", "lm_head.weight", "language_model.lm_head.weight"),
        ("llava_next", "model.image_newline", "image_newline"),
        (
            "llava_onevision",
            "model.vision_tower.encoder.layers.0.mlp.fc1.bias",
            "vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias",
        ),
        (
            "qwen2_5_vl",
            "model.language_model.layers.1.mlp.up_proj.weight",
            "model.layers.1.mlp.up_proj.weight",
        ),
        ("qwen2_5_vl", "model.visual.merger.mlp.0.bias", "visual.merger.mlp.0.bias"),
        ("qwen2_5_vl", "lm_head.weight", "lm_head.weight"),
        ("qwen2_vl", "model.visual.merger.mlp.0.bias", "visual.merger.mlp.0.bias"),
        (
            "qwen3_vl",
            "model.visual.deepstack_merger_list.0.linear_fc1.bias",
            "model.visual.deepstack_merger_list.0.linear_fc1.bias",
        ),
        (
            "gemma3",
            "model.language_model.layers.1.mlp.up_proj.weight",
            "language_model.model.layers.1.mlp.up_proj.weight",
        ),
        (
            "gemma3",
            "model.vision_tower.post_layernorm.weight",
            "vision_tower.vision_model.post_layernorm.weight",
        ),
        (
            "gemma3",
            "model.multi_modal_projector.mm_input_projection_weight",
            "multi_modal_projector.mm_input_projection_weight",
        ),
        ("internvl", "lm_head.weight", "language_model.lm_head.weight"),
        (
            "internvl",
            "model.vision_tower.encoder.layer.0.lambda_1",
            "vision_tower.encoder.layer.0.lambda_1",
        ),
    ],
)
def test_published_names(tiny, family: str, memory: str, disk: str) -> None:
    loaded = load_model(str(tiny(family)), device="cpu")
    assert loaded.family.disk_candidates(memory)[0] == disk
    assert resolve(loaded.model, "full").disk_names[memory] == disk


def test_other_layouts_on_disk_are_found(tiny, copy) -> None:
    folder = copy("qwen2_5_vl")
    model = load_model(str(folder), device="cpu").model
    in_memory = {name: p.detach().clone() for name, p in model.named_parameters()}
    save_file(in_memory, folder / "model.safetensors", metadata={"format": "pt"})
    again = load_model(str(folder), device="cpu")
    assert fingerprint(again.model) == fingerprint(model)
    found = locate(again.family, in_memory, folder, {})
    assert found == {name: (Stored((name,)),) for name in in_memory}
    with pytest.raises(ModelError, match="no tensor called"):
        locate(again.family, ["model.language_model.layers.7.mlp.up_proj.weight"], folder, {})


def test_a_tied_tensor_stored_twice_is_found_twice(copy) -> None:
    folder = copy("qwen2")

    def store_head(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    edit_weights(folder, store_head)
    loaded = load_model(str(folder), device="cpu")
    ties = find_ties(loaded.model)
    name = "model.embed_tokens.weight"
    assert ties == {name: ("lm_head.weight",)}
    places = (Stored((name,)), Stored(("lm_head.weight",)))
    assert locate(loaded.family, [name], folder, ties) == {name: places}


@pytest.mark.parametrize("family", ["phi3", "llava", "qwen2_5_vl", "llava_onevision"])
def test_saving_keeps_names_bits_and_the_original_files(tiny, tmp_path, family: str) -> None:
    loaded = load_model(str(tiny(family)), device="cpu")
    out = tmp_path / "saved"
    save_pretrained(loaded, out)
    assert set(disk_files(out)) == set(disk_files(tiny(family)))
    for path in tiny(family).iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            assert (out / path.name).read_bytes() == path.read_bytes(), path.name
    again = load_model(str(out), device="cpu")
    assert tensor_hashes(again.model) == tensor_hashes(loaded.model)
    with pytest.raises(ModelError, match="files there already"):
        save_pretrained(loaded, out)


def test_sharded_folders_load(tiny, tmp_path) -> None:
    loaded = load_model(str(tiny("mistral")), device="cpu")
    save_pretrained(loaded, tmp_path / "out", max_shard_size="60KB")
    assert len(set(disk_files(tmp_path / "out").values())) > 1
    again = load_model(str(tmp_path / "out"), device="cpu")
    assert fingerprint(again.model) == fingerprint(loaded.model)
    shard = next(iter(disk_files(tmp_path / "out").values()))
    shard.unlink()
    with pytest.raises(ModelError, match="no safetensors file in the folder"):
        load_model(str(tmp_path / "out"))


def test_saving_refuses_masters(tiny, tmp_path) -> None:
    loaded = load_model(str(tiny("llama", torch.bfloat16)), device="cpu")
    loaded.model.model.norm.to(torch.float32)
    with pytest.raises(ModelError, match="finish training first"):
        save_pretrained(loaded, tmp_path / "out")


def test_dtypes(tiny, copy) -> None:
    assert load_model(str(tiny("llama", torch.bfloat16))).dtype == torch.bfloat16
    wide = load_model(str(tiny("llama", torch.bfloat16)), dtype="float32")
    assert wide.model.dtype == torch.float32
    assert "a delta will fit the model in float32 only" in wide.notes[0]
    with pytest.raises(ModelError, match="no such choice"):
        load_model(str(tiny("llama")), dtype="int8")

    folder = copy("llama")  # config.json says float32; what is stored decides

    def narrow(tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors:
            tensors[name] = tensors[name].to(torch.bfloat16)

    edit_weights(folder, narrow)
    assert load_model(str(folder)).dtype == torch.bfloat16

    def widen_norm(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"] = tensors["model.norm.weight"].float()

    edit_weights(folder, widen_norm)
    few = load_model(str(folder))
    assert few.dtype == torch.bfloat16
    assert "stored in float32, and loaded in bfloat16" in few.notes[0]

    def widen_embeddings(tensors: dict[str, torch.Tensor]) -> None:
        name = "model.embed_tokens.weight"
        tensors[name] = tensors[name].float()

    edit_weights(folder, widen_embeddings)
    mixed = load_model(str(folder))
    assert mixed.dtype == torch.float32
    assert "float32 and bfloat16" in mixed.notes[0]
    assert "not this folder, whose tensors in bfloat16 are others" in mixed.notes[0]


def test_a_constant_that_is_not_loaded_has_no_say_in_the_dtype(tiny, tmp_path) -> None:
    folder = shutil.copytree(tiny("llama", torch.bfloat16), tmp_path / "model")

    def carry(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
        tensors["model.embeddings.position_ids"] = torch.arange(4)

    edit_weights(folder, carry)
    loaded = load_model(str(folder))
    assert loaded.dtype == torch.bfloat16
    assert not any("stored in" in note for note in loaded.notes)


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl", "internvl", "smolvlm"])
def test_image_only_processors_say_so_once(tiny, family: str, monkeypatch, caplog) -> None:
    monkeypatch.setattr(load_module, "is_torchvision_available", lambda: False)
    load_module._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, logger="narrowtune.models.load"):
        first = load_model(str(tiny(family)), device="cpu")
        second = load_model(str(tiny(family)), device="cpu")
    assert "text and pictures only" in first.notes[0]
    assert second.notes == first.notes
    assert sum("text and pictures only" in r.message for r in caplog.records) == 1
    assert not hasattr(first.processor, "video_processor")


def test_few_numbers_in_a_wider_dtype_do_not_widen_the_rest(tiny, tmp_path) -> None:
    folder = tiny("qwen3_5", torch.bfloat16)
    loaded = load_model(str(folder), device="cpu")
    assert loaded.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}
    assert any("stored in float32, and loaded in bfloat16" in note for note in loaded.notes)
    selection = resolve(loaded.model, "sa_proj")
    base = copy_tensors(loaded.model, selection.names)
    with torch.no_grad():
        for name in selection.names:
            loaded.model.get_parameter(name).mul_(1.5)
    delta = tmp_path / "delta.safetensors"
    extract(loaded.model, selection, base).save(delta)
    tuned = apply_to_folder(folder, delta, tmp_path / "tuned").folder
    stored, changed = (load_file(path / "model.safetensors") for path in (folder, tuned))
    for name, tensor in stored.items():
        assert changed[name].dtype == tensor.dtype
        if "A_log" in name:
            assert tensor.dtype == torch.float32
            assert changed[name].equal(tensor)
    again = load_model(str(tuned), device="cpu").model
    assert tensor_hashes(again) == tensor_hashes(loaded.model)
    undone = undo_folder(tuned, delta, tmp_path / "undone").folder
    assert (undone / "model.safetensors").read_bytes() == (
        folder / "model.safetensors"
    ).read_bytes()
    # A frozen tensor that is another number, and not only a wider one, is seen.
    stored = load_file(folder / "model.safetensors")
    name = next(name for name in stored if "A_log" in name)
    stored[name] = stored[name] + 1
    other = shutil.copytree(folder, tmp_path / "other")
    save_file(stored, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DeltaError, match="leaves alone are not its base's"):
        apply_to_folder(other, delta, tmp_path / "refused")


def test_what_a_call_of_the_processor_decides_is_among_its_settings(tiny) -> None:
    """What was scored with pictures that are cut up is not taken for pictures that are not."""
    folder = tiny("internvl")
    found = [
        picture_settings(load_model(str(folder), device="cpu", processor_kwargs=given).processor)
        for given in ({}, {"crop_to_patches": False}, {"max_patches": 1})
    ]
    assert len(set(found)) == 3


@pytest.mark.parametrize(("version", "works"), [("5.20.2", False), ("5.21.0", True)])
def test_an_older_transformers_is_refused_by_family(tiny, monkeypatch, version, works) -> None:
    folder = str(tiny("idefics3"))
    monkeypatch.setattr(load_module.transformers, "__version__", version)
    load_model(str(tiny("llama")), device="cpu")
    if works:
        load_model(folder, device="cpu")
        return
    for read in (load_model, load_reader):
        with pytest.raises(ModelError, match=r"known to work with 5\.21 and newer"):
            read(folder)


def test_what_a_processor_needs_is_named(tiny, monkeypatch) -> None:
    monkeypatch.setattr(extras_module, "_is_there", lambda name: name != "num2words")
    with pytest.raises(UsageError, match=r"num2words is not installed[\s\S]*narrowtune\[smolvlm\]"):
        load_model(str(tiny("smolvlm")), device="cpu")


def test_pickles_are_refused(copy, no_transformers) -> None:
    folder = copy()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pickled weights \(pytorch_model\.bin\)"):
        load_model(str(folder))
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match=r"neither model\.safetensors nor"):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("file", "changes", "found"),
    [
        ("config.json", {"auto_map": {"AutoModel": "x.Y"}, "model_type": "own"}, "auto_map"),
        ("config.json", {"text_config": {"auto_map": {}}, "model_type": None}, "auto_map"),
        ("config.json", {"auto_map": {}, "model_type": ["llama"]}, "auto_map"),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["x.Y", None]}}, "auto_map"),
        ("processor_config.json", {"auto_map": {"AutoProcessor": "x.Y"}}, "auto_map"),
        (
            "tokenizer_config.json",
            {"auto_map": {"AutoTokenizer": ["x.LlamaTokenizer"]}},
            "auto_map",
        ),
        ("preprocessor_config.json", {"auto_map": {}}, "auto_map"),
        ("video_preprocessor_config.json", {"auto_map": {}}, "auto_map"),
        ("config.json", {"_attn_implementation_internal": "a/b"}, "private setting"),
        ("config.json", {"vision_config": {"_experts_implementation_internal": "a/b"}}, "private"),
        ("config.json", {"attn_implementation": "someone/kernel"}, "can fetch code"),
        ("config.json", {"_attn_implementation": "someone/kernel@main"}, "can fetch code"),
        ("config.json", {"transformers_weights": "other.bin"}, "names weights of its own"),
        ("config.json", {"quantization_config": {"quant_method": "gptq"}}, "quantised"),
        ("config.json", {"text_config": {"quantization_config": {"bits": 4}}}, "quantised"),
        ("adapter_config.json", {"r": 8}, "an adapter"),
    ],
)
def test_dangerous_settings_are_refused(copy, no_transformers, file, changes, found) -> None:
    folder = copy()
    edit(folder / file, **changes)
    with pytest.raises(ModelError, match=found):
        load_model(str(folder))


def test_code_that_transformers_has_itself_is_passed_over_and_never_run(copy, tmp_path) -> None:
    folder, ran = copy("phi3"), tmp_path / "ran"
    plain = load_model(str(folder), device="cpu")
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w')")
    # As `hf download` leaves it.
    (folder / "modeling_phi3.py").write_text(f"open({str(ran)!r}, 'w')")
    names = {"AutoConfig": "own.Phi3Config", "AutoModelForCausalLM": "own.Phi3ForCausalLM"}
    edit(folder / "config.json", auto_map=names)
    loaded = load_model(str(folder), device="cpu")
    for found in (loaded, load_reader(str(folder))):
        [said] = found.notes
        assert "auto_map in config.json, modeling_phi3.py" in said
        assert "transformers' own phi3 takes its place" in said
    assert type(loaded.model) is type(plain.model)
    assert type(loaded.tokenizer) is type(plain.tokenizer)
    assert fingerprint(loaded.model) == fingerprint(plain.model)
    # A written folder keeps the setting as it is, and loads the same way.
    save_pretrained(loaded, tmp_path / "saved")
    assert load_model(str(tmp_path / "saved"), device="cpu").notes
    assert not ran.exists()
    # A part is made without being told that no code is trusted.
    edit(folder / "config.json", text_config={"auto_map": names})
    with pytest.raises(ModelError, match="auto_map"):
        check_folder(folder)


def test_a_delta_fits_a_folder_that_names_code_of_its_own(copy, tmp_path) -> None:
    folder = copy("phi3")
    edit(folder / "config.json", auto_map={"AutoConfig": "own.Phi3Config"})
    loaded = load_model(str(folder), device="cpu")
    selection = resolve(loaded.model, "sa_o")
    base = copy_tensors(loaded.model, selection.names)
    with torch.no_grad():
        dict(loaded.model.named_parameters())[selection.names[0]].mul_(2)
    extract(loaded.model, selection, base).save(tmp_path / "delta.safetensors")
    apply_to_folder(folder, tmp_path / "delta.safetensors", tmp_path / "tuned")
    tuned = load_model(str(tmp_path / "tuned"), device="cpu")
    assert fingerprint(tuned.model) == fingerprint(loaded.model)
    settings = (tmp_path / "tuned" / "config.json").read_bytes()
    assert settings == (folder / "config.json").read_bytes()


def hub_error(kind: type[HfHubHTTPError], said: str) -> HfHubHTTPError:
    return kind(said, response=SimpleNamespace(headers={}, request=None))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            hub_error(
                GatedRepoError,
                "401 Client Error. (Request ID: Root=1-6;f)\n\nCannot access gated repo for url "
                "https://hub/some/model.\nAccess to model some/model is restricted.",
            ),
            [r"Access to model some/model is restricted\.", "accept the terms", "`hf auth login`"],
        ),
        (
            hub_error(
                RepositoryNotFoundError,
                "404 Client Error. (Request ID: x)\n\nRepository Not Found for url: https://hub.",
            ),
            ["Not Found for url", "check the path or id; if the model is private", "HF_TOKEN"],
        ),
        (
            hub_error(HfHubHTTPError, "\n\n403 Forbidden: no.\nCannot access content at: here."),
            [r"403 Forbidden: no\. Cannot access content at: here\.", "HF_HUB_OFFLINE"],
        ),
        (OSError(), ["can't give it: OSError", "HF_HUB_OFFLINE"]),
    ],
)
def test_why_the_hub_gives_no_model_is_said(monkeypatch, error, words) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(hub_module, "snapshot_download", refuse)
    for read in (load_model, load_reader):
        with pytest.raises(ModelError) as found:
            read("some/model")
        for word in words:
            assert re.search(word, str(found.value))


@pytest.mark.parametrize("name", ["modeling_llama.py", "tokenization_x.py", "custom_generate"])
def test_code_in_the_folder_is_refused(copy, no_transformers, name: str) -> None:
    folder = copy()
    if name.endswith(".py"):
        (folder / name).write_text("raise SystemExit")
        edit(folder / "config.json", model_type="one_of_its_own")
    else:
        (folder / name).mkdir()
    with pytest.raises(ModelError, match="code that ships with the checkpoint"):
        load_model(str(folder))


def test_quantised_weights_are_refused(copy, no_transformers) -> None:
    folder = copy()

    def pack(tensors: dict[str, torch.Tensor]) -> None:
        name = "model.layers.0.mlp.up_proj.weight"
        tensors[name] = tensors[name].to(torch.uint8)

    edit_weights(folder, pack)
    with pytest.raises(ModelError, match="stored as U8: a quantised checkpoint"):
        load_model(str(folder))


def test_missing_extra_and_misshapen_tensors_are_refused(copy, tiny) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    folder = copy()
    edit_weights(folder, lambda tensors: tensors.pop(name))
    with pytest.raises(ModelError, match=f"missing keys: {name}"):
        load_model(str(folder))

    shutil.copyfile(tiny("llama") / "model.safetensors", folder / "model.safetensors")
    edit_weights(folder, lambda tensors: tensors.update({"model.layers.9.x": torch.ones(2)}))
    with pytest.raises(ModelError, match=r"unexpected keys: model\.layers\.9\.x"):
        load_model(str(folder))

    shutil.copyfile(tiny("llama") / "model.safetensors", folder / "model.safetensors")
    edit_weights(folder, lambda tensors: tensors.update({name: torch.ones(3, 3)}))
    with pytest.raises(ModelError, match="up_proj"):
        load_model(str(folder))


def test_legacy_constants_are_tolerated_and_noted(copy) -> None:
    folder = copy("llava")
    legacy = "vision_tower.vision_model.embeddings.position_ids"
    edit_weights(folder, lambda tensors: tensors.update({legacy: torch.arange(5)[None]}))
    loaded = load_model(str(folder), device="cpu")
    assert all("constants of older" in note for note in loaded.notes)


@pytest.mark.parametrize(
    "damage", ["truncated", "huge header", "odd header", "not JSON", "no object", "no config"]
)
def test_damaged_folders_are_refused(copy, no_transformers, damage: str) -> None:
    folder = copy()
    weights = folder / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:40])
    elif damage == "huge header":
        weights.write_bytes(b"\xff" * 8 + weights.read_bytes()[8:])
    elif damage == "odd header":
        header = b'{"a": {"dtype": "F32"}}'
        weights.write_bytes(struct.pack("<Q", len(header)) + header)
    elif damage == "no object":
        (folder / "config.json").write_text("[]")
    elif damage == "not JSON":
        (folder / "config.json").write_text("{")
    else:
        (folder / "config.json").unlink()
    with pytest.raises(ModelError):
        load_model(str(folder))


@pytest.mark.parametrize("shard", ["../stolen.safetensors", ["model.safetensors"], 1])
def test_an_index_that_leaves_the_folder_is_refused(copy, no_transformers, shard) -> None:
    folder = copy()
    (folder / "model.safetensors").rename(folder.parent / "stolen.safetensors")
    edit(folder / "model.safetensors.index.json", weight_map={"a": shard})
    with pytest.raises(ModelError, match="no safetensors file in the folder"):
        load_model(str(folder))


def test_unknown_families_get_the_list_and_the_way(copy, no_transformers) -> None:
    folder = copy()
    edit(folder / "config.json", model_type="gpt2", architectures=["GPT2LMHeadModel"])
    with pytest.raises(UnknownFamilyError) as error:
        load_model(str(folder))
    assert all(name in str(error.value) for name in known_families())
    assert "how-to-add-a-family" in error.value.do


def test_known_types_with_other_heads_or_language_models_are_unknown(copy) -> None:
    folder = copy()
    edit(folder / "config.json", architectures=["LlamaForSequenceClassification"])
    with pytest.raises(UnknownFamilyError, match="LlamaForCausalLM only"):
        load_model(str(folder))
    with pytest.raises(UnknownFamilyError, match="language model of the model_type 'opt'"):
        find_family({"model_type": "llava", "text_config": {"model_type": "opt"}})
    # Published Qwen2.5-VL files have the language model's settings at the top.
    assert find_family({"model_type": "qwen2_5_vl"}).matrices["q"] == (("self_attn.q_proj",),)


def test_sources_that_are_not_there(monkeypatch) -> None:
    with pytest.raises(ModelError, match="no valid hub id"):
        load_model("./no/such/folder")
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE"):
        load_model("someone/some-model")


def test_revision_and_device_mistakes(tiny) -> None:
    with pytest.raises(ModelError, match="has no revisions"):
        load_model(str(tiny("llama")), revision="main")
    with pytest.raises(ModelError, match="use the device"):
        load_model(str(tiny("llama")), device="toaster")


def _num_patches(loaded) -> int:
    picture = PIL.Image.new("RGB", (112, 112), "red")
    return len(loaded.processor.image_processor(images=[picture])["pixel_values"])


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_a_processor_s_settings_may_be_given(tiny, family):
    small, plain = 28 * 28 * 2, load_model(str(tiny(family)), device="cpu")
    given = load_model(str(tiny(family)), device="cpu", processor_kwargs={"max_pixels": small})
    assert _num_patches(given) < _num_patches(plain)
    assert any("max_pixels" in note for note in given.notes)
    assert picture_settings(given.processor) != picture_settings(plain.processor)
    # What it has already is a setting that it knows.
    load_model(str(tiny(family)), device="cpu", processor_kwargs={"max_pixels": 28 * 28 * 6})


@pytest.mark.parametrize(
    ("family", "given", "num_tiles"),
    [
        ("internvl", {"crop_to_patches": False}, 1),
        ("internvl", {"max_patches": 1}, 1),
        ("internvl", {}, 4),
        ("gemma3", {}, 1),
        ("gemma3", {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 8}, 4),
    ],
)
def test_what_a_processor_has_defaults_for_may_be_given(tiny, family, given, num_tiles):
    loaded = load_model(str(tiny(family)), device="cpu", processor_kwargs=given)
    picture = PIL.Image.new("RGB", (90, 28), "red")
    text = [loaded.processor.image_token]
    found = loaded.processor(text=text, images=[[picture]], return_tensors="pt")
    assert len(found["pixel_values"]) == num_tiles


@pytest.mark.parametrize(
    ("family", "given"),
    [
        ("qwen2_5_vl", {"max_pixel": 784}),
        ("llava", {"max_pixels": 784}),
        ("llama", {"max_pixels": 784}),
    ],
)
def test_a_setting_that_no_processor_takes_is_refused(tiny, family, given):
    with pytest.raises(UsageError, match=f"processor_kwargs.{next(iter(given))}"):
        load_model(str(tiny(family)), device="cpu", processor_kwargs=given)


@pytest.mark.parametrize(
    ("key", "value"), [("max_pixels", "1e6"), ("max_pixels", -5), ("size", 5), ("size", {"a": 1})]
)
def test_a_value_that_the_processor_can_not_take_is_one_clear_error(tiny, key, value):
    with pytest.raises(UsageError, match=f"processor_kwargs.{key}"):
        load_model(str(tiny("qwen3_vl")), device="cpu", processor_kwargs={key: value})


def test_a_setting_that_changes_nothing_is_not_said_to_be_replaced(tiny):
    # Its file has min_pixels and max_pixels, which win.
    given = {"size": {"shortest_edge": 10, "longest_edge": 1568}}
    with pytest.raises(UsageError, match="changes by it"):
        load_model(str(tiny("qwen2_5_vl")), device="cpu", processor_kwargs=given)


@pytest.mark.filterwarnings("error::FutureWarning")
def test_limits_of_pixels_are_told_to_nobody_but_the_pictures(tiny):
    loaded = load_model(
        str(tiny("qwen2_5_vl")), device="cpu", processor_kwargs={"max_pixels": 28 * 28 * 2}
    )
    picture = PIL.Image.new("RGB", (112, 112), "red")
    made = loaded.processor(images=[picture], text=["<|image_pad|>"])
    assert len(made["pixel_values"]) == _num_patches(loaded)
