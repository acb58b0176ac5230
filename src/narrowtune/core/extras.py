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
    missing = [name for name in packages if not _is_there(name)]
    if missing:
        raise UsageError(
            asked=asked,
            found=f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed",
            do=f"pip install 'narrowtune[{extra}]' (in a clone: pip install '.[{extra}]')",
        )


def _is_there(name: str) -> bool:
    """Whether a package can be found; a folder of its name, without code, is none."""
    try:
        spec = find_spec(name)
    except ValueError:  # a module without a specification stands for it
        return False
    return spec is not None and spec.origin is not None
