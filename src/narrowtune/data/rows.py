"""A source of rows becomes examples, and every row that can't be used is named.

Owns: `read_rows` and rows_refused.jsonl. How rows are laid out is in formats.py, where they come
from in sources.py.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from narrowtune.core.config import DataSettings
from narrowtune.core.data_settings import COLUMNS, PAIRS
from narrowtune.core.errors import DataError
from narrowtune.core.mistakes import did_you_mean
from narrowtune.data.columns import check_named, filled, picture_columns, renamed, untaught
from narrowtune.data.contexts import Contexts
from narrowtune.data.examples import (
    Example,
    Image,
    Message,
    RefusedRow,
    RowError,
    Rows,
    RowsRefusedError,
    Text,
)
from narrowtune.data.formats import Reading, parse_row
from narrowtune.data.images import check_image
from narrowtune.data.sources import read_source
from narrowtune.data.spilled import Spilled
from narrowtune.data.splits import draw_examples

__all__ = [
    "Example",
    "Image",
    "Message",
    "RefusedRow",
    "RowError",
    "Rows",
    "RowsRefusedError",
    "Text",
    "read_rows",
    "write_refused",
]


logger = logging.getLogger(__name__)

_LISTED = 12  # columns that are named


def read_rows(settings: DataSettings, *, prompts_only: bool = False, seed: int = 42) -> Rows:
    """Read every row of a source, check it with its pictures, and draw `settings.limit` of them.

    Args:
        settings: where the rows are and how many may be refused.
        prompts_only: accept rows without an answer, and leave answers out.
        seed: of the draw when there is a limit.

    Raises:
        DataError: the source can't be read or has no rows.
        RowsRefusedError: more rows than `settings.max_refused` can't be used; it lists them all.
    """
    root = _image_root(settings)
    reading = Reading(
        stem=Path(settings.path).stem,
        root=root,
        prompts_only=prompts_only,
        needs_options=settings.mode == "options" and not prompts_only,
    )
    columns: set[str] = set()
    pictures: set[str] = set()
    unreadable: list[RefusedRow] = []
    unusable: list[RefusedRow] = []
    ids = _Ids()
    shared: Counter[str] = Counter()
    readable = _readable(settings, reading, unreadable, ids, columns, pictures, shared)
    # Taken as they are read: many rows, or the pictures in them, would fill the memory.
    parsed: Iterable[Example] = readable
    notes = []
    if settings.limit is not None:
        parsed = drawn = draw_examples(readable, settings.limit, seed)
        if len(drawn) < len(ids):
            notes.append(f"{len(drawn)} of {len(ids)} rows, drawn with seed {seed}.")
    digest = hashlib.sha256()
    contexts = Contexts()
    usable = contexts.seen(_with_pictures(parsed, settings.path, unusable))
    examples: Sequence[Example] = Spilled(_digested(usable, digest))
    refused = [*unreadable, *unusable]
    num_rows = len(ids) + len(unreadable)
    _check_columns(settings, columns)
    if len(refused) > settings.max_refused:
        raise RowsRefusedError(refused, settings.max_refused, num_rows)
    if not examples:
        raise DataError(
            asked=f"rows from {settings.path}",
            found=f"{num_rows} rows, none of which can be used",
            do="check the file; docs/data.md shows what rows look like",
        )
    if refused:
        notes.append(f"{len(refused)} of {num_rows} rows could not be used (rows_refused.jsonl).")
    examples, told = contexts.told(examples)
    notes += [*ids.notes(), *_shared_notes(settings, shared, len(ids)), *told]
    # A column is read by the name that it is given, or by its own where no other has that.
    own = COLUMNS - settings.columns.keys()
    unread = columns - own - set(settings.columns.values())
    if unread:
        more = f" and {len(unread) - _LISTED} more" if len(unread) > _LISTED else ""
        named = ", ".join(sorted(unread)[:_LISTED])
        notes.append(f"Columns that are not read: {named}{more}.")
    return Rows(examples, refused, digest.hexdigest(), notes, num_rows, sorted(pictures))


def _check_columns(settings: DataSettings, found: set[str]) -> None:
    """See that every column that the settings name is there, in some row at least."""
    own = {name: name if column is None else column for name, column in settings.columns.items()}
    missing = {name: column for name, column in own.items() if column not in found}
    if missing and found:  # else no row could be read at all, and each says why
        named = ", ".join(f"{name}: {settings.columns[name] or 'null'}" for name in missing)
        raise DataError(
            asked=f"the columns {named} of {settings.path}",
            found=f"no row that has them; there are {', '.join(sorted(found))}"
            + "".join(did_you_mean(column, found) for column in missing.values()),
            do="correct `columns`: our name first, then the rows' own, or of a column that is left "
            "out its name, then null",
        )


def _shared_notes(settings: DataSettings, shared: Counter[str], num_rows: int) -> list[str]:
    """Say of how many rows what is by default is so, where it is not so of all.

    That nobody is asked what all are to be asked is a warning: other rows with the same defaults
    (those of `test_path`, say) may need it.
    """
    for name in settings.defaults:
        if name in PAIRS and not shared[name]:
            logger.warning(
                "No row of %s is asked the default %s: all %d have one of their own. A text that "
                "all are asked the same about is input beside instruction (columns: {input: TEXT, "
                "output: ANSWER}, defaults: {instruction: …}).",
                settings.path,
                name,
                num_rows,
            )
    return [
        f"The default {name} stands in {shared[name]} of the {num_rows} rows that can be read."
        for name in settings.defaults
        if shared[name] < num_rows
    ]


class _Ids:
    """Sees that ids differ: answers before and after are paired by them, and rows left out.

    Of rows with one id (a picture's, say) the first keeps it, and the others get a number: what
    they are called then depends on their order, and on no row with another id.
    """

    def __init__(self) -> None:
        self._last: dict[str, int] = {}
        self._num_renamed, self._first = 0, ""

    def __len__(self) -> int:
        """Return the number of ids so far."""
        return len(self._last)

    def unlike(self, id: str) -> str:
        """Return an id that no row before has: `id`, or `id#2` and so on."""
        number, name = self._last.get(id, 0), id
        while name in self._last:
            number += 1
            name = f"{id}#{number}"
        self._last |= {name: 1, id: number or 1}
        if name != id:
            self._num_renamed += 1
            self._first = self._first or name
        return name

    def notes(self) -> list[str]:
        """Say how many rows are not called what they call themselves."""
        if not self._num_renamed:
            return []
        return [
            f"{self._num_renamed} rows have the id of a row before them, and are called by it and "
            f"a number, such as {self._first}."
        ]


def _readable(
    settings: DataSettings,
    reading: Reading,
    refused: list[RefusedRow],
    ids: _Ids,
    columns: set[str],
    pictures: set[str],
    shared: Counter[str],
) -> Iterator[Example]:
    """Yield the rows that can be used; refuse the others.

    Args:
        refused: gets those that can't.
        ids: sees that these differ.
        columns: gets the columns of all rows.
        pictures: gets those that nothing is read from and that may hold pictures.
        shared: gets how many rows have each of `settings.defaults`.
    """
    for raw in read_source(settings.path, settings.split, untaught(settings.columns)):
        try:
            if raw.values is None:
                raise RowError(raw.reason)
            columns.update(map(str, raw.values))
            own = renamed(raw.values, settings.columns)
            values = filled(own, settings.defaults)
            example = parse_row(values, raw.number, reading)
            check_named(values, settings.columns)
        except RowError as error:
            refused.append(error.refused(settings.path, raw.number))
            continue
        shared.update(name for name in settings.defaults if values.get(name) != own.get(name))
        pictures |= picture_columns(values, example)
        name = ids.unlike(example.id)
        yield example if name == example.id else replace(example, id=name)


def write_refused(path: Path, rows: Iterable[RefusedRow]) -> None:
    """Write rows_refused.jsonl: one `{"path", "row", "reason"}` per line."""
    lines = [json.dumps(asdict(row), ensure_ascii=False) for row in rows]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(
        "".join(f"{line}\n" for line in lines), encoding="utf-8", errors="replace"
    )


def _image_root(settings: DataSettings) -> Path | None:
    """The folder for pictures: as given, else the file's own or the saved folder itself."""
    if settings.image_root is not None:
        root = Path(settings.image_root)
        if not root.is_dir():
            raise DataError(
                asked=f"pictures below {root}",
                found="no such folder",
                do="correct image_root",
            )
        return root
    path = Path(settings.path)
    if path.is_dir():
        return path
    return path.parent if path.is_file() else None


def _with_pictures(
    examples: Iterable[Example], path: str, refused: list[RefusedRow]
) -> Iterator[Example]:
    """Check each picture once, and group rows by picture where they name no group."""
    check = _PictureCheck()
    for example in examples:
        if not example.images:
            yield example
            continue
        try:
            messages = tuple(
                replace(
                    message,
                    content=tuple(check(p) if isinstance(p, Image) else p for p in message.content),
                )
                for message in example.messages
            )
        except RowError as error:
            refused.append(error.refused(path, example.row))
            continue
        example = replace(example, messages=messages)
        if example.group is None:
            example = replace(example, group=f"picture {example.image_hashes[0][:16]}")
        yield example


class _PictureCheck:
    """Decodes each picture once, whichever rows it stands in; the bytes of none are held."""

    def __init__(self) -> None:
        self._files: dict[Image, Image] = {}
        self._embedded: set[str] = set()

    def __call__(self, image: Image) -> Image:
        if image.data is None:
            if image not in self._files:
                self._files[image] = check_image(image)
            return self._files[image]
        name = hashlib.sha256(image.data).hexdigest()
        if name not in self._embedded:
            check_image(image)
            self._embedded.add(name)
        return replace(image, sha256=name)


def _content(message: Message) -> list[Any]:
    """Return what decides what a message is, and that it is not learned, where it is not."""
    pieces = [p.text if isinstance(p, Text) else [p.sha256] for p in message.content]
    return [message.role, pieces, *([] if message.is_learned else [False])]


def _digested(examples: Iterable[Example], digest: hashlib._Hash) -> Iterator[Example]:
    """Pass rows on, their content into `digest`."""
    for example in examples:
        content = [
            example.id,
            [_content(message) for message in example.messages],
            example.answers,
            example.options,
            example.group,
        ]
        digest.update(json.dumps(content).encode() + b"\n")
        yield example
