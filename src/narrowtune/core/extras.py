"""Packages that only some work needs: the package's extras."""

from __future__ import annotations

from importlib.util import find_spec

from narrowtune.core.errors import UsageError


def require(extra: str, *packages: str, asked: str) -> None:
    """See that what an extra brings is there, before anything is begun.

    Args:
        extra: its name, such as `lora`.
        packages: as they are imported.
        asked: the clause that an error begins with.

    Raises:
        UsageError: one of them is not.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise UsageError(
            asked=asked,
            found=f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed",
            do=f"pip install 'narrowtune[{extra}]' (in a clone: pip install '.[{extra}]')",
        )
