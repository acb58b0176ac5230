"""A study as one file: which recipes, at which rates, learn which skills in which order.

Arms are recipes with what goes with them; chains are arms at one rate, in one order, with one seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from narrowtune.core.anchor_settings import AnchorSettings
from narrowtune.core.config import (
    DriftSettings,
    ModelSettings,
    TrainingSettings,
    parse_settings,
)
from narrowtune.core.data_settings import (
    EVAL_BATCH_SIZE,
    DataSettings,
    MixSettings,
    Place,
    Settings,
    SkillSettings,
)
from narrowtune.core.errors import UsageError
from narrowtune.core.overrides import override
from narrowtune.core.recipes import get_recipe
from narrowtune.core.yaml_files import read_yaml


class DistillationSettings(Settings):
    """Learning without Forgetting (arXiv 1606.09282): hold to the model that the stage began with.

    On the skill's own rows, at their labelled positions; the teacher is the same model with its
    earlier weights swapped in.

    Attributes:
        weight: λ, of the distillation term beside cross-entropy at weight 1.
        temperature: T, by which both distributions are softened; the term is multiplied by T².
    """

    weight: float = Field(1.0, gt=0)
    temperature: float = Field(2.0, gt=0)


class LoraSettings(Settings):
    """Low-rank adapters beside the recipe's linear layers, merged into them after each stage.

    Attributes:
        rank: r.
        alpha: the adapters' product is multiplied by alpha / rank.
        dropout: share of what goes into an adapter that is dropped while training.
    """

    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)


class ArmTraining(Settings):
    """What an arm does otherwise than the study's `training`: how long, and in steps of how many.

    Attributes:
        num_train_epochs: passes over the rows; ignored where the study gives max_steps.
        global_batch_size: samples per optimiser step, those of `mix` among them.
        per_device_train_batch_size: samples of one forward pass.
    """

    num_train_epochs: float | None = Field(None, gt=0)
    global_batch_size: int | None = Field(None, ge=1)
    per_device_train_batch_size: int | None = Field(None, ge=1)


class ArmSettings(Settings):
    """A recipe in a study, with what is added to it.

    Attributes:
        recipe: name of a recipe.
        name: what tables call the arm; recipe and additions unless given.
        learning_rates: peaks of the schedule, one run each.
        lora: train low-rank adapters in place of the matrices themselves.
        experts: give every MLP a copy that learns beside the frozen original, with a router that
            weighs the two per token; with the recipe `mlp` alone.
        anchor: hold the model to the base's answers to general prompts; in a sequence also to its
            own, before a stage, to unlabelled prompts of the skills before it.
        distillation: Learning without Forgetting.
        wise_ft: share α of the weights before a stage in the average that replaces those after it
            (WiSE-FT, arXiv 2109.01903); the average is scored and is what the next stage starts
            from.
        density: share of every trained tensor's elements that stays after a stage, those that moved
            furthest; before an average, where both are asked for.
        mix: labelled general rows replayed in every stage.
        pull: how far every stage pulls what trains back to the weights before it, in e-folds
            (`training.pull_to_base`).
        training: what differs from the study's `training`.
    """

    recipe: str
    name: str = ""
    learning_rates: list[float] = Field(min_length=1)
    lora: LoraSettings | None = None
    experts: bool = False
    anchor: AnchorSettings | None = None
    distillation: DistillationSettings | None = None
    wise_ft: float | None = Field(None, ge=0, le=1)
    density: float | None = Field(None, gt=0, le=1)
    mix: list[MixSettings] = Field(default_factory=list)
    pull: float | None = Field(None, gt=0, le=1e6)
    training: ArmTraining | None = None

    @field_validator("recipe")
    @classmethod
    def _known_recipe(cls, value: str) -> str:
        try:
            return get_recipe(value).name
        except UsageError as error:
            raise ValueError(f"{error.found}; {error.do}") from None

    @field_validator("lora", "anchor", "distillation", mode="before")
    @classmethod
    def _flag(cls, value: Any) -> Any:
        return {} if value is True else None if value is False else value

    @field_validator("learning_rates")
    @classmethod
    def _rates(cls, values: list[float]) -> list[float]:
        if min(values) <= 0 or len(set(values)) < len(values):
            raise ValueError("rates are above 0, and each is given once")
        return values

    @model_validator(mode="after")
    def _one_change(self) -> ArmSettings:
        partly = self.wise_ft is not None or self.density is not None
        if self.lora is not None and (partly or self.pull is not None):
            raise ValueError("lora with wise_ft, density or pull: these are of whole matrices")
        if self.anchor and self.anchor.projection and (self.lora or self.experts):
            raise ValueError("anchor.projection is of whole matrices: without lora and experts")
        if self.experts and (self.recipe != "mlp" or self.lora or partly):
            raise ValueError(
                "experts: only with the recipe mlp, and without lora, wise_ft and density"
            )
        return self

    @property
    def label(self) -> str:
        """The arm's name."""
        added = [
            "MoE" if self.experts else "",
            f"LoRA {self.lora.rank}" if self.lora else "",
            "anchor" if self.anchor else "",
            "LwF" if self.distillation else "",
            f"density {self.density:g}" if self.density is not None else "",
            f"WiSE-FT {self.wise_ft:g}" if self.wise_ft is not None else "",
            "replay" if self.mix else "",
            f"pull {self.pull:g}" if self.pull is not None else "",
            *(f"{name} {value:g}" for name, value in self.changed_training.items()),
        ]
        return self.name or " + ".join([self.recipe, *filter(None, added)])

    @property
    def changed_training(self) -> dict[str, Any]:
        """What `training` sets."""
        return self.training.model_dump(exclude_none=True) if self.training else {}


class StudySettings(ModelSettings):
    """Arms side by side: same samples, same order, same number of steps unless an arm has its own.

    Attributes:
        skills: what is taught, each with rows of its own to be tested on.
        keep: what must not get worse.
        arms: recipes and what is added to them.
        orders: names of skills in the order in which they are taught, by the order's name; all
            skills as they are listed unless given.
        seeds: each draws its own rows and their order.
        num_samples: rows of a skill that a stage learns from, drawn with the seed; all unless
            given.
        training: optimisation; the rate is the arm's.
        drift: the prompts on which the shift of the output distribution is measured.
        constrained: score `keep` a second time with decoding held to the answers that a task may
            have, to see what of a loss comes back. Items whose free answer is one of these are
            not asked again.
        eval_batch_size: items answered together at most, fewer where they are long (16,384 tokens
            at a time); the answers don't depend on it.
        output_dir: the study's folder.
    """

    skills: list[SkillSettings] = Field(min_length=1)
    keep: list[DataSettings] = Field(min_length=1)
    arms: list[ArmSettings] = Field(min_length=1)
    orders: dict[str, list[str]] = Field(default_factory=dict)
    seeds: list[int] = Field(default_factory=lambda: [0], min_length=1)
    num_samples: int | None = Field(None, ge=1)
    training: TrainingSettings = TrainingSettings()
    drift: DriftSettings = DriftSettings()
    constrained: bool = False
    eval_batch_size: int = Field(EVAL_BATCH_SIZE, ge=1)
    output_dir: Place = "runs/study"

    @model_validator(mode="after")
    def _consistent(self) -> StudySettings:
        skills = [skill.label for skill in self.skills]
        mistakes = [
            f"two {kind} are called {', '.join(twice)}: give each a name"
            for kind, names in (
                ("data sets", [*skills, *(keep.label for keep in self.keep)]),
                ("arms", [arm.label for arm in self.arms]),
            )
            if (twice := sorted({name for name in names if names.count(name) > 1}))
        ]
        for name, order in self.orders.items():
            unknown = [skill for skill in order if skill not in skills]
            if unknown or not order or len(set(order)) < len(order):
                mistakes.append(
                    f"orders.{name}: each of {', '.join(skills)} at most once, and at least one"
                )
        mistakes += [
            f"skills.{number}: its own test rows are missing: give test_path"
            for number, skill in enumerate(self.skills)
            if skill.test_path is None
        ]
        if self.training.quantize_frozen:
            mistakes.append("training.quantize_frozen is for a run of `teach`: leave it out")
        if self.training.torch_compile:
            mistakes.append("training.torch_compile is for a run of `teach`: leave it out")
        if self.training.density < 1:
            mistakes.append("training.density is for a run of `teach`: give arms a density")
        if self.training.eval_steps or self.training.load_best_model_at_end:
            mistakes.append(
                "training.eval_steps and load_best_model_at_end are for a run of `teach`: leave "
                "them out"
            )
        if self.drift.every or self.drift.budget is not None:
            mistakes.append("drift.every and drift.budget are for a run of `teach`: leave them out")
        if self.training.fsdp or self.training.deepspeed:
            mistakes.append("a study runs in one process: leave training.fsdp and deepspeed out")
        if mistakes:
            raise ValueError("\n  ".join(mistakes))
        return self

    @property
    def all_orders(self) -> dict[str, Sequence[str]]:
        """The orders by name."""
        return dict(self.orders) or {"default": [skill.label for skill in self.skills]}


def load_study(path: Path, overrides: dict[str, Any] | None = None) -> StudySettings:
    """Read a study's YAML file; `overrides` (dotted keys) win over it.

    Raises:
        UsageError: the file is missing, is not YAML, or has wrong keys.
    """
    asked = f"a study described by {path}"
    values = override(read_yaml(path, asked), overrides or {})
    return parse_settings(StudySettings, values, asked)
