"""What a row is once it has been read, and the errors that name a row.

Owns: the values `Text`, `Image`, `Message`, `Example`, `RefusedRow`, `Rows`, and `RowError`.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

from narrowtune.core.errors import DataError
from narrowtune.core.provenance import sha256_file

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Text:
    """A piece of text in a message."""

    text: str


@dataclass(frozen=True)
class Image:
    """A picture in a message: a file below `root`, or bytes.

    Attributes:
        path: as the row has it, or resolved; exactly one of `path` and `data` is given.
        data: the encoded picture (PNG, JPEG, …).
        root: folder that `path` must stay under.
        sha256: of the encoded bytes, once they have been read.
    """

    path: Path | None = None
    data: bytes | None = None
    root: Path | None = None
    sha256: str = ""

    def __post_init__(self) -> None:
        """Exactly one of `path` and `data` is given."""
        assert (self.path is None) != (self.data is None), "a picture is a path or bytes"

    @property
    def name(self) -> str | None:
        """The path below `root`, for people; None for bytes."""
        if self.path is None:
            return None
        if self.root is not None and self.path.is_relative_to(self.root):
            return self.path.relative_to(self.root).as_posix()
        return self.path.as_posix()


@dataclass(frozen=True)
class Message:
    """One turn.

    Attributes:
        role: one of `ROLES`.
        content: text and pictures, in turn as rows have them.
        is_learned: of an assistant's turn whether it is trained on; it may stand there only for
            what comes after it.
    """

    role: str
    content: tuple[Text | Image, ...]
    is_learned: bool = True

    @property
    def text(self) -> str:
        """All text of the message, pieces joined by a line break."""
        return "\n".join(part.text for part in self.content if isinstance(part, Text))

    @property
    def images(self) -> tuple[Image, ...]:
        """The message's pictures in order."""
        return tuple(part for part in self.content if isinstance(part, Image))


@dataclass(frozen=True)
class Example:
    """One row that can be used.

    Attributes:
        id: the row's own id, else "<file stem>:<row number>".
        messages: ends with the assistant's answer, unless only prompts were asked for.
        answers: accepted answers; the first is the one trained on. Empty for prompts.
        options: what an answer is chosen from, if the row lists it.
        group: entity or picture that rows share; None if the row stands alone.
        row: 1-based number in the file.
        is_told_by_system: whether its system turn holds what it is about, such as a document, so
            that rows of its source which ask the same are told apart by it (contexts.py).
    """

    id: str
    messages: tuple[Message, ...]
    answers: tuple[str, ...]
    options: tuple[str, ...] = ()
    group: str | None = None
    row: int = 0
    is_told_by_system: bool = False

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The messages without the final assistant turn."""
        if self.messages and self.messages[-1].role == "assistant":
            return self.messages[:-1]
        return self.messages

    @property
    def images(self) -> tuple[Image, ...]:
        """All pictures of the row in order."""
        return tuple(image for message in self.messages for image in message.images)

    @cached_property
    def asked_hash(self) -> str:
        """SHA-256 of the prompt's text as `normalised` has it, whatever its system turn says.

        Pictures' hashes are mixed in: "What is this?" about two pictures is two prompts.
        """
        return _hash(normalised(self.prompt), *self.image_hashes)

    @property
    def system(self) -> str:
        """The text of its system turn; empty without one."""
        opens = bool(self.messages) and self.messages[0].role == "system"
        return self.messages[0].text if opens else ""

    @cached_property
    def system_hash(self) -> str:
        """SHA-256 of its system turn's text, as `folded_hash` has it."""
        return folded_hash(self.system)

    @property
    def text_hash(self) -> str:
        """Which prompt it is: what is asked, and the system turn where that tells rows apart."""
        if not self.is_told_by_system:
            return self.asked_hash
        return _hash(self.asked_hash, "system", self.system_hash)

    @property
    def cluster(self) -> str:
        """What the row shares with others, by name: its group, else its prompt.

        A question that is asked twice, in one set or in two, is one piece of evidence.
        """
        return self.group if self.group is not None else f"prompt {self.text_hash[:16]}"

    @cached_property
    def image_hashes(self) -> tuple[str, ...]:
        """SHA-256 of each picture's encoded bytes, in order."""
        return tuple(image.sha256 or _sha256(image) for image in self.images)


def normalised(prompt: Sequence[Message]) -> str:
    """Return a prompt's text without system turns after NFKC, case folding and one space."""
    return _folded("\n".join(message.text for message in prompt if message.role != "system"))


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


@lru_cache(maxsize=8)  # all rows of a source may have one system turn, and a long one
def folded_hash(text: str) -> str:
    """Return the SHA-256 of a text as `normalised` has it; nothing of an empty one."""
    return _hash(_folded(text)) if text else ""


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _sha256(image: Image) -> str:
    if image.data is not None:
        return hashlib.sha256(image.data).hexdigest()
    assert image.path is not None
    return sha256_file((image.root or Path()) / image.path)


@dataclass(frozen=True)
class RefusedRow:
    """A row that can't be used: where it is and why."""

    path: str
    row: int
    reason: str


@dataclass(frozen=True)
class Rows:
    """What one source held.

    Attributes:
        examples: usable rows in the order of the source, beside memory where they are many.
        refused: the others.
        sha256: of the usable rows' content as read, pictures included.
        notes: what a reader of the report should know.
        num_rows: rows in the source, blank lines not counted.
        picture_columns: columns that were not read and may hold pictures, of rows without any.
    """

    examples: Sequence[Example]
    refused: list[RefusedRow]
    sha256: str
    notes: list[str]
    num_rows: int
    picture_columns: list[str] = field(default_factory=list)


class RowError(DataError):
    """One row can't be used. Whoever goes through rows turns it into a `RefusedRow`.

    Args:
        reason: what is wrong with it, one clause.
        id: the row's id, where it is known.
        row: its 1-based number, where it is known.
    """

    def __init__(self, reason: str, *, id: str = "", row: int = 0) -> None:
        self.reason, self.id, self.row = reason, id, row
        name = f"row {row}" if row else "a row"
        super().__init__(
            asked=f"{name} ({id})" if id else name,
            found=reason,
            do="correct the row, take it out, or allow refused rows (max_refused)",
        )

    def refused(self, path: str, row: int = 0) -> RefusedRow:
        """Return this as an entry of rows_refused.jsonl."""
        return RefusedRow(path, row or self.row, self.reason)


_REASONS, _ROWS = 5, 3  # that are named
_OWN_VALUES = re.compile(r"'[^']*'|\"[^\"]*\"|\d+")  # of a row, in the reason why it is refused


def _by_reason(refused: Sequence[RefusedRow]) -> str:
    """Return a line for each kind of reason, those of most rows first, with its first rows."""
    kinds: dict[str, list[RefusedRow]] = {}
    for item in refused:
        kinds.setdefault(_OWN_VALUES.sub("", item.reason), []).append(item)
    most = sorted(kinds.values(), key=lambda rows: -len(rows))
    lines = []
    for rows in most[:_REASONS]:
        named = ", ".join(str(item.row) for item in rows[:_ROWS])
        more = f" and {len(rows) - _ROWS} more" if len(rows) > _ROWS else ""
        one = len({item.reason for item in rows}) == 1
        first = "" if one else f" (row {rows[0].row})"
        lines.append(f"\n  row{'s' * (len(rows) > 1)} {named}{more}: {rows[0].reason}{first}")
    left = sum(map(len, most[_REASONS:]))
    return "".join(lines) + (f"\n  and {left} more, for other reasons" if left else "")


class RowsRefusedError(DataError):
    """More rows were refused than is tolerated; `refused` holds all of them.

    Args:
        refused: these rows, all of one source.
        allowed: how many would be tolerated.
        num_rows: of the source.
        do: what helps, where more is known than that `max_refused` does.
    """

    def __init__(
        self, refused: list[RefusedRow], allowed: int, num_rows: int, do: str | None = None
    ) -> None:
        self.refused, self.num_rows = refused, num_rows
        path = refused[0].path
        super().__init__(
            asked=f"the rows of {path}, at most {allowed} of them unusable",
            found=f"{len(refused)} of {num_rows} rows can't be used:{_by_reason(refused)}",
            do=do
            or f"correct these rows, or set max_refused to {len(refused)} to go on without them",
        )
