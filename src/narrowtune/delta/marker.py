"""The note in a model folder that says which deltas it holds: `narrowtune_delta.json`.

It is for people and for `undo`, which takes its entry out again; what decides whether a delta fits
is always the hashes.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from narrowtune.core.errors import DeltaError
from narrowtune.delta.store import Metadata
from narrowtune.delta.verify import Direction

MARKER = "narrowtune_delta.json"
MAX_MARKER_BYTES = 2**20


class Applied(BaseModel):
    """One delta that a folder holds; `sha256` is of the delta's file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    recipe: str
    base_fingerprint: str
    tuned_fingerprint: str
    narrowtune: str

    @classmethod
    def of(cls, metadata: Metadata, sha256: str) -> Applied:
        """Return the entry for the delta with this metadata and file hash."""
        return cls(
            sha256=sha256,
            recipe=metadata.recipe,
            base_fingerprint=metadata.base_fingerprint,
            tuned_fingerprint=metadata.tuned_fingerprint,
            narrowtune=metadata.narrowtune,
        )


class _Marker(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 1
    applied: list[Applied] = []


def read_marker(folder: Path, asked: str) -> list[Applied]:
    """Return the deltas that `folder` says it holds, the latest last; none if it says nothing.

    Raises:
        DeltaError: the note is there but can't be read.
    """
    path = folder / MARKER
    if not path.exists():
        return []
    try:
        if path.stat().st_size > MAX_MARKER_BYTES:
            raise ValueError(f"more than {MAX_MARKER_BYTES:,} bytes")
        return _Marker.model_validate_json(path.read_bytes()).applied
    except (OSError, ValueError, ValidationError) as problem:
        raise DeltaError(
            asked=asked,
            found=f"{path} is not readable: {problem}",
            do="delete that file; it is a note, the hashes alone decide whether a delta fits",
        ) from None


def change_marker(
    folder: Path, out: Path, applied: Applied, direction: Direction, asked: str
) -> list[Applied]:
    """Write into `out` the note of `folder` with `applied` added, or taken out again.

    Returns:
        The deltas that `out` holds now, the latest last. If there are none, no note is written.
    """
    stack = read_marker(folder, asked)
    if direction == "apply":
        stack = [*stack, applied]
    else:
        # Not by the file's hash: a packed copy of the same delta undoes it as well.
        ends = (applied.base_fingerprint, applied.tuned_fingerprint)
        same = [k for k, a in enumerate(stack) if (a.base_fingerprint, a.tuned_fingerprint) == ends]
        if same:
            del stack[same[-1]]
    if stack:
        text = _Marker(applied=stack).model_dump_json(indent=2) + "\n"
        (out / MARKER).write_text(text, encoding="utf-8")
    return stack
