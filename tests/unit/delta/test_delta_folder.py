from __future__ import annotations

import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from delta_cases import load, same_bits, weights
from narrowtune.core.errors import DeltaError, ModelError, NarrowtuneError, UsageError
from narrowtune.core.provenance import sha256_file
from narrowtune.delta.copying import repack_weights
from narrowtune.delta.folder import apply_to_folder, merge, parse_size, undo_folder
from narrowtune.delta.layout import read_layout
from narrowtune.delta.store import Delta

FAMILIES = ["llama", "llava", "qwen2_5_vl"]
SHARD = 20_000  # bytes; several shards for the tiny models


def files(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): sha256_file(path)
        for path in folder.rglob("*")
        if path.is_file()
    }


def load_tuned(case, folder: Path) -> torch.nn.Module:
    """The folder's model by the base's class, whatever the folder is called."""
    model, report = type(case.load()).from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return model


@pytest.fixture
def sharded(make_case, tmp_path):
    """The base again, saved by transformers in several shards."""

    def build(family: str, dtype: torch.dtype) -> Path:
        case = make_case(family, dtype)
        folder = tmp_path / f"sharded-tiny-{family}"
        case.load().save_pretrained(folder, max_shard_size=SHARD)
        assert len(list(folder.glob("*.safetensors"))) > 2
        return folder

    return build


@pytest.mark.parametrize("is_sharded", [False, True], ids=["single", "sharded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_applied_is_tuned_and_undone_is_the_same_files(
    make_case, sharded, tmp_path, family, dtype, is_sharded
):
    case = make_case(family, dtype)
    base = sharded(family, dtype) if is_sharded else case.folder
    before = files(base)
    result = apply_to_folder(base, case.path, tmp_path / "tuned")
    assert result.folder == tmp_path / "tuned"
    assert result.num_tensors == len(case.selection.names)
    assert result.left_out == {}
    assert same_bits(weights(load_tuned(case, tmp_path / "tuned")), case.tuned)
    assert set(files(tmp_path / "tuned")) == {*before, "narrowtune_delta.json"}
    undo_folder(tmp_path / "tuned", case.path, tmp_path / "again")
    assert files(tmp_path / "again") == before == files(base)


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_loads_and_answers_as_the_tuned_model(make_case, tmp_path, family):
    case = make_case(family, torch.bfloat16)
    out = tmp_path / "merged"
    result = merge(case.folder, case.path, out, max_shard_size=SHARD)
    shards = sorted(out.glob("*.safetensors"))
    assert len(shards) > 2
    assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(
        tensor.nbytes for shard in shards for tensor in load_file(shard).values()
    )
    assert result.num_tensors == len(case.selection.names)
    merged = load_tuned(case, out).eval()
    assert same_bits(weights(merged), case.tuned)
    tuned = load(case.folder).eval()
    tuned.load_state_dict(case.tuned)
    tokens = torch.arange(10, 22).reshape(1, -1)
    with torch.no_grad():
        assert merged(input_ids=tokens).logits.equal(tuned(input_ids=tokens).logits)
    undo_folder(out, case.path, tmp_path / "base")
    assert same_bits(weights(load_tuned(case, tmp_path / "base")), case.base)


def test_merge_into_one_file_is_what_transformers_would_write(make_case, tmp_path):
    case = make_case("llama", torch.bfloat16)
    merge(case.folder, case.path, tmp_path / "merged")
    tuned = load(case.folder)
    tuned.load_state_dict(case.tuned)
    tuned.save_pretrained(tmp_path / "saved")
    ours = tmp_path / "merged" / "model.safetensors"
    assert ours.read_bytes() == (tmp_path / "saved" / "model.safetensors").read_bytes()


def test_repacked_tensors_are_aligned_to_their_elements(tmp_path):
    tensors = {
        "a": torch.arange(3.0).bfloat16(),
        "b": torch.arange(4.0),
        "c": torch.tensor(True),
        "d": torch.arange(2),
        "e": torch.zeros(0, 5),
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for limit in (1, 30, 1000):
        out = tmp_path / f"out-{limit}"
        out.mkdir()
        repack_weights(read_layout(tmp_path), out, limit)
        layout = read_layout(out)
        assert {n: layout.read(n).tolist() for n in tensors} == {
            n: t.tolist() for n, t in tensors.items()
        }
        for name, place in layout.places.items():
            assert place.entry.start % tensors[name].itemsize == 0


def test_companions_go_along_and_stale_weights_do_not(make_case, tmp_path):
    case = make_case()
    base = tmp_path / "base"
    shutil.copytree(case.folder, base)
    (base / "README.md").write_text("the base's own card")
    (base / "LICENSE").write_text("terms")
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tool.jinja").write_text("{{ x }}")
    (base / "consolidated.safetensors").write_bytes(b"stale")
    (base / "onnx").mkdir()
    (base / "onnx" / "model.onnx").write_bytes(b"stale")
    (base / ".cache").mkdir()
    (base / ".cache" / "x").write_text("x")
    (base / ".gitattributes").write_text("x")
    result = merge(base, case.path, tmp_path / "out")
    assert set(result.left_out) == {
        "consolidated.safetensors",
        "onnx/model.onnx",
        ".cache",
        ".gitattributes",
    }
    kept = files(tmp_path / "out")
    original = files(base)
    for name in ("LICENSE", "config.json", "additional_chat_templates/tool.jinja"):
        assert kept[name] == original[name]
    assert all(kept[n] == original[n] for n in original if "token" in n)
    assert kept["README.base.md"] == original["README.md"]
    card = (tmp_path / "out" / "README.md").read_text()
    for fact in (
        sha256_file(case.path),
        case.delta.metadata.base_fingerprint,
        case.delta.metadata.tuned_fingerprint,
        "sa_proj",
        "toy",
        "README.base.md",
    ):
        assert fact in card
    again = tmp_path / "base-again"
    undone = undo_folder(tmp_path / "out", case.path, again)
    assert not (again / "narrowtune_delta.json").exists()
    assert undone.left_out == {}


STALE = (
    *("onnx/model.onnx_data", "onnx/model.onnx_data_1", "onnx/model.onnx.data", "model.ggml"),
    *("rust_model.ot", "model.tflite", "model.mlmodel", "model.task", "model.litertlm"),
)


def test_weights_of_other_tools_are_left_out_and_what_only_sounds_like_them_is_not(
    make_case, tmp_path
):
    case = make_case()
    base = tmp_path / "base"
    shutil.copytree(case.folder, base)
    for name in (*STALE, "coreml/m.mlpackage/Data/weight", "onnx/config.json", "my.task.txt"):
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_bytes(b"stale")
    result = merge(base, case.path, tmp_path / "out")
    assert set(result.left_out) == {*STALE, "coreml/m.mlpackage"}
    assert all("copy of the weights" in reason for reason in result.left_out.values())
    kept = files(tmp_path / "out")
    assert {"onnx/config.json", "my.task.txt"} < kept.keys()
    assert not kept.keys() & {*STALE, "coreml/m.mlpackage/Data/weight"}


def test_linked_folders_go_along_and_circles_do_not(make_case, tmp_path):
    case = make_case()
    base, elsewhere = tmp_path / "base", tmp_path / "elsewhere"
    shutil.copytree(case.folder, base)
    (elsewhere / "deep").mkdir(parents=True)
    (elsewhere / "tool.jinja").write_text("{{ x }}")
    (elsewhere / "deep" / "back").symlink_to(base)
    (elsewhere / "deep" / "up").symlink_to(elsewhere)
    (base / "templates").symlink_to(elsewhere)
    (base / "self").symlink_to(base)
    (base / "above").symlink_to(tmp_path)
    result = apply_to_folder(base, case.path, tmp_path / "out")
    circles = {"templates/deep/back", "templates/deep/up", "self", "above"}
    assert result.left_out == dict.fromkeys(circles, "a link to a folder that holds it")
    assert (tmp_path / "out" / "templates" / "tool.jinja").read_text() == "{{ x }}"
    assert not (tmp_path / "out" / "templates").is_symlink()


def test_links_are_followed_as_the_hub_cache_needs(make_case, tmp_path):
    case = make_case()
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in case.folder.iterdir():
        (snapshot / path.name).symlink_to(path)
    apply_to_folder(snapshot, case.path, tmp_path / "out")
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
    assert same_bits(weights(load_tuned(case, tmp_path / "out")), case.tuned)
    assert same_bits(weights(case.load()), case.base)


def test_a_tied_tensor_that_is_on_disk_twice_changes_twice(make_case, tmp_path):
    case = make_case("llama", torch.bfloat16, "full")
    base = tmp_path / "base"
    shutil.copytree(case.folder, base)
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    result = apply_to_folder(base, case.path, tmp_path / "out")
    assert result.num_tensors == len(case.selection.names) + 1
    model = load(tmp_path / "out")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert same_bits(weights(model), case.tuned)
    tensors["lm_head.weight"] = tensors["lm_head.weight"] + 1
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DeltaError, match=r"lm_head\.weight differs from"):
        apply_to_folder(base, case.path, tmp_path / "out2")


def test_a_folder_in_memory_names_is_found_too(make_case, tmp_path):
    """Folders that other tools saved may name tensors as they are in memory."""
    case = make_case("llava", torch.bfloat16)
    base = tmp_path / "base"
    shutil.copytree(case.folder, base)
    save_file(case.base, base / "model.safetensors", metadata={"format": "pt"})
    apply_to_folder(base, case.path, tmp_path / "out")
    assert same_bits(load_file(tmp_path / "out" / "model.safetensors"), case.tuned)


def test_two_deltas_stack_and_come_off_again(make_case, tmp_path):
    first, second = make_case("llama"), make_case("llama", recipe="mlp")
    apply_to_folder(first.folder, first.path, tmp_path / "one")
    with pytest.raises(DeltaError, match="not its base's"):
        apply_to_folder(tmp_path / "one", second.path, tmp_path / "no")
    apply_to_folder(tmp_path / "one", second.path, tmp_path / "two", strict=False)
    note = json.loads((tmp_path / "two" / "narrowtune_delta.json").read_text())
    assert [entry["recipe"] for entry in note["applied"]] == ["sa_proj", "mlp"]
    undo_folder(tmp_path / "two", second.path, tmp_path / "back", strict=False)
    assert files(tmp_path / "back") == files(tmp_path / "one")


def change(base: Path, name: str, *, rename: str | None = None, function=None) -> None:
    tensors = load_file(base / "model.safetensors")
    tensor = tensors.pop(name) if rename else tensors[name]
    tensors[rename or name] = function(tensor).contiguous() if function else tensor
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})


def flip_one_bit(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.clone()
    tensor.view(torch.int16).view(-1)[0] ^= 1
    return tensor


Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("name", "options", "found"),
    [
        (Q, {"function": flip_one_bit}, rf"1 of 8 tensors are neither base nor tuned: {Q}"),
        (Q, {"function": lambda t: t[:, 1:]}, r"has shape \[32, 31\]"),
        (Q, {"function": torch.Tensor.float}, "is float32, the delta bfloat16"),
        (Q, {"rename": "model.other.weight"}, "no tensor called"),
        ("model.norm.weight", {"function": flip_one_bit}, r"not its base's: model\.norm\.weight"),
    ],
)
def test_a_base_that_differs_is_refused_and_nothing_is_written(
    make_case, tmp_path, name, options, found
):
    case = make_case()
    base = tmp_path / "base"
    shutil.copytree(case.folder, base)
    change(base, name, **options)
    for operation in (apply_to_folder, merge):
        with pytest.raises(NarrowtuneError, match=found):
            operation(base, case.path, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_without_the_strict_check_a_changed_frozen_tensor_stays(make_case, tmp_path):
    case = make_case()
    base = tmp_path / "base"
    shutil.copytree(case.folder, base)
    change(base, "model.norm.weight", function=flip_one_bit)
    apply_to_folder(base, case.path, tmp_path / "out", strict=False)
    got = load_file(tmp_path / "out" / "model.safetensors")
    changed = load_file(base / "model.safetensors")["model.norm.weight"]
    assert got["model.norm.weight"].equal(changed)
    assert got[Q].equal(case.tuned[Q])


def test_applying_twice_undoing_the_base_and_another_family_are_refused(make_case, tmp_path):
    case = make_case()
    apply_to_folder(case.folder, case.path, tmp_path / "tuned")
    with pytest.raises(DeltaError, match="already applied"):
        apply_to_folder(tmp_path / "tuned", case.path, tmp_path / "out")
    with pytest.raises(DeltaError, match="not applied: this is the base"):
        undo_folder(case.folder, case.path, tmp_path / "out")
    with pytest.raises(DeltaError, match="a phi3 model, and a delta of a llama model"):
        apply_to_folder(make_case("phi3").folder, case.path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_delta_with_a_flipped_byte_is_refused(make_case, tmp_path):
    case = make_case()
    raw = bytearray(case.path.read_bytes())
    raw[-5] ^= 1
    (tmp_path / "damaged.safetensors").write_bytes(raw)
    with pytest.raises(DeltaError, match="do not lead to the hash"):
        apply_to_folder(case.folder, tmp_path / "damaged.safetensors", tmp_path / "out")
    (tmp_path / "cut.safetensors").write_bytes(raw[:-100])
    with pytest.raises(DeltaError, match="not a sound safetensors file"):
        apply_to_folder(case.folder, tmp_path / "cut.safetensors", tmp_path / "out")


def test_a_path_that_is_no_delta_file_is_said(make_case, tmp_path):
    case = make_case()
    (tmp_path / "run").mkdir()
    for place, found in (
        (tmp_path / "none.safetensors", "there is no file"),
        (tmp_path / "run", "is a folder"),
    ):
        with pytest.raises(DeltaError, match=f"(?s){found}.*check the path"):
            apply_to_folder(case.folder, place, tmp_path / "out")
    (tmp_path / "run" / "delta.safetensors").write_bytes(case.path.read_bytes())
    with pytest.raises(DeltaError, match=r"(?s)is a folder.*give the file: .*delta\.safetensors"):
        apply_to_folder(case.folder, tmp_path / "run", tmp_path / "out")


def test_a_delta_that_names_a_tensor_twice_is_refused(make_case, tmp_path):
    case = make_case()
    metadata = case.delta.metadata
    first, second = case.selection.names[:2]
    record = metadata.tensors[first].model_copy(update={"tied": [second]})
    metadata = metadata.model_copy(update={"tensors": {**metadata.tensors, first: record}})
    Delta(metadata, case.delta.bits).save(tmp_path / "evil.safetensors")
    with pytest.raises(DeltaError, match="names one tensor of the folder twice"):
        apply_to_folder(case.folder, tmp_path / "evil.safetensors", tmp_path / "out")


def test_the_new_folder_must_be_new_and_elsewhere(make_case, tmp_path):
    case = make_case()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    with pytest.raises(DeltaError, match="not empty"):
        apply_to_folder(case.folder, case.path, tmp_path / "full")
    with pytest.raises(DeltaError, match="not empty"):
        apply_to_folder(case.folder, case.path, tmp_path / "full" / "x")
    with pytest.raises(DeltaError, match="lies inside"):
        apply_to_folder(case.folder, case.path, case.folder / "tuned")
    assert files(tmp_path / "full").keys() == {"x"}
    (tmp_path / "empty").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    apply_to_folder(case.folder, case.path, tmp_path / "link")
    assert (tmp_path / "empty" / "model.safetensors").is_file()
    (tmp_path / "any").mkdir()
    assert (tmp_path / "empty").stat().st_mode == (tmp_path / "any").stat().st_mode


def test_a_folder_that_can_not_be_replaced_is_refused_before_any_work(
    make_case, tmp_path, monkeypatch
):
    case = make_case()
    monkeypatch.setattr("narrowtune.delta.folder.read_layout", None)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for out in (".", tmp_path / "here"):
        with pytest.raises(DeltaError, match="is the current directory"):
            apply_to_folder(case.folder, case.path, out)
    (tmp_path / "round").symlink_to(tmp_path / "round")
    with pytest.raises(DeltaError, match="name another folder"):
        apply_to_folder(case.folder, case.path, tmp_path / "round")
    monkeypatch.setattr(Path, "is_mount", lambda _: True)
    with pytest.raises(DeltaError, match="is a mount"):
        apply_to_folder(case.folder, case.path, tmp_path / "out")


def test_another_process_that_writes_the_same_folder_is_left_alone(make_case, tmp_path):
    case = make_case()
    theirs = tmp_path / f".out.{os.getpid()}.partial"  # on a shared disk, ids repeat
    theirs.mkdir()
    apply_to_folder(case.folder, case.path, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == [theirs.name, "out"]


def test_a_full_disk_leaves_nothing_behind(make_case, tmp_path, monkeypatch):
    case = make_case()
    usage = namedtuple("usage", "total used free")(10, 9, 1)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: usage)
        with pytest.raises(DeltaError, match="bytes free"):
            apply_to_folder(case.folder, case.path, tmp_path / "out")
    assert not any(tmp_path.iterdir())

    def fail(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("narrowtune.delta.folder._flip", fail)
    with pytest.raises(DeltaError, match="No space left"):
        merge(case.folder, case.path, tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_a_note_that_can_not_be_read_is_refused(make_case, tmp_path):
    case = make_case()
    base = tmp_path / "base"
    shutil.copytree(case.folder, base)
    (base / "narrowtune_delta.json").write_text('{"applied": 3}')
    with pytest.raises(DeltaError, match="not readable"):
        apply_to_folder(base, case.path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_without_sound_weights_is_refused(make_case, tmp_path):
    case = make_case()
    base = tmp_path / "base"
    shutil.copytree(case.folder, base)
    with (base / "model.safetensors").open("rb+") as file:
        file.truncate((base / "model.safetensors").stat().st_size - 2)
    with pytest.raises(ModelError, match=r"model\.safetensors is no"):
        apply_to_folder(base, case.path, tmp_path / "out")
    (base / "model.safetensors").unlink()
    with pytest.raises(ModelError):
        apply_to_folder(base, case.path, tmp_path / "out")


def test_text_from_a_delta_stays_text_in_the_card(make_case, tmp_path):
    case = make_case()
    evil = "`</td>| <script>\n# heading"
    metadata = case.delta.metadata.model_copy(update={"notes": [evil], "recipe": evil})
    Delta(metadata, case.delta.bits).save(tmp_path / "evil.safetensors")
    merge(case.folder, tmp_path / "evil.safetensors", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "`'</td>/ <script> # heading`" in card
    assert "\n# heading" not in card


def test_sizes_are_read_as_people_write_them():
    assert [parse_size(s) for s in (7, "7", "7B", "2kb", "3 MB", "5GB")] == [
        7, 7, 7, 2000, 3_000_000, 5_000_000_000,
    ]  # fmt: skip
    for wrong in ("0", "-1", "five", "1.5GB", "", 0):
        with pytest.raises(UsageError):
            parse_size(wrong)


@pytest.mark.parametrize("own", [True, False])
def test_the_base_that_comes_back_has_its_own_card_again(make_case, tmp_path, own):
    case, base = make_case(), tmp_path / "base"
    shutil.copytree(case.folder, base)
    if own:
        (base / "README.md").write_text("the base's own card")
    merge(base, case.path, tmp_path / "out")
    undo_folder(tmp_path / "out", case.path, tmp_path / "again")
    found = {path.name: path.read_text() for path in (tmp_path / "again").glob("README*")}
    assert found == ({"README.md": "the base's own card"} if own else {})


def test_a_folder_that_is_not_there_is_said(make_case, tmp_path):
    with pytest.raises(ModelError, match="no such folder"):
        merge(tmp_path / "nowhere", make_case().path, tmp_path / "out")


def test_a_folder_of_the_base_that_can_not_be_read_is_said(make_case, tmp_path, monkeypatch):
    base, scandir = tmp_path / "base", os.scandir
    shutil.copytree(make_case().folder, base)
    (base / "closed").mkdir()

    def look(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", look)
    with pytest.raises(DeltaError, match="closed: Permission denied"):
        merge(base, make_case().path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
