"""Packed deltas hold the same bits, in less room, and damage is seen."""

from __future__ import annotations

import json
import zlib

import pytest
import torch
from safetensors.torch import load_file, save_file

from delta_cases import same_bits, weights
from narrowtune.core.errors import DeltaError
from narrowtune.delta.apply import apply, undo
from narrowtune.delta.folder import apply_to_folder, undo_folder
from narrowtune.delta.packed import PackedBits, is_plausible, pack
from narrowtune.delta.store import METADATA_KEY, Delta, info, read_metadata


def unpack(packed, shape, dtype):
    return PackedBits({"w": packed}, {"w": shape}, {"w": dtype}, "a test")["w"]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (5, 7), (2, 3, 4)])
def test_what_is_packed_comes_back(dtype, shape):
    generator = torch.Generator().manual_seed(0)
    limits = torch.iinfo(dtype)
    bits = torch.randint(limits.min, limits.max, shape, generator=generator, dtype=dtype)
    packed = pack(bits)
    assert packed.dtype == torch.uint8
    assert packed.ndim == 1
    again = unpack(packed, shape, dtype)
    assert again.dtype == dtype
    assert again.equal(bits)


def test_bits_of_small_steps_take_a_third():
    """Weights with a deviation of 0.05 that moved by 3e-4."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(400, 500, generator=generator) * 0.05
    tuned = base + torch.randn(400, 500, generator=generator) * 3e-4
    bits = base.bfloat16().view(torch.int16) ^ tuned.bfloat16().view(torch.int16)
    assert 0.2 < pack(bits).nbytes / bits.nbytes <= 0.35


def test_every_rank_is_deflated_by_what_suits_it():
    """Of long steps the lower bytes are close to random and the upper ones repeat."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(700, 500, generator=generator) * 0.05
    tuned = base + torch.randn(700, 500, generator=generator) * 2e-2
    bits = base.bfloat16().view(torch.int16) ^ tuned.bfloat16().view(torch.int16)
    planes = bits.flatten().view(torch.uint8).view(-1, 2).T.contiguous().numpy().tobytes()
    packed = pack(bits).numpy().tobytes()
    assert zlib.decompress(packed) == planes, "what reads zlib reads it"
    assert len(packed) < 0.97 * len(zlib.compress(planes))
    zeros = torch.zeros(700, 500, dtype=torch.int16)
    assert pack(zeros).nbytes < zeros.nbytes / 500


def test_a_few_rows_that_changed_among_many_take_no_more_room():
    generator = torch.Generator().manual_seed(0)
    bits = torch.zeros(6000, 512, dtype=torch.int16)
    bits[2700:3300] = torch.randint(0, 2**14, (600, 512), generator=generator, dtype=torch.int16)
    planes = bits.flatten().view(torch.uint8).view(-1, 2).T.contiguous().numpy().tobytes()
    packed = pack(bits)
    assert packed.nbytes < 1.02 * len(zlib.compress(planes))
    assert unpack(packed, bits.shape, bits.dtype).equal(bits)


@pytest.fixture
def packed_path(make_case, tmp_path):
    path = tmp_path / "packed.safetensors"
    make_case().delta.save(path, packed=True)
    return path


def test_a_packed_file_is_smaller_and_holds_the_same(make_case, packed_path, tmp_path):
    case, found = make_case(), Delta.load(packed_path)
    assert list(found.bits) == list(case.delta.bits)
    assert len(found.bits) == len(case.delta.bits)
    assert all(found.bits[name].equal(bits) for name, bits in case.delta.bits.items())
    assert packed_path.stat().st_size < case.path.stat().st_size
    found.save(tmp_path / "plain.safetensors")
    assert (tmp_path / "plain.safetensors").read_bytes() == case.path.read_bytes()
    found.save(tmp_path / "again.safetensors", packed=True)
    assert (tmp_path / "again.safetensors").read_bytes() == packed_path.read_bytes()


def test_asking_for_a_name_unpacks_nothing(packed_path, monkeypatch):
    bits = Delta.load(packed_path).bits
    monkeypatch.setattr(PackedBits, "__getitem__", None)
    assert next(iter(bits)) in bits
    assert "no such tensor" not in bits


def test_plain_files_are_still_of_version_1(make_case, packed_path):
    assert read_metadata(make_case().path).schema_version == 1
    assert read_metadata(packed_path).schema_version == 2


def test_info_says_both_sizes(make_case, packed_path):
    plain, packed = info(make_case().path), info(packed_path)
    assert packed.file_bytes == packed_path.stat().st_size
    assert packed.dense_bytes == plain.dense_bytes == 2 * plain.num_parameters
    assert (packed.num_changed, packed.num_parameters) == (plain.num_changed, plain.num_parameters)


def test_a_packed_delta_is_applied_and_undone(make_case, packed_path):
    case = make_case()
    model, delta = case.load(), Delta.load(packed_path)
    apply(model, delta)
    assert same_bits(weights(model), case.tuned)
    undo(model, delta)
    assert same_bits(weights(model), case.base)


def test_a_packed_copy_undoes_what_the_plain_one_applied(make_case, packed_path, tmp_path):
    case = make_case()
    apply_to_folder(case.folder, case.path, tmp_path / "tuned")
    undo_folder(tmp_path / "tuned", packed_path, tmp_path / "base")
    assert sorted(p.name for p in (tmp_path / "base").iterdir()) == sorted(
        p.name for p in case.folder.iterdir()
    )


def change(path, change_tensor, shape=None):
    tensors = load_file(path)
    name = next(iter(tensors))
    tensors[name] = change_tensor(tensors[name])
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    metadata = json.loads(header["__metadata__"][METADATA_KEY])
    if shape is not None:
        metadata["tensors"][name]["shape"] = shape
    save_file(tensors, path, metadata={METADATA_KEY: json.dumps(metadata)})


@pytest.mark.parametrize(
    "damage",
    [
        lambda t: t[:-1].clone(),
        lambda t: torch.cat((t, t)),
        lambda t: torch.cat((t[:20], 255 - t[20:])),
        lambda _: pack(torch.zeros(100_000, dtype=torch.int16)),
    ],
    ids=["cut", "goes on", "changed", "unpacks to more"],
)
def test_damage_is_seen_before_the_model_is_touched(make_case, packed_path, damage):
    change(packed_path, damage)
    case = make_case()
    model = case.load()
    with pytest.raises(DeltaError, match="unpack"):
        apply(model, Delta.load(packed_path))
    assert same_bits(weights(model), case.base)


def test_a_few_bytes_that_claim_to_be_many_are_refused_unread(packed_path):
    change(packed_path, lambda t: t, shape=[10**6, 10**6])
    with pytest.raises(DeltaError, match="too few for"):
        info(packed_path)
    assert is_plausible(1, 1000)
    assert not is_plausible(1, 10**12)


def test_a_packed_tensor_is_a_row_of_bytes(packed_path):
    change(packed_path, lambda t: t.to(torch.int16))
    with pytest.raises(DeltaError, match="has dtype I16, declared U8"):
        Delta.load(packed_path)
