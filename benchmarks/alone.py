"""Measurements in processes of their own: what ran before must not matter."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def run_alone(script: str | Path, *flags: str, **values: Any) -> dict[str, Any]:
    """Run a script with these options; return the JSON on the last line that it prints.

    Exits with the end of its errors where it fails.
    """
    command = [sys.executable, str(script), *flags]
    for name, value in values.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{flags} {values}: {done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])
