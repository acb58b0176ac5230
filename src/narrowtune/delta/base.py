"""A base folder's tensors, and what deltas make of them as numbers rather than bits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from narrowtune.delta.bits import flip
from narrowtune.delta.layout import read_layout
from narrowtune.delta.store import Delta, TensorRecord
from narrowtune.delta.verify import verify_selected
from narrowtune.models.disk import check_folder, locate
from narrowtune.models.families import find_family


class Base:
    """The tensors of a folder that some deltas change, each mapped from its file when read.

    Args:
        folder: the base of every delta.
        deltas: all of which must fit.
        asked: the clause that an error begins with.

    Attributes:
        folder: the same.
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
        family = find_family(check_folder(self.folder))
        found = locate(family, self.records, self.folder, ties)
        self._places = {name: several[0] for name, several in found.items()}
        for delta in deltas:
            verify_selected(delta, "apply", lambda name, _: self.read(name), asked)

    def read(self, name: str) -> Tensor:
        """Return the base's tensor of this name in memory."""
        return self._layout.read(self._places[name])

    def difference(self, delta: Delta, name: str) -> Tensor:
        """Return tuned − base in fp32: zeros where the delta leaves the tensor alone."""
        before = self.read(name)
        tuned = flip(before, delta.bits[name]) if name in delta.bits else before
        return tuned.float() - before.float()
