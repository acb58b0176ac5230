"""The miniature study's rows as files: skills, kept tasks, and prompts without labels.

Owns: which split and seed each file is drawn from. Prompts and replayed rows come from tasks that
are neither taught nor kept, each file from a seed of its own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from narrowtune.core.data_settings import DataSettings, SkillSettings
from narrowtune.core.errors import UsageError
from narrowtune.core.provenance import sha256_file
from narrowtune.core.run_folder import write_text
from narrowtune.miniature.registry import TASKS, tasks_of
from narrowtune.miniature.rows import write_rows
from narrowtune.study.presets import Preset

GENERAL = ("captions", "names", "binding", "rows")
"""Tasks of prompts and replayed rows."""

_ANCHOR_SEED, _DRIFT_SEED, _REPLAY_SEED = 101, 102, 103
"""In the split `pretrain`; the reference models were made with small seeds, so none is shared."""


@dataclass(frozen=True)
class World:
    """What a study is run on.

    Attributes:
        skills: in the default order.
        keep: tasks that are kept.
        anchor_prompts, drift_prompts: files.
        replay: file of labelled rows.
    """

    skills: tuple[SkillSettings, ...]
    keep: tuple[DataSettings, ...]
    anchor_prompts: str
    drift_prompts: str
    replay: str


def write_world(folder: Path, preset: Preset) -> World:
    """Write all rows that are not there yet, and return how a study reads them.

    Raises:
        UsageError: the folder holds those of another preset, or others than were written.
    """
    sizes, made_for = preset.sizes, {"preset": preset.name, **asdict(preset.sizes)}
    stamp = folder / "world.json"
    if stamp.exists() and json.loads(stamp.read_text("utf-8")) != made_for | _hashes(folder):
        raise UsageError(
            asked=f"the study {preset.name} in {folder.parent}",
            found="the rows of another preset, or rows that are not as they were written",
            do="choose another --output-dir",
        )
    complete = stamp.exists()
    skills = []
    for name in preset.orders["default"]:
        size = sizes.pool + sizes.validation
        train = _rows(folder, name, "train", size, complete)
        test = _rows(folder, name, "test", sizes.test, complete)
        skills.append(
            SkillSettings(
                **train.model_dump(), validation=sizes.validation / size, test_path=test.path
            )
        )
    keep = [_rows(folder, task.name, "test", sizes.keep, complete) for task in tasks_of("held_out")]
    anchor, drift = folder / "anchor.jsonl", folder / "drift.jsonl"
    replay = folder / "replay.jsonl"
    if not complete:
        write_general(anchor, GENERAL, sizes.anchor, _ANCHOR_SEED)
        write_general(drift, GENERAL[:1], sizes.drift, _DRIFT_SEED)
        if sizes.replay:
            write_general(replay, GENERAL, sizes.replay, _REPLAY_SEED, labelled=True)
        write_text(stamp, json.dumps(made_for | _hashes(folder), indent=2) + "\n")
    return World(tuple(skills), tuple(keep), str(anchor), str(drift), str(replay))


def _hashes(folder: Path) -> dict[str, str]:
    """Return what the files of rows hold, by name; pictures are named after their rows."""
    return {path.name: sha256_file(path) for path in sorted(folder.glob("*.jsonl"))}


def _rows(folder: Path, task: str, split: str, count: int, complete: bool) -> DataSettings:
    if not complete:
        return write_rows(folder, task, split, count)
    made = TASKS[task]
    return DataSettings(
        path=str(folder / f"{task}-{split}.jsonl"),
        name=task,
        metric=made.metric,
        mode=made.mode,
        max_new_tokens=made.max_new_tokens,
    )


def write_general(
    path: Path, tasks: Sequence[str], count: int, seed: int, *, labelled: bool = False
) -> None:
    """Write rows of several tasks in turn, from the split `pretrain`.

    Args:
        path: of the file; pictures go beside it, into `pictures`.
        tasks: names.
        count: rows in all.
        seed: of every draw.
        labelled: with answers; prompts have none.
    """
    pictures = path.parent / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    lines = []
    for place in range(count):
        sample = TASKS[tasks[place % len(tasks)]].sample("pretrain", seed, place // len(tasks))
        picture = pictures / f"{sample.id}.png"
        picture.write_bytes(sample.scene.png())
        row: dict[str, object] = {
            "id": sample.id,
            "image": picture.relative_to(path.parent).as_posix(),
            "question": sample.item.question,
        }
        if labelled:
            row |= {"answer": sample.item.answers[0], "answers": list(sample.item.answers)}
        lines.append(json.dumps(row) + "\n")
    path.write_text("".join(lines), "utf-8")
