"""Where a result came from: software, machine, source tree, file hashes.

Nothing here imports torch, so that a record can be read and made anywhere. What is recorded names
no person, no host, no path and no remote: records are meant to be passed on.
"""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from narrowtune.core.errors import UsageError
from narrowtune.version import __version__

DISTRIBUTIONS = (
    "torch",
    "transformers",
    "accelerate",
    "safetensors",
    "tokenizers",
    "datasets",
    "numpy",
    "scipy",
    "pillow",
    "peft",
    "trl",
    "torchao",
    "bitsandbytes",
)
"""What can change a result. Those that are not installed are left out of the record."""

CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile")
"""Instruction sets that decide which arithmetic is fast, as /proc/cpuinfo spells them."""

_CHUNK_BYTES = 1 << 20
_COMMAND_SECONDS = 10


def versions() -> dict[str, str]:
    """Return the versions of narrowtune, Python and the libraries that can change a result."""
    found = {"narrowtune": __version__, "python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """Describe this machine.

    Returns:
        `system`, `machine`, `cpu` (model name), `cpu_flags`, `cores` (that this process may use),
        `memory_bytes`, `load_average` (1, 5 and 15 minutes; None where the system has none) and
        `accelerators` (one entry per NVIDIA device: name, memory_bytes, driver).
    """
    model, flags = _cpu()
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu": model,
        "cpu_flags": flags,
        "cores": usable_cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "accelerators": _accelerators(),
    }


def usable_cores() -> int:
    """Return how many cores this process may run on: in a container, fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def git_state(path: Path | str) -> dict[str, Any] | None:
    """Return the commit of the source tree at `path` and whether files differ from it.

    Returns:
        `{"commit": 40 hex digits, "dirty": bool}`; None where there is no tree, no commit yet, or
        no git. Branch and remote are left out: both can carry names and secrets.
    """
    commit = _output("git", "-C", str(path), "rev-parse", "--verify", "HEAD")
    changes = _output("git", "-C", str(path), "status", "--porcelain")
    if commit is None or changes is None:
        return None
    return {"commit": commit.strip(), "dirty": bool(changes.strip())}


def sha256_file(path: Path | str) -> str:
    """Return the SHA-256 of a file's bytes, read in pieces, as 64 hex digits.

    Raises:
        UsageError: the file can't be read.
    """
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise UsageError(
            asked=f"the hash of {path}",
            found=error.strerror or str(error),
            do="check that the path is a file that this user may read",
        ) from None
    return digest.hexdigest()


def _cpu() -> tuple[str, list[str]]:
    """Return the processor's model name and those of `CPU_FLAGS` that it has."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        return platform.processor() or platform.machine(), []
    # The entries repeat for each core; the first is enough.
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    present = set(fields.get("flags", fields.get("Features", "")).split())
    return (
        fields.get("model name", platform.machine()),
        [flag for flag in CPU_FLAGS if flag in present],
    )


def _accelerators() -> list[dict[str, Any]]:
    text = _output(
        "nvidia-smi",
        "--query-gpu=name,memory.total,driver_version",
        "--format=csv,noheader,nounits",
    )
    found = []
    for line in (text or "").splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) != 3:  # a message instead of a row
            continue
        name, mebibytes, driver = fields
        # Devices that share the host's memory answer "[N/A]".
        memory = int(mebibytes) << 20 if mebibytes.isdigit() else None
        found.append({"name": name, "memory_bytes": memory, "driver": driver})
    return found


def _output(*command: str) -> str | None:
    """Return what a command wrote; None where it is missing, fails or hangs."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
