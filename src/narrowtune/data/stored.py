"""Training rows in little memory: a hundred thousand rows, or pictures of many gigabytes.

Owns: `StoredRows`, which keeps tokens as packed numbers and prepares pictures again when they are
asked for, where there is no room to keep them.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, overload

from torch import Tensor

from narrowtune.core.errors import DataError
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.collate import Encoded
from narrowtune.data.examples import Example, RowError
from narrowtune.data.room import Room
from narrowtune.data.spilled import Spilled, pick


class _Tokens(NamedTuple):
    ids: array[int]
    labels: array[int]
    picture_digest: str


class StoredRows(Sequence[Encoded]):
    """The encoded rows of some examples, each made when it is asked for.

    Args:
        examples: rows.
        encoder: the chat template.
        room: what the pictures of rows may hold in memory together.
        refuse: gets each row that can't be encoded, and it is left out; unless given, it is an
            error.

    Attributes:
        examples: those that could be encoded.

    Raises:
        RowError: as for `ChatEncoder.encode`.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        encoder: ChatEncoder,
        room: Room,
        refuse: Callable[[Example, RowError], None] | None = None,
    ) -> None:
        self._encoder, self._room = encoder, room
        self._features: dict[int, dict[str, Tensor]] = {}
        used = array("q")
        self._tokens = Spilled(self._encode(examples, refuse, used))
        self.examples = pick(examples, used)

    def _encode(
        self,
        examples: Sequence[Example],
        refuse: Callable[[Example, RowError], None] | None,
        used: array[int],
    ) -> Iterator[_Tokens]:
        for number, example in enumerate(examples):
            try:
                row = self._encoder.encode(example)
            except RowError as error:
                if refuse is None:
                    raise
                refuse(example, error)
                continue
            size = sum(value.nbytes for value in row.features.values())
            if row.features and self._room.take(size):
                self._features[len(used)] = row.features
            used.append(number)
            yield _Tokens(array("i", row.input_ids), array("i", row.labels), row.picture_digest)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._tokens)

    def __iter__(self) -> Iterator[Encoded]:
        """Yield every row."""
        for number, tokens in enumerate(self._tokens):
            yield _Row(self, number, tokens)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...

    @overload
    def __getitem__(self, index: slice) -> list[Encoded]: ...

    def __getitem__(self, index: int | slice) -> Any:
        """Return one row, or a list of those of a slice."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        return _Row(self, number, self._tokens[number])

    def features(self, number: int, digest: str) -> dict[str, Tensor]:
        """Return what the model takes of row `number` beside its tokens.

        Raises:
            DataError: the row's pictures are not those of `digest` any more.
        """
        if number in self._features:
            return self._features[number]
        example = self.examples[number]
        made = Encoded([], [], self._encoder.encode_features(example))
        if made.picture_digest != digest:
            raise DataError(
                asked=f"the pictures of row {example.id} once more",
                found="others than when the run began",
                do="leave the files of a run alone until it ends, and start it again",
            )
        return made.features


class _Row(Encoded):
    """One of `rows`, whose pictures are prepared when they are asked for."""

    _rows: StoredRows
    _number: int

    def __init__(self, rows: StoredRows, number: int, tokens: _Tokens) -> None:
        vars(self).update(
            input_ids=tokens.ids.tolist(),
            labels=tokens.labels.tolist(),
            picture_digest=tokens.picture_digest,
            _rows=rows,
            _number=number,
        )

    @property
    def features(self) -> dict[str, Tensor]:
        """What else the model takes; errors are those of `StoredRows.features`."""
        if not self.picture_digest:
            return {}
        return self._rows.features(self._number, self.picture_digest)
