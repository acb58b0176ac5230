"""Single settings laid over those of a file: `--set keep.0.metric=number` and the like."""

from __future__ import annotations

from typing import Any

from narrowtune.core.errors import UsageError


def override(values: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of `values` in which each dotted key of `overrides` is replaced.

    An item of a list is named by its place, from 0.

    Raises:
        UsageError: a key names a place that a list does not have.
    """
    result = dict(values)
    for key, value in overrides.items():
        head, _, rest = key.partition(".")
        if rest:
            result[head] = _inside(result.get(head), rest, value, key)
        # A flag that switches a section on keeps what a file says of it.
        elif not (value is True and isinstance(result.get(head), dict)):
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
    # A path stands for a section, true for one of defaults; what else there is can't be right,
    # and is left for the error that says so.
    if isinstance(old, str):
        old = {"path": old}
    if old is None or isinstance(old, bool):
        old = {}
    return override(old, {rest: value}) if isinstance(old, dict) else old
