"""Where narrowtune keeps what it can make again.

That is scores of base models, features of pictures, and converted models.
"""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return `$NARROWTUNE_CACHE`, its `~` expanded, or `~/.cache/narrowtune`."""
    named = os.environ.get("NARROWTUNE_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "narrowtune"
