"""The header of a safetensors file, read with limits and checked before any tensor is.

Layout (https://github.com/huggingface/safetensors#format): eight bytes with the header's length,
little-endian; the header as JSON; the tensors' bytes. The `safetensors` library reads the tensors;
this module exists because a delta must be judged before anything is allocated for it, and because
patching a folder in place needs the position of each tensor in its file.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from narrowtune.core.errors import DeltaError, NarrowtuneError

MAX_HEADER_BYTES = 64 * 2**20
MAX_ENTRIES = 65_536
MAX_DIMENSIONS = 32

ITEMSIZES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
"""Bytes per element by dtype tag. A tag that is not here can be copied but not patched."""


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies: bytes `start` (included) to `end` (excluded) of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """A checked header."""

    entries: dict[str, Entry]
    metadata: dict[str, str]


class _MalformedError(ValueError):
    """What is wrong with a header; becomes the caller's error type."""


def read_header(path: Path, asked: str, error: type[NarrowtuneError] = DeltaError) -> Header:
    """Read and check the header of the safetensors file at `path`; no tensor is read.

    Args:
        asked: the clause that an error begins with.
        error: which error to raise.

    Raises:
        error: the file can't be read, its header is longer than 64 MiB or names more than
            65,536 tensors, or the tensors do not fill the file without gap or overlap.
    """
    if not path.is_file():
        inside = sorted(file.name for file in path.glob("*.safetensors")) if path.is_dir() else []
        raise error(
            asked=asked,
            found=f"{path} is a folder" if path.is_dir() else f"there is no file {path}",
            do=f"give the file: {path / inside[0]}" if inside else "check the path",
        )
    try:
        return _read(path)
    except (OSError, ValueError, RecursionError) as problem:
        raise error(
            asked=asked,
            found=f"{path} is not a sound safetensors file: {problem}",
            do="check the path, or fetch the file again from where it was published",
        ) from None


def _read(path: Path) -> Header:
    file_bytes = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if file_bytes < 8 or length > file_bytes - 8:
            raise _MalformedError(f"{file_bytes:,} bytes, too few for the header that it announces")
        if length > MAX_HEADER_BYTES:
            raise _MalformedError(f"a header of {length:,} bytes (limit {MAX_HEADER_BYTES:,})")
        raw = json.loads(file.read(length).decode(), object_pairs_hook=_without_repeats)
    if not isinstance(raw, dict):
        raise _MalformedError("a header that is not a JSON object")
    metadata = raw.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _MalformedError("metadata that is not text")
    if len(raw) > MAX_ENTRIES:
        raise _MalformedError(f"{len(raw):,} tensors (limit {MAX_ENTRIES:,})")
    entries = {name: _parse_entry(name, value, 8 + length) for name, value in raw.items()}
    _check_tiling(entries, 8 + length, file_bytes)
    return Header(entries, metadata)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _MalformedError("a name that occurs twice")
    return found


def _is_size(value: Any) -> bool:
    return type(value) is int and value >= 0


def _parse_entry(name: str, value: Any, data_start: int) -> Entry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _MalformedError(f"no dtype, shape and place for {name!r}")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    sizes_ok = all(
        isinstance(sizes, list) and all(_is_size(size) for size in sizes)
        for sizes in (shape, offsets)
    )
    sizes_ok = sizes_ok and len(shape) <= MAX_DIMENSIONS and len(offsets) == 2
    if not isinstance(dtype, str) or not sizes_ok or offsets[0] > offsets[1]:
        raise _MalformedError(f"a dtype, shape or place of {name!r} that makes no sense")
    num_bytes = offsets[1] - offsets[0]
    if dtype in ITEMSIZES and math.prod(shape) * ITEMSIZES[dtype] != num_bytes:
        raise _MalformedError(f"{num_bytes:,} bytes for {name!r}, which is {dtype} {shape}")
    return Entry(dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _check_tiling(entries: dict[str, Entry], data_start: int, file_bytes: int) -> None:
    position = data_start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != position:
            kind = "an overlap" if entry.start < position else "a gap"
            raise _MalformedError(f"{kind} before {name!r}")
        position = entry.end
    if position != file_bytes:
        raise _MalformedError(f"tensors that end at byte {position:,} of {file_bytes:,}")
