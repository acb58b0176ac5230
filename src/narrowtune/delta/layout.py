"""The weights of a Hugging Face folder, by position: which shard holds a tensor, and where in it.

Reads headers only; nothing here imports transformers.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from narrowtune.core.errors import ModelError
from narrowtune.data.digest import tensor_sha256
from narrowtune.delta.header import Entry, read_header
from narrowtune.models.disk import INDEX, WEIGHTS, disk_files, locate
from narrowtune.models.families import Family
from narrowtune.models.stored import Stored


@dataclass(frozen=True)
class Place:
    """Where a tensor of a folder lies."""

    shard: Path
    entry: Entry


@dataclass(frozen=True)
class Layout:
    """The weights of one folder.

    Attributes:
        folder: the folder.
        shards: its weight files, in order of name.
        index: the file that says what is in which shard; None for a single file.
        places: every tensor by its name on disk, in the order in which the shards hold them.
    """

    folder: Path
    shards: tuple[Path, ...]
    index: Path | None
    places: dict[str, Place]
    _open: dict[Path, Any] = field(default_factory=dict, repr=False, compare=False)
    _hashes: dict[Any, set[str]] = field(default_factory=dict, repr=False, compare=False)

    def read(self, disk_name: str) -> Tensor:
        """Return one tensor, on the CPU, mapped from its file."""
        shard = self.places[disk_name].shard
        if shard not in self._open:  # opening reads the header, which may be long
            self._open[shard] = safe_open(shard, framework="pt")
        return self._open[shard].get_tensor(disk_name)

    def sha256_of_others(
        self, family: Family, frozen: Iterable[str], changed: Set[str], dtypes: Iterable[str]
    ) -> set[str]:
        """Return the hashes of all tensors but those in `changed`, as they are in memory.

        Each as it is stored, and as it is in a model of one of `dtypes`: few tensors of a
        checkpoint may be wider than they are loaded, Qwen3.5's decays are. Parts of a mixture's
        experts count together, as the one tensor that they are in memory.

        Args:
            family: of the folder's model.
            frozen: names in memory of what does not change.
            changed: names on disk of what does.
            dtypes: of the model.

        Raises:
            ModelError: the folder lacks one of the frozen tensors, or a part of it.
        """
        others = [name for name in frozen if family.stored_otherwise(name) is not None]
        whole = [several[0] for several in locate(family, others, self.folder, {}).values()]
        parts = {part for stored in whole if stored.num_parts for part in stored.names}
        whole += [Stored((name,)) for name in self.places if name not in changed | parts]
        found: set[str] = set()
        for stored in whole:
            key = stored, frozenset(dtypes)
            if key not in self._hashes:  # several deltas are checked against one base
                self._hashes[key] = _sha256_as_loaded(stored.assemble(self.read), dtypes)
            found |= self._hashes[key]
        return found


def _sha256_as_loaded(tensor: Tensor, dtypes: Iterable[str]) -> set[str]:
    found = {tensor_sha256(tensor)}
    for name in dtypes:
        dtype = getattr(torch, name)
        if tensor.is_floating_point() and tensor.dtype.itemsize > dtype.itemsize:
            found.add(tensor_sha256(tensor.to(dtype)))
    return found


def read_layout(folder: str | Path) -> Layout:
    """Read where the tensors of `folder` are.

    Raises:
        ModelError: the folder has no safetensors weights, its index does not match its shards,
            or a shard is damaged.
    """
    folder = Path(folder)
    files = disk_files(folder)
    shards = tuple(sorted(set(files.values())))
    places: dict[str, Place] = {}
    for shard in shards:
        entries = read_header(shard, f"read the weights in {folder}", ModelError).entries
        for name, entry in sorted(entries.items(), key=lambda item: item[1].start):
            if name in places:
                raise ModelError(
                    asked=f"read the weights in {folder}",
                    found=f"{name} in both {places[name].shard.name} and {shard.name}",
                    do="download the model again, or save it anew",
                )
            places[name] = Place(shard, entry)
    index = folder / INDEX
    return Layout(folder, shards, index if (folder / WEIGHTS) not in shards else None, places)
