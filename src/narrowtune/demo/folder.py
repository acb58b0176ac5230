"""The demo's folder: an earlier demo in it gives way, and nothing else ever does."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from narrowtune.core.errors import UsageError
from narrowtune.core.run_folder import COMPARISON

DATA = "data"
"""Where the demo's rows are, beside its runs."""

_MARKER = ".narrowtune-demo"
_OWN = {DATA, _MARKER, *(Path(name).parts[0] for name in COMPARISON)}


def clear(folder: Path, runs: Iterable[str]) -> None:
    """Remove an earlier demo; a folder that holds anything beside it is left alone.

    Args:
        folder: made if it does not exist.
        runs: names of every demo's runs.

    Raises:
        UsageError: there is something that no demo wrote.
    """
    marker, known = folder / _MARKER, _OWN.union(runs)
    there = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    others = [name for name in there if name not in known]
    if others or (there and not marker.exists()):
        named = ", ".join((others or there)[:3])
        raise UsageError(
            asked=f"a demo in {folder}",
            found=f"what no demo wrote there: {named}",
            do="choose another --output-dir, or move that away",
        )
    for path in [folder / name for name in there]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    marker.touch()
