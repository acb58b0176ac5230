"""A run as one file: every setting, its default, and one error that lists all mistakes.

Key names follow `transformers.TrainingArguments` where that has the setting.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError, field_validator, model_validator

from narrowtune.core.anchor_settings import AnchorSettings
from narrowtune.core.data_settings import (
    EVAL_BATCH_SIZE,
    DataSettings,
    MixSettings,
    Place,
    PromptSettings,
    Settings,
    SkillSettings,
)
from narrowtune.core.delta_results import DialWay
from narrowtune.core.errors import UsageError
from narrowtune.core.mistakes import describe_mistakes
from narrowtune.core.overrides import override
from narrowtune.core.recipes import get_recipe
from narrowtune.core.training_settings import TrainingSettings
from narrowtune.core.yaml_files import read_yaml

Kind = TypeVar("Kind", bound=Settings)


DriftAction = Literal["stop", "lower_rate", "raise_anchor"]
"""What may be done where drift is over its budget while a model is trained."""


class DriftSettings(PromptSettings):
    """The drift probe.

    Attributes:
        prompts: file of prompts, the only ones then; unless given, the free prompts that ship with
            the package (for a model that reads pictures, pictures to describe beside texts) and
            those of the keep sets. What asks about pictures is also asked about the skill's own, at
            the end, for a figure of its own.
        max_prompts: how many of them. Taken in equal numbers from every source;
            what one lacks, the others give.
        max_new_tokens: length of the answers.
        every: optimiser steps between measurements while training (KL, number-token bias and the
            share of answers in the base's form), on the same prompts and the base's answers; 0
            measures at the end alone.
        budget: KL(base‖now) in nats per token above which something is done; unless given,
            nothing is.
        action: what: `stop` training, `lower_rate` to a half, or `raise_anchor`, which doubles its
            weight; the two last at every measurement over the budget.
    """

    max_prompts: int = Field(200, ge=1)
    max_new_tokens: int = Field(32, ge=1)
    every: int = Field(0, ge=0)
    budget: float | None = Field(None, gt=0)
    action: DriftAction = "stop"


class CostSettings(Settings):
    """Factors for energy, emissions and money; what is not given is not reported.

    Attributes:
        power_watts: the machine's power while it works.
        co2_kg_per_kwh: emissions of the grid.
        price_per_hour: of the machine.
        price_per_kwh: of energy.
        currency: of both prices.
        measure_energy: measure the energy of training with codecarbon, where the extra `carbon` is
            installed; it stands beside the estimate.
    """

    power_watts: float | None = Field(None, gt=0)
    co2_kg_per_kwh: float | None = Field(None, ge=0)
    price_per_hour: float | None = Field(None, ge=0)
    price_per_kwh: float | None = Field(None, ge=0)
    currency: str = "EUR"
    measure_energy: bool = False


class DialSettings(Settings):
    """How far to go from the base towards the trained weights, found on a part of the keep items.

    Attributes:
        way: `linear` lets all elements go, and α is how far; `largest` lets those of each tensor
            that moved furthest go all the way, and α, here the density, is their share. That keeps
            more learning where training moved most weights by many of their last bits, and goes
            by leaps where it moved them by one or two.
        num_steps: equal steps of α from 0, the base, to 1, all that was trained.
        share: of each keep set's items that α is found on; the others confirm it.
        whole_curve: once α has been taken and confirmed, score the steps beyond the one that the
            dial stopped at, too, so that the report draws the curve up to what was trained. They
            decide nothing; each costs an evaluation of the searched items and all of the skill's.
    """

    way: DialWay = "linear"
    num_steps: int = Field(10, ge=1, le=100)
    share: float = Field(0.5, gt=0, lt=1)
    whole_curve: bool = True


class ModelSettings(Settings):
    """A model, and how it is loaded and spoken to.

    Attributes:
        model: folder or hub id of a Hugging Face model.
        revision: commit, tag or branch of a hub id.
        dtype: of the weights; that of the stored ones unless given.
        device: a torch device; `auto` is the first GPU, else the CPU.
        max_length: most tokens per row; a row that is longer is an error, never cut.
        chat_template_kwargs: passed to the chat template, in training and in evaluation.
        processor_kwargs: settings of a multimodal model's processor that replace those of its
            files, such as `max_pixels`; whoever serves the model has to set them too.
        remember_pictures: keep what a frozen tower makes of a picture, in the cache folder (about
            8 GiB at most), so that it is computed once; unless given, where the model is on a CPU.
    """

    model: str = Field(min_length=1)
    revision: str | None = None
    dtype: Literal["auto", "bfloat16", "float32", "float16"] = "auto"
    device: str = "auto"
    max_length: int | None = Field(None, ge=1)
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    processor_kwargs: dict[str, Any] = Field(default_factory=dict)
    remember_pictures: bool | None = None


class RunConfig(ModelSettings):
    """One run: what to teach to which model, what to keep, and how much may be lost.

    Attributes:
        recipe: name of a recipe (`narrowtune plan --help` lists them).
        skill: the rows to learn from and be tested on.
        keep: the rows that must not get worse.
        mix: general rows mixed into training, such as `data.jsonl:0.1`.
        anchor: hold the model to its own answers on general prompts.
        drift: the prompts on which the shift of the output distribution is measured.
        training: optimisation.
        cost: factors for energy, emissions and money.
        dial: after training, go only as far towards the trained weights as the budget allows.
        budget: accepted mean held-out loss, percentage points.
        budget_task: accepted loss of the worst single task, percentage points.
        min_learning: what the lower bound of learning must exceed, percentage points.
        output_dir: the run's folder.
        ledger: folder of the skills that this base was taught before, in order: they are put on
            it first, what they are tested on is kept, and this skill is added.
        eval_batch_size: items answered together at most, fewer where they are long (16,384 tokens
            at a time); the answers don't depend on it.
        pack_delta: whether the delta's bits are compressed, without loss; false writes version 1
            of the file, the bits as they are.
        seed: of splits, order and draws.
        gallery: whether the report shows the items whose answers changed.
        allow_overlap: accept rows that are both taught and kept (the record says so).
    """

    recipe: str = "mlp_gate_up"
    skill: SkillSettings
    keep: list[DataSettings] = Field(default_factory=list)
    mix: list[MixSettings] = Field(default_factory=list)
    anchor: AnchorSettings | None = None
    drift: DriftSettings = DriftSettings()
    training: TrainingSettings = TrainingSettings()
    cost: CostSettings = CostSettings()
    dial: DialSettings | None = None
    budget: float = Field(1.0, ge=0)
    budget_task: float | None = Field(None, ge=0)
    min_learning: float = 0.0
    output_dir: Place = Field("runs/run", min_length=1)
    ledger: Place | None = Field(None, min_length=1)
    eval_batch_size: int = Field(EVAL_BATCH_SIZE, ge=1)
    pack_delta: bool = True
    gallery: bool = True
    allow_overlap: bool = False
    seed: int = 42

    @field_validator("recipe")
    @classmethod
    def _known_recipe(cls, value: str) -> str:
        try:
            return get_recipe(value).name
        except UsageError as error:
            raise ValueError(f"{error.found}; {error.do}") from None

    @model_validator(mode="before")
    @classmethod
    def _validation_where_it_is_used(cls, values: Any) -> Any:
        """Learn from the rows that nothing would be validated on."""
        if not isinstance(values, dict):
            return values
        skill, training = values.get("skill"), values.get("training", {})
        if isinstance(skill, SkillSettings):
            skill = skill.model_dump(exclude_unset=True)
        elif isinstance(skill, str):
            skill = {"path": skill}
        if isinstance(training, TrainingSettings):
            training = training.model_dump()
        used = isinstance(training, dict) and training.get("eval_steps")
        if used or not isinstance(skill, dict) or "validation" in skill:
            return values
        return {**values, "skill": {**skill, "validation": 0.0}}

    @field_validator("keep", "mix", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("anchor", "dial", mode="before")
    @classmethod
    def _flag(cls, value: Any) -> Any:
        return {} if value is True else None if value is False else value

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        names = [self.skill.label, *(k.label for k in self.keep)]
        repeated = sorted({n for n in names if names.count(n) > 1})
        mistakes = self._taught_and_measured()
        if repeated and not mistakes:
            mistakes.append(f"two data sets are called {', '.join(repeated)}: give each a name")
        if self.dial is not None and not self.keep:
            mistakes.append("dial needs keep: without items to keep, no budget can be held")
        if self.dial is not None and self.training.density < 1:
            mistakes.append("dial and training.density: a dial finds how much may stay; give one")
        if self.drift.budget is not None and not self.drift.every:
            mistakes.append("drift.budget needs drift.every: how often drift is measured")
        if self.drift.action == "raise_anchor" and not (self.anchor and self.anchor.weight):
            mistakes.append("drift.action: raise_anchor needs an anchor with a weight")
        if self.training.load_best_model_at_end and not self.training.eval_steps:
            mistakes.append("training.load_best_model_at_end needs training.eval_steps")
        if self.training.eval_steps and not self.skill.validation:
            mistakes.append("training.eval_steps needs rows to validate on: skill.validation is 0")
        mistakes += self._shared_out()
        if mistakes:
            raise ValueError("\n  ".join(mistakes))
        return self

    def _shared_out(self) -> list[str]:
        """Name what can't be where several devices, or fewer bits, have the model."""
        mistakes: list[str] = []
        projects = self.anchor is not None and self.anchor.projection > 0
        for name, asked in (
            ("anchor.projection", projects),
            ("training.pull_to_base", self.training.pull_to_base > 0),
        ):
            if asked and (owner := self.training.step_owner):
                mistakes.append(
                    f"{name} can't be used with {owner}: it needs steps that one optimiser takes "
                    "at once"
                )
        if self.training.quantize_frozen and (self.training.deepspeed or self.training.fsdp):
            mistakes.append("training.quantize_frozen can't be used with deepspeed or fsdp")
        if self.training.deepspeed and (self.training.save_steps or self.training.eval_steps):
            mistakes.append(
                "training.deepspeed writes checkpoints that can't be gone on from: leave out "
                "save_steps and eval_steps"
            )
        if self.training.torch_compile and (
            self.training.deepspeed or self.training.fsdp or self.training.quantize_frozen
        ):
            mistakes.append(
                "training.torch_compile can't be used with deepspeed, fsdp or quantize_frozen"
            )
        if self.training.fsdp and self.training.deepspeed:
            mistakes.append("training.fsdp and training.deepspeed both share the model out")
        if self.training.fsdp_config is not None and not self.training.fsdp:
            mistakes.append("training.fsdp_config needs training.fsdp")
        if self.training.fsdp and self.drift.every:
            mistakes.append("drift.every can't be used with training.fsdp: no device has the model")
        return mistakes

    def _taught_and_measured(self) -> list[str]:
        """Name what is sure to overlap with the skill, whatever its rows turn out to be."""
        if self.allow_overlap:
            return []
        skill = self.skill
        measured = {f"keep.{i}.path": (k.path, k.split) for i, k in enumerate(self.keep)}
        if skill.test_path is not None:
            measured["skill.test_path"] = (skill.test_path, skill.test_split)
        return [
            f"{key}: {path} is the skill's own file, so its rows would be both taught and "
            f"{'tested' if key.startswith('skill') else 'kept'}; give other rows, or set "
            "allow_overlap to true (the record will say so)"
            for key, (path, split) in measured.items()
            if split == skill.split and os.path.realpath(path) == os.path.realpath(skill.path)
        ]


def parse_config(values: dict[str, Any], source: str) -> RunConfig:
    """Validate `values` as those of a run and report every mistake at once.

    Raises:
        UsageError: one line per wrong or unknown key.
    """
    return parse_settings(RunConfig, values, f"a run described by {source}")


def parse_model_settings(values: dict[str, Any], source: str) -> ModelSettings:
    """Validate `values` as those of a model alone; errors are those of `parse_config`."""
    return parse_settings(ModelSettings, values, f"a model described by {source}")


def parse_data_settings(values: dict[str, Any], asked: str) -> DataSettings:
    """Validate `values` as those of one set of rows; errors are those of `parse_config`."""
    return parse_settings(DataSettings, values, asked)


def parse_settings(kind: type[Kind], values: dict[str, Any], asked: str) -> Kind:
    """Validate `values` as settings of a kind and report every mistake at once.

    Raises:
        UsageError: one line per wrong or unknown key.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UsageError(
            asked=asked,
            found="\n  ".join(["", *describe_mistakes(error, kind)]),
            do="correct these keys; docs/configuration.md lists them all",
        ) from None


def load_config(path: Path, overrides: dict[str, Any] | None = None) -> RunConfig:
    """Read a YAML file; `overrides` (dotted keys) win over it.

    Raises:
        UsageError: the file is missing, is not YAML, or has wrong keys.
    """
    values = read_yaml(path, f"a run described by {path}")
    return parse_config(override(values, overrides or {}), str(path))
