"""Answers that are JSON: whether two say the same, and how many of their fields do.

Owns: reading JSON out of an answer, and comparing values rather than how they are written.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

_FENCED = re.compile(r"```(?:json)?\s*\n(.*?)```", re.DOTALL | re.IGNORECASE)


def read_json(text: str) -> Any:
    """Return the object or list that the whole of `text` is, or None.

    Numbers are decimals, so that 5.0 is 5 and 0.1 is no other float. A key that is given twice, and
    the names NaN and Infinity, which JSON does not have, make it none.
    """
    try:
        found = json.loads(
            text,
            parse_int=Decimal,
            parse_float=Decimal,
            parse_constant=_refuse,
            object_pairs_hook=_once_each,
        )
    except (ValueError, ArithmeticError, RecursionError):
        return None
    return found if isinstance(found, dict | list) else None


def find_json(text: str) -> Any:
    """Return the one object or list that stands in a longer answer, or None.

    What is fenced as code comes first; else what goes from the first bracket to its last.
    """
    fenced = [value for block in _FENCED.findall(text) if (value := read_json(block)) is not None]
    if fenced:
        return fenced[0] if len(fenced) == 1 else None
    for opening, closing in ("{}", "[]"):
        start, end = text.find(opening), text.rfind(closing)
        if 0 <= start < end and (value := read_json(text[start : end + 1])) is not None:
            return value
    return None


def same_fields(said: Any, wanted: Any) -> float:
    """Return the share of fields that two values have in common, 0 to 1.

    Fields are what no list or object is, each with the keys that lead to it; the share is twice
    those in common over all of both (F1). Two values of which this is 1 are the same.
    """
    first, second = Counter(_fields(said)), Counter(_fields(wanted))
    return 2 * (first & second).total() / (first.total() + second.total())


def _fields(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield each field with its path and kind. What is empty is a field."""
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from _fields(part, (*path, _composed(key)))
    elif isinstance(value, list) and value:
        for place, part in enumerate(value):
            yield from _fields(part, (*path, place))
    elif isinstance(value, dict | list):
        yield (*path, type(value).__name__)
    else:
        # True equals 1 in Python.
        yield (*path, type(value).__name__, _composed(value) if isinstance(value, str) else value)


def _composed(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def _refuse(name: str) -> None:
    raise ValueError(name)


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is given twice")
    return found
