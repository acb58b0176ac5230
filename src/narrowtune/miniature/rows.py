"""Samples as files: rows in JSONL with PNG pictures beside them.

Owns: the layout of the folder, and the settings under which a run reads it.
"""

from __future__ import annotations

import json
from pathlib import Path

from narrowtune.core.config import DataSettings
from narrowtune.miniature.registry import get_task


def write_rows(folder: Path, task: str, split: str, count: int, seed: int = 0) -> DataSettings:
    """Write `<task>-<split>.jsonl` and `pictures/<id>.png`, and return how a run reads them.

    Reading them gives the same examples as `MiniatureTask.examples`, with paths for pictures.

    Args:
        folder: created if it does not exist; files of these names are replaced.
        task: a name in `registry.TASKS`.
        split: one of `sample.SPLITS`.
        count: number of rows.
        seed: of every draw.

    Raises:
        UsageError: there is no such task or split.
    """
    chosen = get_task(task)
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    lines = []
    for sample in chosen.samples(split, count, seed):
        picture = pictures / f"{sample.id}.png"
        picture.write_bytes(sample.scene.png())
        row = {
            "id": sample.id,
            "image": picture.relative_to(folder).as_posix(),
            "question": sample.item.question,
            "answer": sample.item.answers[0],
            "answers": list(sample.item.answers),
            "group": sample.id,
        }
        if sample.item.options:
            row["options"] = list(sample.item.options)
        lines.append(json.dumps(row) + "\n")
    path = folder / f"{task}-{split}.jsonl"
    path.write_text("".join(lines), "utf-8")
    return DataSettings(
        path=str(path),
        name=task,
        metric=chosen.metric,
        mode=chosen.mode,
        max_new_tokens=chosen.max_new_tokens,
    )
