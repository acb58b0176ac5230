"""A base folder's tensors, and what deltas make of them as numbers rather than bits."""

from __future__ import annotations

from collections.abc import Sequence, Set
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from narrowtune.delta.bits import flip
from narrowtune.delta.layout import read_layout
from narrowtune.delta.store import Delta, TensorRecord
from narrowtune.delta.verify import verify_family, verify_frozen, verify_selected
from narrowtune.models.disk import locate


class Base:
    """The tensors of a folder that some deltas change, each mapped from its file when read.

    Args:
        folder: the base of every delta.
        deltas: all of which must fit.
        asked: the clause that an error begins with.

    Attributes:
        folder: the same.
        family: of its model.
        records: the tensors that a delta changes, by name in memory.

    Raises:
        DeltaError: a delta does not fit the folder, or is damaged.
        ModelError: the folder has no sound safetensors weights.
    """

    def __init__(self, folder: str | Path, deltas: Sequence[Delta], asked: str) -> None:
        self.folder, self._layout = Path(folder), read_layout(folder)
        self.records: dict[str, TensorRecord] = {}
        for delta in deltas:
            self.records |= delta.metadata.tensors
        ties = {name: tuple(record.tied) for name, record in self.records.items()}
        self.family = family = verify_family(self.folder, deltas, asked)
        found = locate(family, self.records, self.folder, ties)
        self._places = {name: several[0] for name, several in found.items()}
        dtypes = {record.dtype for record in self.records.values()}
        for delta in deltas:
            verify_selected(delta, "apply", lambda name, _: self.read(name), asked)
            own = {part for name in delta.metadata.tensors for part in self._places[name].names}
            frozen = delta.metadata.frozen
            others = self._layout.sha256_of_others(family, frozen, own, dtypes)
            verify_frozen(delta, partial(_is_among, others), asked)

    def read(self, name: str) -> Tensor:
        """Return the base's tensor of this name in memory."""
        return self._places[name].assemble(self._layout.read, tuple(self.records[name].shape))

    def tuned(self, delta: Delta, name: str) -> Tensor:
        """Return the tensor with the delta on it; the base's where the delta leaves it alone."""
        before = self.read(name)
        return flip(before, delta.bits[name]) if name in delta.metadata.tensors else before

    def difference(self, delta: Delta, name: str) -> Tensor:
        """Return tuned − base in fp32 (fp64 for fp64); zeros where nothing is changed."""
        before = self.read(name)
        wide = torch.float64 if before.dtype == torch.float64 else torch.float32
        return self.tuned(delta, name).to(wide) - before.to(wide)


def _is_among(digests: Set[str], _name: str, digest: str) -> bool:
    return digest in digests
