"""Where narrowtune keeps what it can make again.

That is scores of base models, features of pictures, and converted models.
"""

from __future__ import annotations

import os
from pathlib import Path

from narrowtune.core.errors import UsageError


def cache_folder() -> Path:
    """Return `$NARROWTUNE_CACHE`, its `~` expanded, or `~/.cache/narrowtune`.

    Raises:
        UsageError: this user has no home.
    """
    named = os.environ.get("NARROWTUNE_CACHE")
    try:
        return Path(named).expanduser() if named else Path.home() / ".cache" / "narrowtune"
    except RuntimeError as error:
        raise UsageError(
            asked=f"the cache folder {named or '~/.cache/narrowtune'}",
            found=str(error),
            do="set NARROWTUNE_CACHE to a folder",
        ) from None
