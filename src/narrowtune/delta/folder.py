"""A delta on a model folder: bytes in, bytes out, without building the model.

XOR keeps the size and place of every tensor, so a folder is copied as it is and the selected
tensors' bytes are flipped in the copy: memory stays at one tensor, and undoing gives back the very
files. `merge` repacks the weights for release first; the flipping is the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from narrowtune.core.errors import DeltaError, UsageError
from narrowtune.core.provenance import sha256_file
from narrowtune.data.digest import tensor_sha256
from narrowtune.delta.card import restore_card, write_card
from narrowtune.delta.copying import (
    check_new_folder,
    copy_companions,
    copy_weights,
    find_companions,
    repack_weights,
    staged,
)
from narrowtune.delta.layout import Layout, read_layout
from narrowtune.delta.marker import Applied, change_marker
from narrowtune.delta.store import Delta, TensorRecord, check_free_space, sync
from narrowtune.delta.verify import (
    Direction,
    source_sha256,
    verify_family,
    verify_frozen,
    verify_selected,
)
from narrowtune.models.disk import locate
from narrowtune.models.stored import Stored


@dataclass(frozen=True)
class FolderResult:
    """What was written.

    Attributes:
        folder: the new folder.
        num_tensors: tensors of the folder that were changed.
        num_bytes: size of the folder's weights.
        left_out: files of the old folder that were not taken over, with the reason.
    """

    folder: Path
    num_tensors: int
    num_bytes: int
    left_out: dict[str, str]


def apply_to_folder(
    folder: str | Path, delta_path: str | Path, out: str | Path, *, strict: bool = True
) -> FolderResult:
    """Write the tuned model to `out`: the base in `folder` with the delta on it.

    Shards, their names and everything else stay as they are; `narrowtune_delta.json` is added and
    says which delta the folder holds. `out` appears when it is complete, or not at all.

    Args:
        folder: the base, with safetensors weights.
        delta_path: the delta.
        out: a folder that does not exist yet, or is empty.
        strict: also check that the tensors which the delta leaves alone are the base's.

    Raises:
        DeltaError: the folder is not the base, the delta is already applied or damaged, `out`
            exists, or the disk has too little room. Nothing is written then.
        ModelError: `folder` has no sound safetensors weights.
    """
    return _write(Path(folder), Path(delta_path), Path(out), "apply", strict, None)


def undo_folder(
    folder: str | Path, delta_path: str | Path, out: str | Path, *, strict: bool = True
) -> FolderResult:
    """Write the base to `out`: the tuned model in `folder` without the delta.

    What `apply_to_folder` made comes back file for file; see there for arguments and errors.
    """
    return _write(Path(folder), Path(delta_path), Path(out), "undo", strict, None)


def merge(
    folder: str | Path,
    delta_path: str | Path,
    out: str | Path,
    max_shard_size: int | str = "5GB",
    *,
    strict: bool = True,
) -> FolderResult:
    """Write the tuned model to `out` for release: a plain folder that `from_pretrained` loads.

    As `apply_to_folder`, but the weights are packed into shards of at most `max_shard_size`, bytes
    or text such as "5GB" (one larger tensor makes one larger shard), and a README.md says what the
    folder is; the base's own becomes README.base.md.
    """
    limit = parse_size(max_shard_size)
    return _write(Path(folder), Path(delta_path), Path(out), "apply", strict, limit)


def parse_size(size: int | str) -> int:
    """Return bytes for a number or a text such as "5GB" or "500MB" (powers of 1000).

    Raises:
        UsageError: it is not a positive size.
    """
    found = re.fullmatch(r"(\d+) ?(B|KB|MB|GB|TB)?", str(size).strip().upper())
    if found is None or int(found[1]) == 0:
        raise UsageError(
            asked=f"shards of at most {size!r}",
            found="not a positive number of bytes",
            do='write a size such as "5GB" or "500MB"',
        )
    return int(found[1]) * 1000 ** ("B", "KB", "MB", "GB", "TB").index(found[2] or "B")


def _write(
    folder: Path,
    delta_path: Path,
    out: Path,
    direction: Direction,
    strict: bool,
    max_shard_size: int | None,
) -> FolderResult:
    verb = direction if max_shard_size is None else "merge"
    asked = f"{verb} {delta_path} on {folder} into {out}"
    check_new_folder(folder, out, asked)  # before all tensors are read
    layout = read_layout(folder)
    delta = Delta.load(delta_path)
    changes = _verify(layout, delta, direction, strict, asked)
    applied = Applied.of(delta.metadata, sha256_file(delta_path))
    companions = find_companions(layout, is_release=max_shard_size is not None)
    with staged(folder, out, asked) as staging:
        num_bytes = sum(shard.stat().st_size for shard in layout.shards)
        check_free_space(staging, num_bytes + companions.num_bytes, asked)
        if max_shard_size is None:
            copy_weights(layout, staging)
        else:
            repack_weights(layout, staging, max_shard_size)
        _flip(read_layout(staging), delta, changes)
        copy_companions(companions, folder, staging)
        stack = change_marker(folder, staging, applied, direction, asked)
        if max_shard_size is not None:
            write_card(staging, out.name, stack, delta.metadata)
        elif not stack:
            restore_card(staging)
    num_tensors = sum(len(stored.names) for several in changes.values() for stored in several)
    return FolderResult(out, num_tensors, num_bytes, companions.left_out)


def _verify(
    layout: Layout, delta: Delta, direction: Direction, strict: bool, asked: str
) -> dict[str, tuple[Stored, ...]]:
    """Check all, and return where the folder has each tensor that changes, by name in memory."""
    records = delta.metadata.tensors
    family = verify_family(layout.folder, [delta], asked)
    ties = {name: tuple(record.tied) for name, record in records.items()}
    places = locate(family, records, layout.folder, ties)
    names = [part for several in places.values() for stored in several for part in stored.names]
    changes = set(names)
    if len(changes) != len(names):
        raise DeltaError(
            asked=asked,
            found="a delta that names one tensor of the folder twice",
            do="the delta is damaged: fetch it again from where it came from",
        )

    def find(name: str, record: TensorRecord) -> Tensor:
        return places[name][0].assemble(layout.read, tuple(record.shape))

    verify_selected(delta, direction, find, asked)
    # A tied tensor may be on disk twice; both change, or loading would untie them.
    for name, (first, *more) in places.items():
        for stored in more:
            digest = tensor_sha256(stored.assemble(layout.read, tuple(records[name].shape)))
            if digest != source_sha256(records[name], direction):
                raise DeltaError(
                    asked=asked,
                    found=f"{stored.names[0]} differs from {first.names[0]}, in the base they are "
                    "tied",
                    do="use the exact model that the delta names",
                )
    if strict:
        dtypes = {record.dtype for record in records.values()}
        hashes = layout.sha256_of_others(family, delta.metadata.frozen, changes, dtypes)
        verify_frozen(delta, lambda _, digest: digest in hashes, asked)
    return places


def _flip(layout: Layout, delta: Delta, changes: dict[str, tuple[Stored, ...]]) -> None:
    """Flip the bits of the tensors in `changes`, in the files of `layout`."""
    parts = (
        part
        for name, several in changes.items()
        for stored in several
        for part in stored.take_apart(delta.bits[name], layout.read)
    )
    for disk_name, tensor in parts:
        place = layout.places[disk_name]
        if place.entry.start == place.entry.end:
            continue
        bits = tensor.reshape(-1).view(torch.uint8).numpy()
        mapped = np.memmap(
            place.shard, mode="r+", offset=place.entry.start, shape=bits.shape, dtype=np.uint8
        )
        np.bitwise_xor(mapped, bits, out=mapped)
        mapped.flush()
    for shard in layout.shards:
        sync(shard)
