from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import stat
from collections import namedtuple
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from narrowtune.core.errors import DeltaError, ModelError
from narrowtune.delta.folder import apply_to_folder, undo_folder
from narrowtune.delta.header import MAX_ENTRIES, MAX_HEADER_BYTES, read_header
from narrowtune.delta.store import METADATA_KEY, SCHEMA_VERSION, Delta, info, sync


def write_raw(path: Path, header: object, data: bytes = b"", *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    path.write_bytes(size.to_bytes(8, "little") + text + data)
    return path


def read_parts(path: Path) -> tuple[dict, bytes]:
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


@pytest.fixture
def parts(make_case, tmp_path):
    """The delta's tensors and metadata, and a function that writes changed ones."""
    path = make_case().path
    tensors = load_file(path)
    header, _ = read_parts(path)
    metadata = json.loads(header["__metadata__"][METADATA_KEY])

    def write() -> Path:
        target = tmp_path / "changed.safetensors"
        save_file(tensors, target, metadata={METADATA_KEY: json.dumps(metadata)})
        return target

    return namedtuple("Parts", "tensors metadata write")(tensors, metadata, write)


def test_a_saved_delta_loads_equal_and_saving_is_deterministic(make_case, tmp_path):
    case = make_case()
    loaded = Delta.load(case.path)
    assert loaded.metadata == case.delta.metadata
    assert list(loaded.bits) == list(case.selection.names)
    assert all(loaded.bits[name].equal(bits) for name, bits in case.delta.bits.items())
    loaded.save(tmp_path / "new" / "again.safetensors")
    assert (tmp_path / "new" / "again.safetensors").read_bytes() == case.path.read_bytes()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["again.safetensors"]


@contextmanager
def small_files(num_bytes):
    """No file of this process may be larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_takes_no_more_is_said_and_the_older_file_stays(make_case, tmp_path):
    path = tmp_path / "skill.safetensors"
    path.write_bytes(b"older")
    with pytest.raises(DeltaError, match="File too large"), small_files(1000):
        make_case().delta.save(path)
    assert path.read_bytes() == b"older"
    assert [each.name for each in tmp_path.iterdir()] == ["skill.safetensors"]


def test_another_process_that_writes_the_same_file_is_left_alone(make_case, tmp_path):
    path = tmp_path / "skill.safetensors"
    theirs = tmp_path / f".{path.name}.{os.getpid()}.partial"  # on a shared disk, ids repeat
    theirs.write_bytes(b"theirs")
    make_case().delta.save(path)
    assert theirs.read_bytes() == b"theirs"
    assert Delta.load(path).metadata == make_case().delta.metadata


def test_a_delta_can_be_read_by_whom_the_mask_lets(make_case, tmp_path):
    make_case().delta.save(tmp_path / "skill.safetensors")
    (tmp_path / "any").touch()
    assert (tmp_path / "skill.safetensors").stat().st_mode == (tmp_path / "any").stat().st_mode


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_info_counts_what_changed(make_case, dtype):
    case = make_case("llama", dtype)
    found = info(case.path)
    changed = sum(int((case.base[n] != case.tuned[n]).sum()) for n in case.selection.names)
    assert found.num_changed == changed > 0
    assert found.num_parameters == sum(case.base[n].numel() for n in case.selection.names)
    assert found.num_tensors == len(case.selection.names) == 8
    assert found.dtype == str(dtype).removeprefix("torch.")
    assert found.file_bytes == case.path.stat().st_size
    assert (found.recipe, found.family) == ("sa_proj", "llama")
    assert found.notes == case.delta.metadata.notes
    assert found.base_fingerprint != found.tuned_fingerprint


def test_a_failed_save_leaves_the_old_file(make_case, tmp_path, monkeypatch):
    case, path = make_case(), tmp_path / "delta.safetensors"
    path.write_bytes(b"old")

    def full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr("narrowtune.delta.store.sync", full)
    with pytest.raises(DeltaError, match="No space left"):
        case.delta.save(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def refuse_to_sync(monkeypatch, number, *, folders=True, files=False):
    """Let fsync end with error `number`, of folders or of files, and of what can't be written."""
    fsync = os.fsync

    def refuse(file):
        is_folder = stat.S_ISDIR(os.fstat(file).st_mode)
        if (folders and is_folder) or (files and not is_folder):
            raise OSError(number, os.strerror(number))
        if not is_folder and fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "as Windows has it")
        fsync(file)

    monkeypatch.setattr(os, "fsync", refuse)


@pytest.mark.parametrize("name", ["EINVAL", "ENOTSUP", "ENOSYS", "EBADF", "EACCES"])
def test_a_disk_that_syncs_no_folders_gets_its_delta(make_case, tmp_path, monkeypatch, name):
    refuse_to_sync(monkeypatch, getattr(errno, name))
    case = make_case()
    case.delta.save(tmp_path / "skill.safetensors")
    assert Delta.load(tmp_path / "skill.safetensors").metadata == case.delta.metadata
    apply_to_folder(case.folder, case.path, tmp_path / "tuned")
    undo_folder(tmp_path / "tuned", case.path, tmp_path / "base")


def test_a_system_that_opens_no_folders_is_asked_for_none(tmp_path, monkeypatch):
    monkeypatch.setattr("narrowtune.delta.store.os", SimpleNamespace(name="nt"))
    sync(tmp_path)


@pytest.mark.parametrize("name", ["EIO", "ENOSPC"])
@pytest.mark.parametrize("which", ["folders", "files"])
def test_a_disk_that_fails_is_never_passed_over(make_case, tmp_path, monkeypatch, name, which):
    number = getattr(errno, name)
    refuse_to_sync(monkeypatch, number, folders=which == "folders", files=which == "files")
    with pytest.raises(DeltaError, match=os.strerror(number)):
        make_case().delta.save(tmp_path / "skill.safetensors")


def test_a_full_disk_is_seen_before_writing(make_case, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(10, 9, 1)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(DeltaError, match="bytes free"):
        make_case().delta.save(tmp_path / "delta.safetensors")
    assert not any(tmp_path.iterdir())


def test_an_undeclared_tensor_is_refused(parts):
    parts.tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(2, dtype=torch.int16)
    with pytest.raises(DeltaError, match=r"up_proj\.weight is not declared"):
        Delta.load(parts.write())


def test_a_missing_tensor_is_refused(parts):
    name = next(iter(parts.tensors))
    del parts.tensors[name]
    with pytest.raises(DeltaError, match="declared but not there"):
        info(parts.write())


def test_another_shape_or_dtype_than_declared_is_refused(parts):
    name = next(iter(parts.tensors))
    parts.tensors[name] = parts.tensors[name].T.contiguous().reshape(-1)
    with pytest.raises(DeltaError, match="has shape"):
        Delta.load(parts.write())
    parts.tensors[name] = torch.zeros(parts.metadata["tensors"][name]["shape"], dtype=torch.int32)
    with pytest.raises(DeltaError, match="has dtype I32, declared I16"):
        Delta.load(parts.write())


def test_a_tensor_both_selected_and_frozen_is_refused(parts):
    name = next(iter(parts.tensors))
    parts.metadata["frozen"][name] = "0" * 64
    with pytest.raises(DeltaError, match="both selected and frozen"):
        Delta.load(parts.write())


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"schema_version": SCHEMA_VERSION + 1}, "schema version 3; this narrowtune knows 2"),
        ({"schema_version": "1"}, "schema_version"),
        ({"surprise": 1}, "surprise"),
        ({"recipe": 7}, "recipe"),
        ({"frozen": {"a": "not a hash"}}, "frozen.a"),
        ({"tensors": []}, "tensors"),
        ({"base_fingerprint": None}, "base_fingerprint"),
    ],
)
def test_metadata_that_does_not_describe_a_delta_is_refused(parts, change, found):
    parts.metadata.update(change)
    with pytest.raises(DeltaError, match=found):
        Delta.load(parts.write())


@pytest.mark.parametrize("field", ["dtype", "shape", "disk_name", "base_sha256"])
def test_an_impossible_record_is_refused(parts, field):
    name = next(iter(parts.metadata["tensors"]))
    wrong = {"dtype": "int8", "shape": [-1, 2], "disk_name": "", "base_sha256": "AB" * 32}
    parts.metadata["tensors"][name][field] = wrong[field]
    with pytest.raises(DeltaError, match=field):
        Delta.load(parts.write())


def test_metadata_that_is_missing_or_not_json_is_refused(tmp_path):
    path = tmp_path / "plain.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(DeltaError, match="not a delta"):
        Delta.load(path)
    save_file({"a": torch.zeros(2)}, path, metadata={METADATA_KEY: "[" * 100_000})
    with pytest.raises(DeltaError, match="does not describe a delta"):
        Delta.load(path)
    save_file({"a": torch.zeros(2)}, path, metadata={METADATA_KEY: "3"})
    with pytest.raises(DeltaError, match="does not describe a delta"):
        Delta.load(path)


ENTRY = {"dtype": "I16", "shape": [2], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("header", "data", "found"),
    [
        ({"a": ENTRY, "b": {**ENTRY, "data_offsets": [2, 6]}}, bytes(6), "an overlap before 'b'"),
        ({"a": ENTRY, "b": {**ENTRY, "data_offsets": [6, 10]}}, bytes(10), "a gap before 'b'"),
        ({"a": ENTRY}, bytes(6), "end at byte"),
        ({"a": ENTRY}, bytes(2), "end at byte"),
        ({"a": {**ENTRY, "shape": [2**60]}}, bytes(4), "4 bytes for 'a'"),
        ({"a": {**ENTRY, "shape": [1] * 40}}, bytes(4), "makes no sense"),
        ({"a": {**ENTRY, "shape": [-2]}}, bytes(4), "makes no sense"),
        ({"a": {**ENTRY, "shape": [True, 2]}}, bytes(4), "makes no sense"),
        ({"a": {**ENTRY, "data_offsets": [4, 0]}}, bytes(4), "makes no sense"),
        ({"a": {**ENTRY, "more": 1}}, bytes(4), "no dtype, shape and place"),
        ({"a": [1]}, bytes(4), "no dtype, shape and place"),
        ([1, 2], b"", "not a JSON object"),
        ({"__metadata__": {"x": 1}}, b"", "metadata that is not text"),
        (b'{"a": 1, "a": 2}', b"", "occurs twice"),
        (b"[" * 100_000, b"", "recursion"),
        (b"\xff\xfe", b"", "decode"),
        (b"not json", b"", "Expecting value"),
    ],
)
def test_a_hostile_header_is_refused(tmp_path, header, data, found):
    path = write_raw(tmp_path / "x.safetensors", header, data)
    with pytest.raises(DeltaError, match=found):
        Delta.load(path)


def test_headers_are_bounded_before_they_are_read(tmp_path):
    many = {f"t{i}": {"dtype": "I16", "shape": [0], "data_offsets": [0, 0]} for i in range(100_000)}
    with pytest.raises(DeltaError, match=f"100,000 tensors .limit {MAX_ENTRIES:,}"):
        Delta.load(write_raw(tmp_path / "many.safetensors", many))
    with pytest.raises(DeltaError, match="too few for the header"):
        Delta.load(write_raw(tmp_path / "short.safetensors", b"{}", length=2**62))
    long = write_raw(tmp_path / "long.safetensors", b"{", length=MAX_HEADER_BYTES + 1)
    with long.open("rb+") as file:
        file.truncate(MAX_HEADER_BYTES * 2)  # sparse: nothing of it is written
    with pytest.raises(DeltaError, match="a header of"):
        Delta.load(long)
    (tmp_path / "empty.safetensors").write_bytes(b"")
    with pytest.raises(DeltaError, match="too few"):
        Delta.load(tmp_path / "empty.safetensors")
    with pytest.raises(DeltaError, match="there is no file"):
        Delta.load(tmp_path / "absent.safetensors")


def test_positions_agree_with_the_library(tmp_path):
    tensors = {"a": torch.arange(3.0), "b": torch.ones(2, 2, dtype=torch.bfloat16)}
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    header = read_header(path, "to test", ModelError)
    raw = path.read_bytes()
    entry = header.entries["a"]
    assert raw[entry.start : entry.end] == tensors["a"].numpy().tobytes()
    assert header.entries["b"].shape == (2, 2)
    assert header.metadata == {"format": "pt"}
