"""The run folder: where each stage's files are, and how they are written.

Every file is written beside its place and moved there, so that a run that is killed leaves either
the old file or the new one. The cache writes its files the same way.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from narrowtune.core.errors import UsageError

COMPARISON = (
    "comparison.html",
    "comparison.md",
    "comparison.json",
    "plots/learning_vs_forgetting.png",
    "plots/learning_vs_forgetting.svg",
)
"""What a comparison of several runs is written to, below its folder."""

REFUSED = "rows_refused.jsonl"
"""Rows that were not used, with the reason, in the folder of what they were given for."""


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
    def whole_delta(self) -> Path:
        """All that was trained, in a run with a dial."""
        return self.root / "delta_whole.safetensors"

    @property
    def trained(self) -> Path:
        """What is known of a training that has ended, until the record has it."""
        return self.root / "trained.json"

    @property
    def refused(self) -> Path:
        """Rows that were not used, with the reason."""
        return self.root / REFUSED

    @property
    def log(self) -> Path:
        """What was logged of every step, a JSON line each."""
        return self.root / "train.jsonl"

    def found(self) -> list[Path]:
        """Return what is there under names that a run writes to, or deletes by."""
        settings = (self.given, self.resolved, self.root / "started.json")
        deltas = (self.delta, self.whole_delta, self.trained)
        results = (self.record, self.plan, self.drift, *deltas)
        reports = (self.root / f"report.{kind}" for kind in ("html", "md", "json"))
        folders = (self.root / name for name in ("before", "after", "dial", "plots"))
        places = [*settings, *results, self.refused, self.log, *reports, *folders]
        return [path for path in places if path.exists()] + sorted(self.root.glob("checkpoint-*"))

    def items(self, when: str, task: str) -> Path:
        """Item results of `task`, `before` or `after`."""
        return self.root / when / f"{task}.jsonl"


def check_output(folder: Path, names: Sequence[str], *, overwrite: bool) -> None:
    """See that files can be written into a folder, and that none of them is there already.

    Args:
        folder: there already, or to be made.
        names: of the files.
        overwrite: whether they may be replaced.

    Raises:
        UsageError: a file is there, or the folder can't be written.
    """
    asked = f"results in {folder}"
    try:
        nearest = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
        # Permissions don't tell for every file system and user, so it is tried.
        with tempfile.TemporaryFile(dir=nearest):
            pass
        there = [name for name in names if os.path.lexists(folder / name)]
        folders = [name for name in there if (folder / name).is_dir()]
    except OSError as error:
        raise UsageError(
            asked=asked,
            found=error.strerror or str(error),
            do="choose another folder: one that can be written, or a new one",
        ) from None
    if folders:
        raise UsageError(
            asked=asked,
            found=f"{', '.join(folders)}: a folder, where a file would be written",
            do="choose another folder, or move that away",
        )
    if there and not overwrite:
        raise UsageError(
            asked=asked,
            found=f"{', '.join(there)} from before",
            do="choose another folder, or replace what is there: --overwrite",
        )


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in one move."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes, *, sync: bool = True) -> None:
    """Replace `path` by `content` in one move.

    Args:
        path: of the file; its folder is made.
        content: all of it.
        sync: wait until the disk has it, so that no power cut leaves an empty file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            if sync:
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
