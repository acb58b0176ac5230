"""A delta becomes a LoRA adapter, with what that costs measured."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from narrowtune.core.config import ModelSettings, parse_data_settings
from narrowtune.core.data_settings import EVAL_BATCH_SIZE
from narrowtune.core.delta_results import Kept
from narrowtune.core.numbers import interval, signed
from narrowtune.core.results import TaskChange, Value
from narrowtune.core.run_folder import check_output
from narrowtune.delta.card import adapter_card
from narrowtune.delta.copying import check_new_folder
from narrowtune.delta.low_rank import LowRank
from narrowtune.delta.store import Delta
from narrowtune.evaluate.own_metrics import identity
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
    folder: Path,
    delta_path: Path,
    out: Path,
    *,
    rank: int,
    tasks: Sequence[dict[str, Any]],
    base_name: str | None = None,
    model: ModelSettings | None = None,
) -> Exported:
    """Write the adapter of this rank that is nearest to a delta.

    Args:
        folder: the delta's base.
        delta_path: the delta.
        out: a folder that does not exist yet, or is empty.
        rank: of every matrix.
        tasks: fields of `DataSettings`; the model is scored on them with the delta and with the
            adapter, merged and rounded to the base's dtype.
        base_name: what the adapter says its base is; the folder unless given.
        model: how the folder is loaded and spoken to while it is scored.

    Raises:
        NarrowtuneError: as `LowRank` and `evaluate` do; a refused row is an error.
    """
    model = model or ModelSettings(model=str(folder))
    for task in tasks:
        identity(parse_data_settings(task, f"to evaluate {task['path']}").metric)
    files = [("DELTA", delta_path)]
    check_paths(str(folder), [("--tasks", str(task["path"])) for task in tasks], files)
    out = check_new_folder(folder, out, f"write a LoRA adapter to {out}")
    check_output(out.parent, (), overwrite=True)
    delta = Delta.load(delta_path)
    cut = LowRank(folder, delta, rank)
    changes = _compare(model, delta_path, cut, tasks, out.parent) if tasks else []
    kept = cut.kept()
    scores = [
        f"{change.name}: {100 * change.before.mean:.1f} % with the delta, "
        f"{100 * change.after.mean:.1f} % with the adapter (change {signed(change.change.value)} "
        f"points, 95 %: {interval(change.change)}, {change.num_items:,} items)"
        for change in changes
    ]
    cut.save(out, adapter_card(kept, delta.metadata, scores, base_name), base_name)
    return Exported(kept=kept, changes=changes)


def _compare(
    model: ModelSettings,
    delta_path: Path,
    cut: LowRank,
    tasks: Sequence[dict[str, Any]],
    beside: Path,
) -> list[TaskChange]:
    """Score the delta and the adapter; what that needs stands beside the output meanwhile."""
    beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=beside, prefix=".narrowtune-export-") as own:
        near = Path(own) / "near.safetensors"
        cut.as_delta().save(near, packed=True)
        exact, approximate = (
            evaluate(model, tasks, path, batch_size=EVAL_BATCH_SIZE, output=Path(own) / name)
            for name, path in (("delta", delta_path), ("adapter", near))
        )
    return compare_results(exact.tasks, approximate.tasks)
