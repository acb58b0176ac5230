"""The demo on pictures: a reference model of the small world learns to read clocks.

Owns: this demo's sizes, recipes, learning rates and settings, and which rows it draws. Same rows,
same order, same number of steps for every run; the eight held-out tasks are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from narrowtune.core.config import RunConfig
from narrowtune.core.data_settings import SkillSettings
from narrowtune.demo.folder import DATA
from narrowtune.miniature.registry import tasks_of
from narrowtune.miniature.rows import write_rows
from narrowtune.study.presets import ANCHOR
from narrowtune.study.world import GENERAL, write_general

NOTE = (
    "The model is the reference model {}: a real architecture at a few million parameters, "
    "pre-trained on drawn pictures (docs/miniature.md)."
)

SKILL = "clock"
BUDGET = 5.0
BATCH_SIZE = 8
"""Rows of a step: this model learns by steps more than by rows (docs/LOG.md)."""


@dataclass(frozen=True)
class Run:
    """One way of teaching the skill.

    Attributes:
        recipe: what trains.
        learning_rate: peak of the schedule.
        anchored: whether the anchor holds the model to its own answers, its steps are kept off what
            these use, and its weights are pulled back to the base's.
    """

    recipe: str
    learning_rate: float
    anchored: bool = False


RUNS = {
    "sa_proj": Run("sa_proj", 1e-3),
    "mlp_gate_up": Run("mlp_gate_up", 3e-3),
    "language_model": Run("language_model", 1e-3),
    "mlp_gate_up_anchored": Run("mlp_gate_up", 1.4e-2, anchored=True),
}
"""By the name of their folder, in order. Rates at which each learned much in 200 steps on other
rows (docs/results/anchor-weights; the last one's: docs/LOG.md, 2026-11-30); gate and up alone bear
and need a higher one, and a higher one still where steps are kept off what prompts use."""

PROJECTION, PULL = 3.0, 2.0
"""`anchor.projection` and `training.pull_to_base` of the anchored run."""


@dataclass(frozen=True)
class Size:
    """How much work the demo does; `keep` is of each held-out task."""

    train: int
    test: int
    keep: int
    drift: int
    anchor: int


FULL = Size(train=2400, test=200, keep=100, drift=48, anchor=128)
QUICK = Size(train=160, test=24, keep=8, drift=8, anchor=16)

_DRIFT_SEED, _ANCHOR_SEED = 201, 202
"""Of prompts, in the split `pretrain`; neither the reference models nor studies draw with these."""


def prepare(folder: Path, model: Path, *, seed: int, quick: bool) -> list[RunConfig]:
    """Write the rows and their pictures, and return the runs.

    Args:
        folder: gets data/.
        model: the base model's folder.
        seed: of the data and the runs.
        quick: a tenth of the work.
    """
    size, data = QUICK if quick else FULL, folder / DATA
    train = write_rows(data, SKILL, "train", size.train, seed)
    test = write_rows(data, SKILL, "test", size.test, seed)
    skill = SkillSettings(**train.model_dump(), test_path=test.path, validation=0.0)
    keep = [write_rows(data, task.name, "test", size.keep, seed) for task in tasks_of("held_out")]
    drift, anchor = data / "drift.jsonl", data / "anchor.jsonl"
    # What drifts is seen best in free answers; what holds the model should be of every kind.
    write_general(drift, ["captions"], size.drift, _DRIFT_SEED)
    write_general(anchor, GENERAL, size.anchor, _ANCHOR_SEED)
    held = {"prompts": str(anchor), "projection": PROJECTION, **ANCHOR}
    shared = {
        "model": str(model),
        "skill": skill.model_dump(),
        "keep": [task.model_dump() for task in keep],
        "drift": {"prompts": str(drift), "max_prompts": size.drift},
        "budget": BUDGET,
        "seed": seed,
    }
    return [
        RunConfig.model_validate(
            {
                **shared,
                "recipe": run.recipe,
                "anchor": held if run.anchored else None,
                "training": {
                    "learning_rate": run.learning_rate,
                    "global_batch_size": BATCH_SIZE,
                    "per_device_train_batch_size": BATCH_SIZE,
                    "pull_to_base": PULL if run.anchored else 0.0,
                },
                "output_dir": str(folder / name),
            }
        )
        for name, run in RUNS.items()
    ]
