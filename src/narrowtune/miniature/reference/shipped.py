"""The reference models that ship with the package.

Owns: where their folders are.
"""

from __future__ import annotations

from pathlib import Path

from narrowtune.core.errors import UsageError

_WEIGHTS = Path(__file__).parent / "weights"


def shipped_names() -> tuple[str, ...]:
    """Return the names of the reference models that are there."""
    return tuple(sorted(path.parent.name for path in _WEIGHTS.glob("*/config.json")))


def reference_folder(name: str) -> Path:
    """Return the folder of a reference model.

    Raises:
        UsageError: it does not ship; the message names those that do.
    """
    names = shipped_names()
    if name not in names:
        raise UsageError(
            asked=f"the reference model {name!r}",
            found="no weights of that name in this installation",
            do=f"choose one of {', '.join(names)}"
            if names
            else "install a version that ships reference models: this one has none",
        )
    return _WEIGHTS / name
