"""The delta as a value and as a file. The format is described in docs/delta.md.

A file that comes from elsewhere is judged by its header before a tensor of it is read: size and
number of entries are limited, the tensors are exactly those that the metadata declares, with the
shapes and dtypes that it declares.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from narrowtune.core.delta_results import DeltaInfo
from narrowtune.core.errors import DeltaError
from narrowtune.delta.bits import DTYPES, SAFETENSORS_TAGS, bits_dtype
from narrowtune.delta.header import MAX_ENTRIES, Entry, read_header
from narrowtune.delta.packed import PackedBits, is_plausible, pack_all
from narrowtune.version import __version__

SCHEMA_VERSION = 2
_FIRST_PACKED = 2  # plain files are of version 1, which older readers know
METADATA_KEY = "narrowtune_delta"

_NO_SYNC_OF_FOLDERS = {
    *(errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EACCES)
}
"""What network and user-space file systems answer that have none, and folders not to be listed."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(min_length=1, max_length=1000)]
Size = Annotated[int, Field(ge=0)]


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TensorRecord(_Stored):
    """One selected tensor, described.

    Attributes:
        disk_name: its name in the base's safetensors files.
        shape: of the tensor, in memory and on disk.
        dtype: of the base, such as "bfloat16".
        base_sha256: `models.fingerprint.tensor_sha256` of the base's tensor.
        tuned_sha256: the same of the tuned tensor, rounded to the base's dtype.
        tied: other names in memory under which the model uses this very tensor.
    """

    disk_name: Name
    shape: list[Size]
    dtype: str
    base_sha256: Sha256
    tuned_sha256: Sha256
    tied: list[Name] = []

    @field_validator("dtype")
    @classmethod
    def _known_dtype(cls, value: str) -> str:
        if value not in DTYPES:
            raise ValueError(f"not one of {', '.join(DTYPES)}")
        return value

    @property
    def torch_dtype(self) -> torch.dtype:
        """The base's dtype."""
        return DTYPES[self.dtype]


class Metadata(_Stored):
    """Everything about a delta but its bits.

    Attributes:
        recipe: name of the recipe that selected the tensors.
        family: the model's family.
        base_fingerprint: of the whole base model, in memory names.
        tuned_fingerprint: of the whole tuned model.
        narrowtune: the version that wrote the file.
        encoding: of the tensors in the file: `plain`, the integers as they are, or `packed`.
        notes: what a user of the delta must know ("base dequantised from Q4_1").
        tensors: the selected tensors by their names in memory.
        frozen: SHA-256 of every other parameter and persistent buffer, by name in memory.
    """

    schema_version: int = 1
    encoding: Literal["plain", "packed"] = "plain"
    recipe: str
    family: str
    base_fingerprint: str
    tuned_fingerprint: str
    narrowtune: str = __version__
    notes: list[str] = []
    tensors: Annotated[dict[Name, TensorRecord], Field(max_length=MAX_ENTRIES)]
    frozen: Annotated[dict[Name, Sha256], Field(max_length=MAX_ENTRIES)]


@dataclass(frozen=True)
class Delta:
    """What training changed.

    Attributes:
        metadata: names, shapes, dtypes, hashes and origin.
        bits: tuned XOR base by name in memory, integers of the base's width, on the CPU. After
            `load` they are mapped from the file and read, or unpacked, when they are used.
    """

    metadata: Metadata
    bits: Mapping[str, Tensor]

    def save(self, path: str | Path, *, packed: bool = False) -> None:
        """Write the delta to `path`, whole or not at all; an older file there is replaced.

        The same delta gives the same bytes: nothing in the file depends on time or machine (with
        `packed`, on the version of zlib).

        Args:
            path: the file.
            packed: whether the bits are compressed, without loss (docs/delta.md has sizes).

        Raises:
            DeltaError: the disk has too little room, or the folder can't be written.
        """
        path = Path(path)
        asked = f"save a delta as {path}"
        metadata = self.metadata.model_copy(
            update={"schema_version": _FIRST_PACKED, "encoding": "packed"}
            if packed
            else {"schema_version": 1, "encoding": "plain"}
        )
        text = metadata.model_dump_json(exclude=None if packed else {"encoding"})
        tensors = pack_all(self.bits) if packed else dict(self.bits)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            num_bytes = sum(tensor.nbytes for tensor in tensors.values()) + 2 * len(text)
            check_free_space(path.parent, num_bytes, asked)
            with beside(path) as own:
                partial = own / "partial"
                write_tensors(tensors, partial, {METADATA_KEY: text})
                sync(partial)
                partial.replace(path)
            sync(path.parent)
        except OSError as problem:
            raise DeltaError(
                asked=asked, found=str(problem), do="choose a folder that can be written, with room"
            ) from None

    @classmethod
    def load(cls, path: str | Path) -> Delta:
        """Read the delta at `path`.

        Raises:
            DeltaError: the file is not a delta, was made by a newer narrowtune, or its tensors
                are not those that its metadata declares.
        """
        path = Path(path)
        metadata = read_metadata(path)
        with safe_open(path, framework="pt") as file:
            return cls(metadata, _bits(path, metadata, file))


def _bits(path: Path, metadata: Metadata, file: Any) -> Mapping[str, Tensor]:
    """Return the tensors of an open file, which `read_metadata` has judged."""
    stored = {name: file.get_tensor(name) for name in metadata.tensors}
    if metadata.encoding == "plain":
        return stored
    shapes = {name: tuple(record.shape) for name, record in metadata.tensors.items()}
    dtypes = {name: bits_dtype(record.torch_dtype) for name, record in metadata.tensors.items()}
    return PackedBits(stored, shapes, dtypes, str(path))


def read_metadata(path: Path) -> Metadata:
    """Read and check everything about the delta at `path` but its bits; see `Delta.load`."""
    asked = f"read the delta {path}"
    header = read_header(path, asked)

    def refuse(
        found: str, do: str = "fetch the delta again from where it was published"
    ) -> NoReturn:
        raise DeltaError(asked=asked, found=found, do=do) from None

    if METADATA_KEY not in header.metadata:
        refuse("a safetensors file that is not a delta", "name a file that narrowtune saved")
    try:
        raw = json.loads(header.metadata[METADATA_KEY])
        version = raw["schema_version"]
        if type(version) is int and version > SCHEMA_VERSION:
            refuse(
                f"schema version {version}; this narrowtune knows {SCHEMA_VERSION}",
                "install a newer narrowtune",
            )
        metadata = Metadata.model_validate(raw)
    except (ValueError, TypeError, LookupError, RecursionError) as problem:
        refuse(f"metadata that does not describe a delta: {_first_mistake(problem)}")
    if problems := _disagreements(metadata, header.entries):
        refuse("tensors other than those declared: " + "; ".join(problems[:5]))
    return metadata


def _first_mistake(problem: Exception) -> str:
    if not isinstance(problem, ValidationError):
        return f"{type(problem).__name__} {problem}"
    first: Any = problem.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"


def _disagreements(metadata: Metadata, entries: dict[str, Entry]) -> list[str]:
    found = [f"{name} is not declared" for name in entries if name not in metadata.tensors]
    for name, record in metadata.tensors.items():
        tag, shape = SAFETENSORS_TAGS[bits_dtype(record.torch_dtype)], tuple(record.shape)
        if metadata.encoding == "packed" and name in entries:
            num_packed = math.prod(entries[name].shape)
            num_bytes = math.prod(shape) * record.torch_dtype.itemsize
            if not is_plausible(num_packed, num_bytes):
                found.append(f"{name} has {num_packed} bytes, too few for {num_bytes:,}")
            tag, shape = "U8", (num_packed,)
        if name in metadata.frozen:
            found.append(f"{name} is declared both selected and frozen")
        if name not in entries:
            found.append(f"{name} is declared but not there")
        elif entries[name].shape != shape:
            found.append(f"{name} has shape {list(entries[name].shape)}, declared {list(shape)}")
        elif entries[name].dtype != tag:
            found.append(f"{name} has dtype {entries[name].dtype}, declared {tag}")
    return found


def info(path: str | Path) -> DeltaInfo:
    """Describe the delta at `path`, holding one tensor at a time.

    `num_changed` counts the elements whose bits differ between base and tuned.

    Raises:
        DeltaError: see `Delta.load`.
    """
    path = Path(path)
    metadata = read_metadata(path)
    num_parameters = num_changed = dense_bytes = 0
    for bits in Delta.load(path).bits.values():
        num_parameters += bits.numel()
        num_changed += int(torch.count_nonzero(bits))
        dense_bytes += bits.nbytes
    return DeltaInfo(
        path=str(path),
        num_tensors=len(metadata.tensors),
        num_parameters=num_parameters,
        num_changed=num_changed,
        file_bytes=path.stat().st_size,
        dense_bytes=dense_bytes,
        dtype=", ".join(sorted({record.dtype for record in metadata.tensors.values()})),
        base_fingerprint=metadata.base_fingerprint,
        tuned_fingerprint=metadata.tuned_fingerprint,
        recipe=metadata.recipe,
        family=metadata.family,
        notes=list(metadata.notes),
    )


def check_new_file(output: Path, source: Path, *, overwrite: bool) -> None:
    """Raise a DeltaError if writing `output` would replace `source`, or what is there already."""
    if not output.exists():
        return
    same = source.exists() and output.samefile(source)
    if same or not overwrite or output.is_dir():
        may = not overwrite and not same and not output.is_dir()
        raise DeltaError(
            asked=f"write {output}",
            found="it is the delta that is read" if same else "it is there",
            do="name another file" + ", or give --overwrite" * may,
        )


def check_free_space(folder: Path, num_bytes: int, asked: str) -> None:
    """Raise a DeltaError unless `folder`'s disk has room for `num_bytes` and a little more."""
    free = shutil.disk_usage(folder).free
    if free < num_bytes + 2**20:
        raise DeltaError(
            asked=asked,
            found=f"{free:,} bytes free in {folder}, {num_bytes:,} needed",
            do="free some space or choose another disk",
        )


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Give a folder of this process's own on the disk of `path`, which vanishes at the end.

    What is made in it has the mode that anything new has; the folder itself is private.
    """
    with tempfile.TemporaryDirectory(
        dir=path.parent, prefix=".narrowtune-", ignore_cleanup_errors=True
    ) as own:
        yield Path(own)


def write_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a new safetensors file, with the mode that a new file has here.

    Raises:
        OSError: it can't be written, or not all of it.
    """
    path.touch()
    mode = path.stat().st_mode & 0o777
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as problem:  # also where the disk is full
        raise OSError(str(problem)) from None
    with suppress(OSError):  # the library's are private; some disks have no modes
        path.chmod(mode)


def sync(path: Path) -> None:
    """Have the system write the file or folder at `path` to the disk.

    Folders are passed over where the system, or what is mounted there, can't do that with one.

    Raises:
        OSError: the disk failed or is full, or a file can't be opened for writing.
    """
    if not path.is_dir():
        with path.open("rb+") as file:  # Windows syncs no file that is open for reading only
            os.fsync(file.fileno())
    elif os.name != "nt":  # which opens no folders
        try:
            _sync_folder(path)
        except OSError as problem:
            if problem.errno not in _NO_SYNC_OF_FOLDERS:
                raise


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
