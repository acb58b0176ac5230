"""Single settings laid over those of a file: `--set keep.0.metric=number` and the like."""

from __future__ import annotations

from typing import Any

from narrowtune.core.data_settings import with_share
from narrowtune.core.errors import UsageError

_SWITCHES = ("anchor", "dial")
"""Sections that true switches on, and false off."""

_LISTS = ("keep", "mix")
"""Lists that a path alone may stand for."""


def override(values: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of `values` in which each dotted key of `overrides` is replaced.

    An item of a list is named by its place, from 0.

    Raises:
        UsageError: a key has an empty part, or names a place that a list does not have.
    """
    result = dict(values)
    for key, value in overrides.items():
        if not all(key.split(".")):
            raise UsageError(
                asked=f"the setting {key!r}",
                found="a name with an empty part",
                do="give the whole name, such as training.optim",
            )
        head, _, rest = key.partition(".")
        old = result.get(head)
        if head in _LISTS and isinstance(old, str):
            old = [old]
        if rest:
            # A section that is only switched on, or off, has nothing but defaults.
            switched = head in _SWITCHES and isinstance(old, bool)
            result[head] = _inside({} if switched else old, rest, value, key)
        # Switching a section on keeps what a file says of it.
        elif not (head in _SWITCHES and value is True and isinstance(old, dict)):
            result[head] = value
    return result


def _inside(old: Any, rest: str, value: Any, key: str) -> Any:
    """Return `old`, a section or a list, with what `rest` names in it replaced."""
    if isinstance(old, list):
        place, _, below = rest.partition(".")
        if not place.isdecimal() or int(place) >= len(old):
            name = key.removesuffix(f".{rest}")
            raise UsageError(
                asked=f"the setting {key}",
                found=f"{len(old)} items in {name}",
                do=f"name one by its place, counted from 0: {name}.0 is the first",
            )
        copy = list(old)
        copy[int(place)] = _inside(old[int(place)], below, value, key) if below else value
        return copy
    # A path stands for a section, nothing for one of defaults; what else there is can't be right,
    # and is left for the error that says so.
    mixed = key.partition(".")[0] == "mix"
    if isinstance(old, str):
        old = with_share(old) if mixed else {"path": old}
    if old is None:
        old = {}
    if mixed and rest == "path" and isinstance(old, dict) and isinstance(value, str):
        return {**old, **with_share(value)}
    return override(old, {rest: value}) if isinstance(old, dict) else old
