"""A delta becomes a LoRA adapter, with what that costs measured."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from narrowtune.core.config import ModelSettings
from narrowtune.core.delta_results import Kept
from narrowtune.core.results import TaskChange, Value
from narrowtune.delta.card import adapter_card
from narrowtune.delta.copying import check_new_folder
from narrowtune.delta.low_rank import LowRank
from narrowtune.delta.store import Delta
from narrowtune.evaluate.verdict import compare_results
from narrowtune.pipeline.checks import check_paths
from narrowtune.pipeline.single import evaluate


class Exported(Value):
    """An adapter, described.

    Attributes:
        kept: what of the delta it holds.
        changes: score with the delta (before) and with the adapter (after), task by task.
    """

    kept: Kept
    changes: list[TaskChange] = Field(default_factory=list)


def export_lora(
    model: str, delta_path: Path, out: Path, *, rank: int, tasks: Sequence[dict[str, Any]]
) -> Exported:
    """Write the adapter of this rank that is nearest to a delta.

    Args:
        model: folder of the delta's base.
        delta_path: the delta.
        out: a folder that does not exist yet, or is empty.
        rank: of every matrix.
        tasks: fields of `DataSettings`; the model is scored on them with the delta and with the
            adapter, merged and rounded to the base's dtype.

    Raises:
        NarrowtuneError: as `LowRank` and `evaluate` do.
    """
    check_paths(model, [("--tasks", str(task["path"])) for task in tasks], [("DELTA", delta_path)])
    check_new_folder(Path(model), out, f"write a LoRA adapter to {out}")
    delta = Delta.load(delta_path)
    cut = LowRank(model, delta, rank)
    changes = _compare(model, delta_path, cut, tasks) if tasks else []
    kept = cut.kept()
    scores = [
        f"{change.name}: {100 * change.before.mean:.1f} % with the delta, "
        f"{100 * change.after.mean:.1f} % with the adapter (change {change.change.value:+.1f} "
        f"points, 95 %: {change.change.low:+.1f} to {change.change.high:+.1f}, "
        f"{change.num_items:,} items)"
        for change in changes
    ]
    cut.save(out, adapter_card(kept, delta.metadata, scores))
    return Exported(kept=kept, changes=changes)


def _compare(
    model: str, delta_path: Path, cut: LowRank, tasks: Sequence[dict[str, Any]]
) -> list[TaskChange]:
    with tempfile.TemporaryDirectory() as folder:
        near = Path(folder) / "near.safetensors"
        cut.as_delta().save(near)
        exact, approximate = (
            evaluate(
                ModelSettings(model=model), tasks, path, batch_size=32, output=Path(folder) / name
            )
            for name, path in (("delta", delta_path), ("adapter", near))
        )
    return compare_results(exact.tasks, approximate.tasks)
