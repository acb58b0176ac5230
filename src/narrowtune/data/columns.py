"""What a row's columns are called, what all rows share, and what is left out, before it is parsed.

Owns: which column says what a row is, and what `columns` and `defaults` in the settings do to it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from narrowtune.core.data_settings import COLUMNS, PAIRS
from narrowtune.data.examples import Example, RowError

KINDS = ("messages", "conversations", *PAIRS)
"""What says which layout a row has."""

_BESIDE = {"system", "image", "images", "answers", "options", "group", "id"}
"""What a row of any layout may have."""

_PICTURE_LIKE = re.compile(
    r"(imgs?|images?|pics?|pictures?|photos?)(_?(path|file|filename|url|uri|bytes|base64|b64)s?)?",
    re.IGNORECASE,
)
"""Columns of other tools that hold pictures: unread, they would leave a row blind."""

_PICTURE_FILE = re.compile(r"\S.*\.(png|jpe?g|webp|bmp|gif|tiff?)", re.IGNORECASE)
"""What a text that names a picture looks like, whatever its column is called."""


def kind_of(row: Mapping[str, Any]) -> str:
    """Return the column that says what a row is.

    Raises:
        RowError: there is none, or there are several that may not say the same.
    """
    found = [key for key in KINDS if row.get(key) is not None]
    if not found:
        known = ", ".join(["messages", "conversations", *(f"{a}/{b}" for a, b in PAIRS.items())])
        cut = " (is the file separated by ;?)" if any(";" in str(key) for key in row) else ""
        raise RowError(
            f"no known columns; a row has one of {known}; this one has {listed(row)}{cut}; "
            "`columns` in the settings says which is which, `defaults` what all rows share"
        )
    if len(found) > 1 and not _is_repeated(row, *found):
        raise RowError(
            f"ambiguous: columns {' and '.join(found)} both say what the row is: leave out what is "
            f"not to be read (columns: {{{found[-1]}: null}})"
        )
    return found[0]


def _is_repeated(row: Mapping[str, Any], kind: str, other: str, *more: str) -> bool:
    """Whether a question that stands beside turns is their first user turn, and no more."""
    turns, asked = row[kind], row[other]
    if more or other not in PAIRS or row.get(PAIRS[other]) is not None:
        return False
    if not isinstance(turns, list) or not isinstance(asked, str):
        return False
    for turn in turns:
        if isinstance(turn, dict) and _speaker(turn) in ("user", "human"):
            said = turn.get("value") if turn.get("content") is None else turn["content"]
            return isinstance(said, str) and said.strip() == asked.strip()
    return False


def _speaker(turn: Mapping[str, Any]) -> Any:
    return turn.get("from") if turn.get("role") is None else turn["role"]


def listed(row: Mapping[str, Any]) -> str:
    """Return the names of a row's columns."""
    return ", ".join(map(str, row)) or "none"


def renamed(row: dict[str, Any], columns: Mapping[str, str | None]) -> dict[str, Any]:
    """Return a row with its columns called as they are here.

    Args:
        row: as it was read.
        columns: our name, and the row's; of a column that is left out its name, and None. What the
            row has under a name that is given to another column is not read.
    """
    if not columns:
        return row
    taken = {*columns, *columns.values()}
    rest = {key: value for key, value in row.items() if key not in taken}
    named = {name: column for name, column in columns.items() if column is not None}
    return rest | {name: row[column] for name, column in named.items() if column in row}


def filled(row: dict[str, Any], defaults: Mapping[str, str | list[str]]) -> dict[str, Any]:
    """Return a row with what all rows of its source have alike, where it has none of its own.

    Raises:
        RowError: the row is asked something else, or says in turns what it is.
    """
    missing = {name: value for name, value in defaults.items() if _is_empty(row.get(name))}
    if _opens_with_system(row):
        missing.pop("system", None)
    for name in missing.keys() & PAIRS.keys():
        others = [kind for kind in KINDS if not _is_empty(row.get(kind))]
        if others:
            raise RowError(
                f"defaults has {name}, and the row says by {', '.join(others)} what it is asked: "
                f"drop {name} from defaults" + ", or call it so there" * (others[0] in PAIRS)
            )
        if all(_is_empty(row.get(key)) for key in ("image", "images", "input", "system")):
            pictured = [key for key in ("image", "images") if key in row]
            if pictured:
                raise RowError(f"column {pictured[0]} is empty, and defaults asks about a picture")
            raise RowError(
                f"defaults asks it the same as every row, by {name}, and it has no picture and no "
                "input of its own: a text to be read goes beside an instruction (columns: {input: "
                "TEXT, output: ANSWER}, defaults: {instruction: …})"
            )
    if "input" in missing and _is_empty((row | missing).get("instruction")):
        raise RowError("defaults has input, which is read beside instruction alone: drop it there")
    is_asked = bool(missing.keys() & PAIRS.keys())
    own = {key: row[key] for key in row if not (is_asked and key in KINDS)}  # those are empty
    return own | missing


def _is_empty(value: Any) -> bool:
    """Whether a column's value says nothing: none, blank text, or an empty list."""
    return value is None or value == [] or (isinstance(value, str) and not value.strip())


def _opens_with_system(row: dict[str, Any]) -> bool:
    """Whether the turns of a row begin with a system turn."""
    for kind in ("messages", "conversations", "prompt"):
        turns = row.get(kind)
        first = turns[0] if isinstance(turns, list) and turns else None
        if isinstance(first, dict):
            return "system" in (first.get("role"), first.get("from"))
    return False


def check_named(row: dict[str, Any], columns: Mapping[str, str | None]) -> None:
    """See that what columns are called is read from a row of this layout.

    Raises:
        RowError: an answer beside messages, say.
    """
    if not columns:
        return
    kind = kind_of(row)
    parts = {kind, PAIRS.get(kind), "input" if kind == "instruction" else None}
    unread = [name for name in columns if name in COLUMNS - _BESIDE - parts and name in row]
    if unread:
        named = ", ".join(f"{name}: {columns[name]}" for name in unread)
        raise RowError(
            f"columns has {named}, which is not read beside {columns.get(kind, kind)}: a row with "
            f"{kind} has {', '.join(sorted(filter(None, parts)))} and what any row may have"
        )


def untaught(columns: Mapping[str, str | None]) -> set[str]:
    """Return the rows' columns that name rows or what they share, and are nothing to learn."""
    taken = set(columns.values())
    own = {name for name in ("id", "group") if name not in columns and name not in taken}
    return own | {column for name in ("id", "group") if (column := columns.get(name)) is not None}


def picture_columns(row: dict[str, Any], example: Example) -> set[str]:
    """Return the columns that may hold pictures of a row that was read without any.

    By their names, or because they hold pictures' bytes or name files of pictures.
    """
    if example.images:
        return set()
    return {
        key
        for key in row.keys() - COLUMNS
        if row[key] and isinstance(row[key], (str, bytes, dict, list))
        if _PICTURE_LIKE.fullmatch(key) or _looks_like_picture(row[key])
    }


def _looks_like_picture(value: Any) -> bool:
    """Whether a value, or one in a list of them, names a picture or holds it as `datasets` does."""
    for item in value if isinstance(value, list) else [value]:
        name = item
        if isinstance(item, dict):
            name = item.get("path")
            if name is None and isinstance(item.get("bytes"), bytes):
                return True
        if isinstance(name, str) and _PICTURE_FILE.fullmatch(name.strip()):
            return True
    return False
