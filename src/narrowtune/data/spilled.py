"""Values beside memory: a hundred thousand rows that are read once in a while.

Owns: `Spilled`, which keeps them packed, on disk where they are many; `pick` and `Joined`, parts
and sums of sequences that hold no value themselves.
"""

from __future__ import annotations

import os
import pickle
import tempfile
import weakref
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Generic, TypeVar, cast, overload

from narrowtune.core.errors import DataError

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")

PIECE_BYTES = 4 * 2**20
"""Of packed values in memory: what there is more of goes to a file of the system's temporary folder
(TMPDIR), in pieces of this size."""


class _Packed:
    """Bytes that are written once, in memory while they are few.

    Attributes:
        path: of the file, readable by this user only; None where all is in memory. The process
            that made it removes it.
    """

    def __init__(self) -> None:
        self.path: str | None = None
        self._held = bytearray()
        self._num_written = 0

    def append(self, piece: bytes) -> int:
        """Add a piece and return where it ends."""
        self._held += piece
        if len(self._held) >= PIECE_BYTES:
            self.flush()
        return self._num_written + len(self._held)

    def flush(self) -> None:
        """Write what is held to the file."""
        try:
            if self.path is None:
                descriptor, self.path = tempfile.mkstemp(prefix="narrowtune-rows-")
                os.close(descriptor)
                weakref.finalize(self, _remove, self.path, os.getpid())
            with Path(self.path).open("ab") as file:
                file.write(self._held)
        except OSError as error:
            raise DataError(
                asked=f"room beside memory, in {self._folder()}",
                found=error.strerror or str(error),
                do="make room there, or set TMPDIR to a folder that has it",
            ) from error
        self._num_written += len(self._held)
        self._held = bytearray()

    def _folder(self) -> str:
        return str(Path(self.path).parent) if self.path else "the folder for temporary files"

    def finish(self) -> None:
        """Leave all in memory, or all in the file."""
        if self.path is not None and self._held:
            self.flush()

    def pieces(self, places: Iterable[tuple[int, int]]) -> Iterator[bytes]:
        """Yield what stands from the first to the second of each pair of places."""
        if self.path is None:
            for start, end in places:
                yield bytes(self._held[start:end])
            return
        # Opened anew for each reading: processes that prepare batches don't share a position.
        try:
            with Path(self.path).open("rb") as file:
                for start, end in places:
                    file.seek(start)
                    piece = file.read(end - start)
                    if len(piece) < end - start:
                        raise OSError("the file is shorter than it was")
                    yield piece
        except OSError as error:
            raise DataError(
                asked=f"rows that were put beside memory, in {self.path}",
                found=error.strerror or str(error),
                do="leave that file alone while narrowtune runs; TMPDIR names another folder",
            ) from error


def _remove(path: str, owner: int) -> None:
    if os.getpid() == owner:
        Path(path).unlink(missing_ok=True)


class Spilled(Sequence[T_co], Generic[T_co]):
    """Values as they were given, made anew whenever they are asked for.

    Args:
        values: each can be pickled; they are taken one by one.

    Raises:
        DataError: there is no room for the file.
    """

    def __init__(self, values: Iterable[T_co]) -> None:
        self._packed = _Packed()
        self._starts, self._ends = array("q"), array("q")
        start = 0
        for value in values:
            end = self._packed.append(pickle.dumps(value, pickle.HIGHEST_PROTOCOL))
            self._starts.append(start)
            self._ends.append(end)
            start = end
        self._packed.finish()

    def __len__(self) -> int:
        """Return the number of values."""
        return len(self._starts)

    def __iter__(self) -> Iterator[T_co]:
        """Yield every value; the file is opened once."""
        places = zip(self._starts, self._ends, strict=True)
        for piece in self._packed.pieces(places):
            yield cast(T_co, pickle.loads(piece))

    @overload
    def __getitem__(self, index: int) -> T_co: ...

    @overload
    def __getitem__(self, index: slice) -> Spilled[T_co]: ...

    def __getitem__(self, index: int | slice) -> T_co | Spilled[T_co]:
        """Return one value, or those of a slice, which share the file."""
        if isinstance(index, slice):
            return self._view(self._starts[index], self._ends[index])
        (piece,) = self._packed.pieces([(self._starts[index], self._ends[index])])
        return cast(T_co, pickle.loads(piece))

    def pick(self, numbers: Iterable[int]) -> Spilled[T_co]:
        """Return the values of these numbers in this order; they share the file."""
        wanted = array("q", numbers)
        starts = array("q", (self._starts[number] for number in wanted))
        return self._view(starts, array("q", (self._ends[number] for number in wanted)))

    def _view(self, starts: array[int], ends: array[int]) -> Spilled[T_co]:
        view = object.__new__(Spilled)
        view._packed, view._starts, view._ends = self._packed, starts, ends
        return cast("Spilled[T_co]", view)


def pick(values: Sequence[T], numbers: Iterable[int]) -> Sequence[T]:
    """Return the values of these numbers in this order; no value is held for it."""
    if isinstance(values, Spilled):
        return values.pick(numbers)
    return [values[number] for number in numbers]


class Joined(Sequence[T_co], Generic[T_co]):
    """Sequences one after the other.

    Args:
        parts: they are asked for their values whenever this one is.
    """

    def __init__(self, parts: Iterable[Sequence[T_co]]) -> None:
        self._parts = [part for part in parts if len(part)]
        self._ends = list(accumulate(map(len, self._parts)))

    def __len__(self) -> int:
        """Return the number of values."""
        return self._ends[-1] if self._ends else 0

    def __iter__(self) -> Iterator[T_co]:
        """Yield every value, part by part."""
        for part in self._parts:
            yield from part

    @overload
    def __getitem__(self, index: int) -> T_co: ...

    @overload
    def __getitem__(self, index: slice) -> list[T_co]: ...

    def __getitem__(self, index: int | slice) -> Any:
        """Return one value, or a list of those of a slice."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        part = bisect_right(self._ends, number)
        return self._parts[part][number - (self._ends[part - 1] if part else 0)]
