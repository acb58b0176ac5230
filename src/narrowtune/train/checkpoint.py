"""Checkpoints: the trainable tensors only, complete or not at all.

A checkpoint folder is the Trainer's own (`optimizer.pt`, `scheduler.pt`, `rng_state.pth`,
`trainer_state.json`) with `trainable.safetensors` in place of the whole model: the frozen part is
the base, which the run names by its fingerprint. `trainer_state.json` is written last, so a folder
without it was cut short and is passed over, out loud.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from narrowtune.core.errors import TrainingError
from narrowtune.core.provenance import sha256_file
from narrowtune.train.effort import Effort
from narrowtune.train.sharded import fill, parameters_of

logger = logging.getLogger(__name__)

WEIGHTS = "trainable.safetensors"
MANIFEST = "trainable.json"


@dataclass(frozen=True)
class Progress:
    """What a run had done when a checkpoint was written: a resumed run goes on counting from it.

    Attributes:
        num_samples: rows trained on.
        num_tokens: of these rows.
        num_labels: label positions among them.
        effort: what it took.
        received: parameters that had a gradient, for the proof.
        nonzero: those among them whose gradient was not zero throughout.
    """

    num_samples: int
    num_tokens: int
    num_labels: int
    effort: Effort
    received: tuple[str, ...]
    nonzero: tuple[str, ...]


def save_trainable(tensors: Mapping[str, Tensor], folder: Path, progress: Progress) -> None:
    """Write what trains, on the CPU, and a manifest with its hash, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{WEIGHTS}.part"
    save_file(dict(tensors), temporary, metadata={"format": "pt"})
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(folder / WEIGHTS)
    manifest = {
        "sha256": sha256_file(folder / WEIGHTS),
        "names": list(tensors),
        "progress": asdict(progress),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


@torch.no_grad()
def load_trainable(model: nn.Module, names: tuple[str, ...], folder: Path) -> Progress:
    """Put the tensors of `folder` into the parameters called `names`.

    Returns:
        What the run had done when the checkpoint was written.

    Raises:
        TrainingError: the file is damaged, was written by another version, or holds other
            tensors than this run trains.
    """
    asked = f"to resume from {folder}"
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        found = sha256_file(folder / WEIGHTS)
    except (OSError, ValueError) as error:
        raise TrainingError(
            asked=asked, found=str(error), do="resume from an earlier checkpoint, or start again"
        ) from None
    if found != manifest["sha256"]:
        raise TrainingError(
            asked=asked,
            found=f"{WEIGHTS} has SHA-256 {found[:12]}…, its manifest {manifest['sha256'][:12]}…",
            do="the file is damaged: delete this checkpoint and resume from an earlier one",
        )
    if manifest["names"] != list(names):
        raise TrainingError(
            asked=asked,
            found=f"{len(manifest['names'])} tensors of another selection ({len(names)} wanted)",
            do="resume with the recipe that the checkpoint was made with",
        )
    progress = _read_progress(manifest, asked)
    parameters = parameters_of(model)
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        for name in names:
            fill(parameters[name], file.get_tensor(name))
    return progress


def _read_progress(manifest: dict[str, Any], asked: str) -> Progress:
    try:
        values = manifest["progress"]
        lists = {name: tuple(values[name]) for name in ("received", "nonzero")}
        return Progress(**{**values, **lists, "effort": Effort(**values["effort"])})
    except (KeyError, TypeError) as error:
        raise TrainingError(
            asked=asked,
            found=f"{MANIFEST} of another version of narrowtune ({error})",
            do="resume with the version that wrote it, or start again",
        ) from None


def find_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint in `folder`, or None.

    Incomplete ones (a run was stopped while writing) are named in a warning and left alone.
    """
    numbered = [
        (int(path.name.rpartition("-")[2]), path)
        for path in folder.glob("checkpoint-*")
        if path.is_dir() and path.name.rpartition("-")[2].isdigit()
    ]
    for _, path in sorted(numbered, reverse=True):
        needed = ("trainer_state.json", MANIFEST, WEIGHTS)
        missing = [name for name in needed if not (path / name).is_file()]
        if not any(path.glob("optimizer*")):  # optimizer.pt, or what FSDP writes in its place
            missing.append("optimizer.pt")
        if not missing and _is_json(path / "trainer_state.json"):
            return path
        what = f"no {', '.join(missing)}" if missing else "trainer_state.json is cut short"
        logger.warning("%s is incomplete (%s): using an older one", path, what)
    return None


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True
