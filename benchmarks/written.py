"""Results of a benchmark as a file: what was found, on which machine, with which versions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from narrowtune.core import provenance


def write_results(path: Path, **found: Any) -> None:
    """Write what was found, with what it was found on."""
    values = {
        "versions": provenance.versions(),
        "hardware": provenance.hardware(),
        "git": provenance.git_state(Path(__file__).parent),
        **found,
    }
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
