from __future__ import annotations

import copy
import shutil
import warnings
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch

from delta_cases import disturb, load, same_bits, weights
from narrowtune.core.errors import DeltaError
from narrowtune.delta.apply import apply, undo
from narrowtune.delta.bits import view_bits
from narrowtune.delta.extract import OtherDtypeWarning, check_room, extract
from narrowtune.delta.folder import apply_to_folder, undo_folder
from narrowtune.delta.store import Delta
from narrowtune.models.fingerprint import fingerprint, tensor_hashes
from narrowtune.models.select import resolve, select
from tiny_models import FAMILIES, WITH_STATE

CASES = [
    *((family, torch.bfloat16, "sa_proj") for family in FAMILIES),
    # Whose decays are stored in fp32: trained in bf16, they fit no folder.
    *((family, torch.bfloat16, "full") for family in FAMILIES if family not in WITH_STATE),
    *((family, torch.float32, "mlp") for family in ("llama", "phi3", "llava", "qwen2_5_vl")),
]


def test_masters_of_an_earlier_selection_are_in_a_delta_as_the_folder_has_them(tiny, tmp_path):
    folder = tiny("llama", torch.bfloat16)
    model = load(folder)
    select(model, "sa_proj", dtype=torch.float32)
    selection = select(model, "mlp_gate_up", dtype=torch.float32)
    disturb(model, selection.names)
    extract(model, selection).save(tmp_path / "skill.safetensors")
    apply_to_folder(folder, tmp_path / "skill.safetensors", tmp_path / "tuned")
    base = load(folder)
    delta = Delta.load(tmp_path / "skill.safetensors")
    apply(base, delta)
    # One that has the same masters is the base, too; one whose masters moved is not.
    held = load(folder)
    chosen = select(held, "sa_proj", dtype=torch.float32)
    apply(held, delta)
    undo(held, delta)
    disturb(held, chosen.names)
    with pytest.raises(DeltaError, match="are not its base's"):
        apply(held, delta)
    assert same_bits(weights(base), weights(model.to(torch.bfloat16)))


def test_masters_that_an_earlier_selection_trained_are_rounded_as_its_own_delta_is(tiny, tmp_path):
    folder = tiny("llama", torch.bfloat16)
    model = load(folder)
    first = select(model, "sa_proj", dtype=torch.float32)
    disturb(model, first.names)
    extract(model, first).save(tmp_path / "first.safetensors")
    second = select(model, "mlp_gate_up", dtype=torch.float32)
    disturb(model, second.names, seed=1)
    extract(model, second).save(tmp_path / "second.safetensors")
    apply_to_folder(folder, tmp_path / "first.safetensors", tmp_path / "one")
    apply_to_folder(tmp_path / "one", tmp_path / "second.safetensors", tmp_path / "two")
    assert same_bits(weights(load(tmp_path / "two")), weights(model.to(torch.bfloat16)))


@pytest.mark.parametrize(("family", "dtype", "recipe"), CASES)
def test_applied_is_tuned_and_undone_is_base(make_case, tmp_path, family, dtype, recipe):
    case = make_case(family, dtype, recipe)
    model = case.load()
    delta = Delta.load(case.path)
    apply(model, delta)
    assert same_bits(weights(model), case.tuned)
    assert fingerprint(model) == delta.metadata.tuned_fingerprint
    undo(model, delta)
    assert same_bits(weights(model), case.base)
    assert fingerprint(model) == delta.metadata.base_fingerprint
    ties = [name for record in delta.metadata.tensors.values() for name in record.tied]
    changed = {n for n in case.base if not case.base[n].equal(case.tuned[n])}
    assert changed == {*case.selection.names, *ties}
    assert len(changed) == len(case.selection.names) + len(ties)

    apply_to_folder(case.folder, case.path, tmp_path / "tuned")
    assert same_bits(weights(type(model).from_pretrained(tmp_path / "tuned")), case.tuned)
    undo_folder(tmp_path / "tuned", case.path, tmp_path / "base")
    assert same_bits(weights(type(model).from_pretrained(tmp_path / "base")), case.base)


@pytest.mark.parametrize("recipe", ["full", "language_model", "mlp"])
def test_recipes_with_tied_embeddings_round_trip(make_case, recipe):
    case = make_case("llama", torch.bfloat16, recipe)
    model = case.load()
    apply(model, case.delta)
    assert same_bits(weights(model), case.tuned)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    undo(model, case.delta)
    assert same_bits(weights(model), case.base)


def test_special_values_survive(make_case):
    case = make_case("llama", torch.bfloat16)
    model = case.load()
    name = case.selection.names[0]
    parameter = dict(model.named_parameters())[name]
    with torch.no_grad():
        parameter[0, :4] = torch.tensor([0.0, -0.0, 1e-40, -1e-40])
    base = {n: dict(model.named_parameters())[n].detach().clone() for n in case.selection.names}
    with torch.no_grad():
        parameter[0, :4] = torch.tensor([-0.0, 0.0, -1e-40, 3e38])
    tuned = parameter.detach().clone()
    delta = extract(model, case.selection, base)
    undo(model, delta)
    assert parameter.detach().view(torch.int16).equal(base[name].view(torch.int16))
    apply(model, delta)
    assert parameter.detach().view(torch.int16).equal(tuned.view(torch.int16))


def test_masters_are_rounded_to_nearest_even(make_case):
    case = make_case("llama", torch.bfloat16)
    model = case.load()
    name = case.selection.names[0]
    base = {n: case.base[n] for n in case.selection.names}
    parameter = dict(model.named_parameters())[name]
    parameter.data = parameter.data.float()
    step = 2.0**-7  # bf16's spacing above 1: halfway goes to the even neighbour
    parameter.data[0, :3] = torch.tensor([1 + step / 2, 1 + 3 * step / 2, 1 + 0.51 * step])
    delta = extract(model, case.selection, base)
    undone = case.load()
    apply(undone, delta)
    got = dict(undone.named_parameters())[name].detach()[0, :3].float()
    assert got.tolist() == [1.0, 1 + 2 * step, 1 + step]
    assert parameter.dtype == torch.float32  # extract changes nothing


def test_a_run_that_changed_nothing_gives_an_empty_delta(make_case):
    case = make_case()
    model = case.load()
    delta = extract(model, case.selection, case.folder)
    assert not any(bits.any() for bits in delta.bits.values())
    assert delta.metadata.base_fingerprint == delta.metadata.tuned_fingerprint
    apply(model, delta)
    apply(model, delta)
    assert same_bits(weights(model), case.base)


@pytest.mark.parametrize("family", ["llama", "llava"])
def test_every_source_of_the_base_gives_the_same_delta(make_case, family):
    case = make_case(family, torch.bfloat16)
    tuned = case.load()
    disturb(tuned, case.selection.names)
    expected = case.delta.metadata.model_copy(update={"notes": []})
    for base in (None, case.folder, str(case.folder), case.load()):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            delta = extract(tuned, case.selection, base)
        assert delta.metadata == expected
        assert all(delta.bits[name].equal(bits) for name, bits in case.delta.bits.items())


def test_a_model_loaded_wider_than_its_folder_gives_a_delta_of_that_dtype(make_case):
    case = make_case("llama", torch.bfloat16)
    model = type(case.load()).from_pretrained(case.folder, dtype=torch.float32)
    before = weights(model)
    disturb(model, case.selection.names)
    tuned = weights(model)
    expected = r"delta is float32.*stores .* as bfloat16.*dtype='bfloat16'"
    with pytest.warns(OtherDtypeWarning, match=expected):
        delta = extract(model, case.selection)
    assert {record.dtype for record in delta.metadata.tensors.values()} == {"float32"}
    undo(model, delta)
    assert same_bits(weights(model), before)
    apply(model, delta)
    assert same_bits(weights(model), tuned)
    with pytest.raises(DeltaError, match=r"is bfloat16, the delta float32"):
        apply(case.load(), delta)


def test_the_stored_dtype_is_read_from_the_header_alone(make_case, monkeypatch):
    case = make_case("llama", torch.bfloat16)
    model = type(case.load()).from_pretrained(case.folder, dtype=torch.float32)
    before = {name: weights(model)[name] for name in case.selection.names}
    disturb(model, case.selection.names)
    monkeypatch.setattr("narrowtune.delta.layout.Layout.read", pytest.fail)
    with pytest.warns(OtherDtypeWarning, match="as bfloat16"):
        extract(model, case.selection, before)


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"pytorch_model.bin": b"pickled"},
        {"model.safetensors": b"damaged"},
        {"model.safetensors.index.json": b'{"weight_map": {"a": ["b"]}}'},
    ],
)
def test_no_delta_is_lost_for_a_warning(make_case, tmp_path, files):
    case = make_case("llama", torch.bfloat16)
    model = case.load()
    disturb(model, case.selection.names)
    for name, content in {"config.json": b"{}", **files}.items():
        (tmp_path / name).write_bytes(content)
    model.config._name_or_path = str(tmp_path)
    base = {name: case.base[name] for name in case.selection.names}
    assert extract(model, case.selection, base, notes=["toy"]).metadata == case.delta.metadata


def test_frozen_tensors_held_in_fp32_are_recorded_as_the_base_has_them(make_case):
    case = make_case("llama", torch.bfloat16)
    model = case.load()
    hashes = tensor_hashes(model)
    disturb(model, case.selection.names)
    model.float()
    base = {n: case.base[n] for n in case.selection.names}
    delta = extract(model, case.selection, base, base_hashes=hashes, notes=["toy"])
    assert delta.metadata == case.delta.metadata
    with pytest.raises(DeltaError, match=r"hashes are not those of .*q_proj"):
        extract(model, case.selection, {n: t + 1 for n, t in base.items()}, base_hashes=hashes)


def test_a_wrapped_model_is_seen_through(make_case):
    case = make_case()
    model = case.load()
    apply(torch.nn.DataParallel(model), case.delta)
    assert same_bits(weights(model), case.tuned)
    again = extract(torch.nn.DataParallel(model), case.selection, case.folder, notes=["toy"])
    assert again.metadata == case.delta.metadata


def test_room_for_the_delta_is_looked_for_before_training(make_case, tmp_path, monkeypatch):
    case = make_case()
    largest = sum(case.base[name].nbytes for name in case.selection.names)
    free = SimpleNamespace(free=largest + 2**20)
    monkeypatch.setattr("shutil.disk_usage", lambda _: free)
    check_room(tmp_path, case.load(), case.selection)
    with pytest.raises(DeltaError, match=f"{2 * largest:,} needed"):
        check_room(tmp_path, case.load(), case.selection, number=2)


def refused(model: torch.nn.Module, operation, delta: Delta, match: str, **kwargs) -> None:
    before = weights(model)
    with pytest.raises(DeltaError, match=match) as caught:
        operation(model, delta, **kwargs)
    assert same_bits(weights(model), before), "a refused delta must leave the model alone"
    assert caught.value.asked
    assert caught.value.do


def test_applying_twice_and_undoing_the_base_are_refused(make_case):
    case = make_case()
    model = case.load()
    refused(model, undo, case.delta, "not applied: this is the base")
    apply(model, case.delta)
    refused(model, apply, case.delta, "already applied")


def test_a_changed_tensor_is_named(make_case):
    case = make_case()
    model = case.load()
    name = case.selection.names[3]
    parameter = dict(model.named_parameters())[name]
    parameter.data.view(torch.int16)[0, 0] ^= 1
    refused(model, apply, case.delta, f"1 of 8 tensors are neither base nor tuned: {name}\n")


def test_a_half_applied_model_is_named(make_case):
    case = make_case()
    model = case.load()
    name = case.selection.names[0]
    dict(model.named_parameters())[name].data.copy_(case.tuned[name])
    refused(model, apply, case.delta, f"1 already hold the tuned values: {name}")
    refused(model, undo, case.delta, "7 already hold the base values")


def test_a_tensor_that_did_not_change_does_not_hide_that_the_delta_is_applied(make_case):
    case = make_case()
    same = case.selection.names[0]
    model = case.load()
    model.load_state_dict(case.tuned)
    dict(model.named_parameters())[same].data.copy_(case.base[same])
    delta = extract(model, case.selection, case.folder)
    refused(model, apply, delta, "already applied")
    undo(model, delta)
    refused(model, undo, delta, "not applied: this is the base")
    apply(model, delta)
    dict(model.named_parameters())[same].data.copy_(case.tuned[same])
    refused(model, undo, delta, f"1 of 8 tensors are neither base nor tuned: {same}\n")


def test_a_frozen_tensor_that_is_not_loaded_is_named(make_case):
    case = make_case()
    model = case.load()
    model.model.norm.to("meta")
    with pytest.raises(DeltaError, match=r"(?s)not loaded .*model\.norm\.weight.*in Python, str"):
        apply(model, case.delta)
    apply(model, case.delta, strict=False)
    got = dict(model.named_parameters())
    assert all(got[name].equal(case.tuned[name]) for name in case.selection.names)


def test_a_changed_frozen_tensor_is_named_unless_the_check_is_off(make_case):
    case = make_case()
    model = case.load()
    model.model.norm.weight.data[0] += 1
    refused(model, apply, case.delta, r"leaves alone are not its base's: model\.norm\.weight")
    apply(model, case.delta, strict=False)
    expected = {**case.tuned, "model.norm.weight": model.model.norm.weight.detach()}
    assert same_bits(weights(model), expected)


def test_another_model_is_refused(make_case):
    case = make_case("llama")
    refused(make_case("phi3").load(), apply, case.delta, r"q_proj\.weight is not there")
    refused(make_case("mistral").load(), apply, case.delta, "neither base nor tuned")


def test_another_shape_dtype_or_device_is_refused(make_case):
    case = make_case()
    name = case.selection.names[0]
    model = case.load()
    parameter = dict(model.named_parameters())[name]
    parameter.data = parameter.data[:, :-1]
    refused(model, apply, case.delta, r"has shape \[32, 31\], the delta \[32, 32\]")
    refused(case.load().float(), apply, case.delta, "is float32, the delta bfloat16")
    with pytest.raises(DeltaError, match="not loaded"):
        apply(case.load().to("meta"), case.delta)


def test_damaged_bits_are_refused(make_case):
    case = make_case()
    delta = copy.deepcopy(case.delta)
    name = case.selection.names[-1]
    delta.bits[name][0, 0] ^= 1
    refused(case.load(), apply, delta, f"the bits of {name} do not lead to the hash")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_result_that_is_not_finite_is_refused(make_case, value):
    """Even where every hash is as the file declares it."""
    case = make_case()
    name = case.selection.names[0]
    evil = case.load()
    dict(evil.named_parameters())[name].data[0, 0] = value
    with pytest.raises(DeltaError, match="holds NaN or infinity"):
        extract(evil, case.selection, case.folder)
    good = extract(case.load(), case.selection, case.folder)
    record = good.metadata.tensors[name].model_copy(
        update={"tuned_sha256": tensor_hashes(evil, [name])[name]}
    )
    metadata = good.metadata.model_copy(update={"tensors": {**good.metadata.tensors, name: record}})
    bits = dict(evil.named_parameters())[name].detach().view(torch.int16) ^ case.base[name].view(
        torch.int16
    )
    delta = Delta(metadata, {**good.bits, name: bits})
    refused(case.load(), apply, delta, "would hold NaN or infinity")


def test_a_model_tied_otherwise_is_refused(make_case):
    case = make_case("llama", torch.bfloat16, "full")
    model = case.load()
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    refused(
        model, apply, case.delta, r"embed_tokens\.weight is tied to nothing, in the delta to lm"
    )


def test_an_interruption_between_tensors_is_rolled_back(make_case, monkeypatch):
    case = make_case()
    model = case.load()
    halfway = []

    def fail_at_the_sixth(tensor):
        if len(halfway) == 5 and not same_bits(weights(model), case.base):
            halfway.append(tensor)
            raise MemoryError
        halfway.append(tensor)
        return view_bits(tensor)

    monkeypatch.setattr("narrowtune.delta.apply.view_bits", fail_at_the_sixth)
    with pytest.raises(MemoryError):
        apply(model, case.delta)
    assert len(halfway) > 6
    assert same_bits(weights(model), case.base)


@pytest.mark.parametrize(
    ("base", "found"),
    [
        ({}, "the base has no"),
        ("no-such-folder", "no folder 'no-such-folder'"),
        ("self", "the tuned model itself"),
        ("shape", "its base"),
        ("integer", "no delta can be made"),
    ],
)
def test_a_base_that_can_not_be_used_is_refused(make_case, base, found):
    case = make_case()
    model = case.load()
    changes = {"shape": lambda t: t[:1], "integer": lambda t: t.view(torch.int16)}
    if base == "self":
        base = model
    elif base in changes if isinstance(base, str) else False:
        base = {n: changes[base](case.base[n]) for n in case.selection.names}
    with pytest.raises(DeltaError, match=found):
        extract(model, case.selection, base)


def test_a_model_from_nowhere_needs_a_base(make_case):
    case = make_case()
    model = type(case.load())(case.load().config)
    model.config._name_or_path = ""
    with pytest.raises(DeltaError, match="no folder"):
        extract(model, resolve(model, "sa_proj"))


def test_a_hub_ids_base_is_found_in_the_hubs_cache(make_case, tmp_path, monkeypatch):
    case, commit = make_case("llama", torch.bfloat16), "0" * 40
    cached = tmp_path / "models--company--model" / "snapshots" / commit
    shutil.copytree(case.folder, cached)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    model = case.load()
    model.config._name_or_path, model.config._commit_hash = "company/model", commit
    disturb(model, case.selection.names)
    delta = extract(model, case.selection, notes=["toy"])
    assert delta.metadata == case.delta.metadata
    model.config._commit_hash = None
    with pytest.raises(DeltaError, match="no folder 'company/model'"):
        extract(model, case.selection)
    model.config._name_or_path, model.config._commit_hash = "company/other", commit
    with pytest.raises(DeltaError, match="no folder 'company/other'"):
        extract(model, case.selection)


def test_masters_in_fp32_give_a_delta_that_fits_the_folder(make_case):
    """What `select` widens trains under autocast, and `extract` rounds to the base's dtype."""
    case = make_case("llama", torch.bfloat16)
    model = case.load()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    selection = select(model, "sa_proj", dtype=torch.float32)
    held = {name: p.dtype for name, p in model.named_parameters()}
    assert {held[name] for name in selection.names} == {torch.float32}
    assert {t for name, t in held.items() if name not in selection.names} == {torch.bfloat16}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    ids = torch.arange(12)[None]
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        delta = extract(model, selection)
    assert {record.dtype for record in delta.metadata.tensors.values()} == {"bfloat16"}
    assert any(view_bits(bits).any() for bits in delta.bits.values())
    select(model, "sa_proj", dtype=model.dtype)
    undo(model, delta)
    assert same_bits(weights(model), case.base)
    assert {b.dtype for b in buffers.values()} == {torch.float32}
    assert same_bits(dict(model.named_buffers()), buffers)


def test_a_tensor_that_the_selection_names_must_be_there(make_case):
    case = make_case("llama")
    with pytest.raises(DeltaError, match="no parameter"):
        extract(make_case("phi3").load(), case.selection, case.folder)
