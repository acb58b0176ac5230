"""The run folder: where each stage's files are, and how they are written.

Every file is written beside its place and moved there, so that a run that is killed leaves either
the old file or the new one. The cache writes its files the same way.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel


@dataclass(frozen=True)
class RunFolder:
    """Names of everything in a run's folder."""

    root: Path

    @property
    def given(self) -> Path:
        """The settings as the user gave them."""
        return self.root / "run.yaml"

    @property
    def resolved(self) -> Path:
        """The settings with every default filled in."""
        return self.root / "resolved.yaml"

    @property
    def record(self) -> Path:
        """The run's `RunRecord`; written last."""
        return self.root / "record.json"

    @property
    def plan(self) -> Path:
        """The run's `Plan`."""
        return self.root / "plan.json"

    @property
    def arithmetic(self) -> Path:
        """The compute dtype that was measured; a resumed run reads it back."""
        return self.root / "arithmetic.json"

    @property
    def drift(self) -> Path:
        """The run's `DriftResult`."""
        return self.root / "drift.json"

    @property
    def delta(self) -> Path:
        """The artefact."""
        return self.root / "delta.safetensors"

    @property
    def refused(self) -> Path:
        """Rows that were not used, with the reason."""
        return self.root / "rows_refused.jsonl"

    def items(self, when: str, task: str) -> Path:
        """Item results of `task`, `before` or `after`."""
        return self.root / when / f"{task}.jsonl"


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in one move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: BaseModel | dict[str, Any]) -> None:
    """Replace `path` by `value` as indented JSON."""
    text = (
        value.model_dump_json(indent=2)
        if isinstance(value, BaseModel)
        else json.dumps(value, indent=2)
    )
    write_text(path, text + "\n")
