"""What is wrong with settings, in words of our own: the key, what was given, what is allowed.

Owns: the wording of types and bounds, for errors and for docs/configuration.md alike.
"""

from __future__ import annotations

import difflib
import inspect
import types
import typing
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from narrowtune.core.aliases import ALIASES

_TYPES = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
_SECTION = "a section of keys"
_SHOWN = 60  # characters of a value


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean …?)" where something known is much like `name`, else nothing."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1) or [each for each in names if name in each]
    return f" (did you mean {close[0]}?)" if close else ""


def describe_mistakes(error: ValidationError, kind: type[BaseModel]) -> list[str]:
    """Return what pydantic found wrong with the values of a `kind`.

    A line each; then one for each section in which keys were not known, with those that are.
    """
    mistakes = error.errors()
    sections = dict.fromkeys(
        item["loc"][:-1] for item in mistakes if item["type"] == "extra_forbidden"
    )
    known = [(section, _known(kind, section)) for section in sections]
    return [
        *(_line(item, kind) for item in mistakes),
        *(f"{_named(section)} {', '.join(names)}" for section, names in known if names),
    ]


def allowed_values(field: FieldInfo) -> str:
    """Return what a setting takes, such as "a whole number from 1, or nothing"."""
    return _allowed(field.annotation, _bounds(field))


def _line(item: ErrorDetails, kind: type[BaseModel]) -> str:
    if item["type"] == "invalid_key":
        return _key_is_no_text(item, item["loc"][:-1])
    if item["loc"][-1:] == ("[key]",):  # in a section of any keys
        return _key_is_no_text(item, item["loc"][:-2])
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"{key}: {_unknown(item, kind)}"
    if item["type"] == "value_error":
        said = str(item["ctx"]["error"])
        return f"{key}: {said}" if key else said
    field, annotation = _find(kind, item["loc"])
    allowed = allowed_values(field) if field is not None else _allowed(annotation)
    if item["type"] == "missing":
        return f"{key}: missing; it takes {allowed}"
    given = item["input"]
    named = typing.get_origin(annotation) is typing.Literal and isinstance(given, str)
    hint = did_you_mean(given, typing.get_args(annotation)) if named else ""
    return f"{key}: {_shown(given)} is given{hint}; it takes {allowed}"


def _key_is_no_text(item: ErrorDetails, section: tuple[int | str, ...]) -> str:
    given = item["input"]
    key = ".".join([*map(str, section), _shown(given)])
    why = " (YAML reads yes, no, on and off as true or false)" if isinstance(given, bool) else ""
    return f"{key}: a key must be text{why}; put quotes round it"


def _unknown(item: ErrorDetails, kind: type[BaseModel]) -> str:
    name = str(item["loc"][-1])
    # A key in the wrong section is as common as one that is misspelt.
    places = [".".join((*path, name)) for path, each in _sections(kind) if name in each]
    if places:
        return f"no such key (did you mean {' or '.join(places)}?)"
    if name in ALIASES:
        return f"no such key; here that is {ALIASES[name]}"
    return f"no such key{did_you_mean(name, _known(kind, item['loc'][:-1]))}"


def _known(kind: type[BaseModel], loc: Iterable[int | str]) -> list[str]:
    _, annotation = _find(kind, loc)
    section = _section(annotation)
    return list(section.model_fields) if section is not None else []


def _named(section: tuple[int | str, ...]) -> str:
    return f"keys of {'.'.join(map(str, section))} are" if section else "keys are"


def _find(kind: type[BaseModel], loc: Iterable[int | str]) -> tuple[FieldInfo | None, Any]:
    """Return the field that `loc` leads to, unless that is an item of a list, and its type."""
    field: FieldInfo | None = None
    annotation: Any = kind
    for part in loc:
        section = _section(annotation)
        if isinstance(part, int):
            field, annotation = None, next(iter(typing.get_args(annotation)), Any)
        elif typing.get_origin(annotation) is dict:
            field, annotation = None, typing.get_args(annotation)[1]
        elif section is not None and part in section.model_fields:
            field = section.model_fields[part]
            annotation = field.annotation
        else:
            return None, Any
    return field, annotation


def _section(annotation: Any) -> type[BaseModel] | None:
    """Return the settings class that a type is, or holds beside nothing."""
    for each in (annotation, *typing.get_args(annotation)):
        if inspect.isclass(each) and issubclass(each, BaseModel):
            return each
    return None


def _sections(kind: type[BaseModel]) -> list[tuple[tuple[str, ...], list[str]]]:
    """Return the keys of `kind` and of its sections, with the keys that lead there."""
    found: list[tuple[tuple[str, ...], list[str]]] = [((), list(kind.model_fields))]
    for name, field in kind.model_fields.items():
        section = _section(field.annotation)
        if section is not None and typing.get_origin(field.annotation) is not list:
            found += [((name, *path), keys) for path, keys in _sections(section)]
    return found


def _allowed(annotation: Any, bounds: str = "") -> str:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _allowed(inner[0], bounds)
    if origin is typing.Literal:
        return " / ".join(str(value) for value in inner)
    if origin in (typing.Union, types.UnionType):
        kinds = [_allowed(each, bounds) for each in inner if each is not type(None)]
        if kinds == [_SECTION]:  # what is off unless given, with a default for every key
            kinds = ["true", _SECTION]
        return " or ".join([*kinds, "nothing"])
    if origin is list:
        return f"a list, each {_allowed(inner[0])}"
    if origin is dict:
        return "keys and values"
    section = _section(annotation)
    if section is not None:
        return "a path or a section of keys" if "path" in section.model_fields else _SECTION
    return _TYPES.get(annotation, "any value") + bounds


def _bounds(field: FieldInfo) -> str:
    words = {"gt": "above", "ge": "from", "lt": "below", "le": "up to"}
    found = [
        f" {word} {getattr(limit, name):g}"
        for name, word in words.items()
        for limit in field.metadata
        if getattr(limit, name, None) is not None
    ]
    if any(getattr(limit, "min_length", None) for limit in field.metadata):
        found.append(" that is not empty")
    return " and".join(found)


def _shown(value: Any) -> str:
    words = {True: "true", False: "false", None: "nothing"}
    shown = words[value] if value is None or isinstance(value, bool) else repr(value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
