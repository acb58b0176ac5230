"""Training rows in little memory: a hundred thousand rows, or pictures of many gigabytes.

Owns: `StoredRow`, which keeps tokens as 4-byte numbers and prepares its pictures again when they
are asked for, where there is no room to keep them.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from functools import partial

from torch import Tensor

from narrowtune.core.errors import DataError
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.collate import Encoded
from narrowtune.data.examples import Example
from narrowtune.data.room import Room


class StoredRow(Encoded):
    """An encoded row that holds its pictures only where there is room.

    Args:
        encoded: the row.
        name: of the row, for errors.
        again: makes the row's features once more.
        room: what rows may hold together.
    """

    _ids: array[int]
    _labels: array[int]
    _name: str
    _features: dict[str, Tensor] | None
    _again: Callable[[], dict[str, Tensor]] | None

    def __init__(
        self, encoded: Encoded, name: str, again: Callable[[], dict[str, Tensor]], room: Room
    ) -> None:
        size = sum(value.nbytes for value in encoded.features.values())
        vars(self).update(
            _ids=array("i", encoded.input_ids),
            _labels=array("i", encoded.labels),
            _name=name,
            _features=encoded.features if room.take(size) else None,
            _again=again if encoded.features else None,
            picture_digest=encoded.picture_digest,
        )

    @property
    def input_ids(self) -> list[int]:
        """Token ids."""
        return self._ids.tolist()

    @property
    def labels(self) -> list[int]:
        """Labels."""
        return self._labels.tolist()

    @property
    def features(self) -> dict[str, Tensor]:
        """What else the model takes.

        Raises:
            DataError: the row's pictures are no longer what they were.
        """
        if self._features is not None:
            return self._features
        assert self._again is not None, "a row without pictures keeps its features"
        made = Encoded([], [], self._again())
        if made.picture_digest != self.picture_digest:
            raise DataError(
                asked=f"the pictures of row {self._name} once more",
                found="others than when the run began",
                do="leave the files of a run alone until it ends, and start it again",
            )
        return made.features


def stored_row(example: Example, encoder: ChatEncoder, room: Room) -> StoredRow:
    """Encode a training row.

    Raises:
        RowError: as for `ChatEncoder.encode`.
    """
    encoded = encoder.encode(example)
    # Not a lambda: processes that prepare batches may be given their rows as a pickle.
    return StoredRow(encoded, example.id, partial(encoder.encode_features, example), room)
