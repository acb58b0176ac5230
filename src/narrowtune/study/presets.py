"""The miniature study's sizes: which arms, rates, seeds and rows a preset has.

Owns: the numbers of the protocol (docs/decisions/0012). Nothing here depends on a result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from narrowtune.core.study_settings import ArmSettings

SKILL_ORDERS: dict[str, tuple[str, ...]] = {
    "default": ("birds", "counting", "tissue", "signs", "clock"),
    "alternative": ("tissue", "birds", "signs", "clock", "counting"),
    "reversed": ("clock", "signs", "tissue", "counting", "birds"),
}
"""The paper's three orders: CUB200, PixmoCount, PathVQA, TextVQA, TimeClock, and so on."""

REPLAYED = 0.25
"""Replayed rows per row of the skill."""

REFERENCE = "language_model"
"""The arm that others are compared with."""

LORA_FACTOR = 10
"""How much higher the rates of adapters are."""

TOWER_FACTOR = 0.4
"""The tower's share of the one rate, as the paper's 2e-6 beside 5e-6."""

CHAIN_SHARE = 0.75
"""Skills in a row are taught at the rate at which an arm learns nearest to this share of what the
reference learns at its best: one of `tables.SHARES`."""

AVERAGES = (0.1, 0.5, 0.9)
"""Shares α of WiSE-FT; the middle one is an arm everywhere, the others join at its chosen rate."""

_RECIPES = (
    "language_model",
    "full",
    "mlp",
    "mlp_gate_up",
    "mlp_down",
    "sa_proj",
    "sa_qkv",
    "sa_o",
    "sa_proj+mlp_gate_up",
    "vision_tower",
    "projector",
)

LORA, LWF, WISE_FT, MOE = "mlp + LoRA 16", "mlp + LwF", "mlp + WiSE-FT 0.5", "mlp + MoE"
_ANCHORED = ("sa_proj + anchor", "mlp_gate_up + anchor", "language_model + anchor")

_ALL = (*_RECIPES, LORA, LWF, WISE_FT, MOE, *_ANCHORED, "language_model + replay")

ANCHOR = {"weight": 0.3, "rows_per_step": 2}
"""How hard anchored arms are held: docs/results/anchor-weights, on rows that no study reports."""


@dataclass(frozen=True)
class Sizes:
    """Numbers of rows.

    Attributes:
        samples: that a stage learns from, drawn with the seed.
        pool: of a skill, to draw from.
        validation: of a skill, for choosing rates.
        test: of a skill.
        keep: of each task that is kept.
        drift: prompts.
        anchor: prompts.
        replay: rows to draw from.
    """

    samples: int
    pool: int
    validation: int
    test: int
    keep: int
    drift: int
    anchor: int
    replay: int


@dataclass(frozen=True)
class Preset:
    """One size of the study.

    Attributes:
        name: what is typed in place of a file.
        model, second_model, smaller_model: names of reference models: the one that all is run on,
            one of another family, one of the same family and another size. Phases on the latter two
            are left out if None.
        sizes: numbers of rows.
        arms: labels of those that are compared everywhere.
        main: those with a second sample budget and on the second model.
        chained: those that skills are taught in a row with.
        turned: those that other orders, and the smaller model, are run with.
        rates: the grid before it is extended; adapters have it `LORA_FACTOR` times higher.
        most_extensions: rounds of one further rate per arm.
        quarter: whether the grid is run with a quarter of the samples too.
        seeds: of the runs at chosen rates.
        chain_seeds: of the chains of skills.
        batch_size: rows of a step.
        skill: the one that rates are chosen on.
        second_skill: the same on the second model.
        counting: the one that claims about counting's stage in a chain are read at.
        orders: of skills, by name; the first is the default.
    """

    name: str
    model: str
    second_model: str | None
    smaller_model: str | None
    sizes: Sizes
    arms: tuple[str, ...]
    main: tuple[str, ...]
    chained: tuple[str, ...]
    turned: tuple[str, ...]
    rates: tuple[float, ...]
    most_extensions: int
    quarter: bool
    seeds: tuple[int, ...]
    chain_seeds: tuple[int, ...]
    batch_size: int = 8
    skill: str = "clock"
    second_skill: str = "tissue"
    counting: str = "counting"
    orders: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: SKILL_ORDERS)


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            name="miniature",
            model="qwen2_5_vl",
            second_model="llava_onevision",
            smaller_model="qwen2_5_vl_small",
            sizes=Sizes(1600, 4800, 200, 200, 128, 64, 256, 500),
            arms=_ALL,
            chained=_ALL,
            main=("language_model", "mlp", "mlp_gate_up", "sa_proj", LORA, "mlp_gate_up + anchor"),
            turned=("language_model", "mlp_gate_up", "sa_proj", "mlp_gate_up + anchor"),
            rates=(1e-4, 3e-4, 1e-3, 3e-3),
            most_extensions=3,
            quarter=True,
            seeds=(0, 1, 2),
            chain_seeds=(0, 1, 2),
        ),
        Preset(
            name="miniature-quick",
            model="qwen2_5_vl",
            second_model=None,
            smaller_model=None,
            # Skills' rows and seeds are the whole study's: its runs, fewer of them.
            sizes=Sizes(1600, 4800, 200, 200, 48, 32, 256, 0),
            arms=("language_model", "mlp_gate_up", "sa_proj", "mlp_gate_up + anchor", LORA),
            main=(),
            chained=("language_model", "mlp_gate_up", "sa_proj", "mlp_gate_up + anchor"),
            turned=(),
            rates=(3e-4, 1e-3, 3e-3),
            most_extensions=2,
            quarter=False,
            seeds=(0, 1, 2),
            chain_seeds=(0,),
        ),
    )
}
"""The presets by name."""


def grid_factor(arm: ArmSettings) -> float:
    """Return by how much an arm's grid of rates lies higher than that of others."""
    return LORA_FACTOR if arm.lora is not None else 1


def make_arms(anchor_prompts: str, replay: str) -> dict[str, ArmSettings]:
    """Return every arm by its label, at a rate that is to be replaced.

    Args:
        anchor_prompts: file of the anchor's prompts.
        replay: file of labelled rows to replay.
    """
    # What is forgotten of earlier skills is measured, and no arm is given their rows.
    anchor = {"prompts": anchor_prompts, **ANCHOR, "earlier_skills": 0}
    specs: list[dict[str, Any]] = [
        *[{"recipe": recipe} for recipe in _RECIPES],
        {"recipe": "mlp", "lora": {"rank": 16}},
        {"recipe": "mlp", "distillation": {"weight": 1.0, "temperature": 2.0}},
        *[{"recipe": "mlp", "wise_ft": share} for share in AVERAGES],
        {"recipe": "mlp", "experts": True},
        {"recipe": "sa_proj", "anchor": anchor},
        {"recipe": "mlp_gate_up", "anchor": anchor},
        {"recipe": "language_model", "anchor": anchor},
        {"recipe": "language_model", "mix": [{"path": replay, "share": REPLAYED}]},
    ]
    arms = [ArmSettings.model_validate({**spec, "learning_rates": [1.0]}) for spec in specs]
    return {arm.label: arm for arm in arms}
