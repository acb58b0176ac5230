"""The table of families: which modules of a model are its language model, tower and projector.

Owns `families.yaml` and its reading. A family that is not in the table is refused: guessing by
substring is how a vision tower's `q_proj` comes to be trained by mistake.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from narrowtune.core.errors import UnknownFamilyError
from narrowtune.core.recipes import Component, Matrix


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LanguageModelPaths(_Entry):
    """Modules of the language model, by full name in memory."""

    decoder: str
    layers: str
    embeddings: str
    final_norm: str
    head: str


class FeatureLayer(_Entry):
    """Which hidden state of the tower the projector reads.

    Attributes:
        setting: name of the configuration's entry: an index into the tower's hidden states
            (0 is the input of the first layer, negative counts from the end), or a list of them.
        roots: full names of the module that has the layers; the first that exists is used.
        layers: name of the layers below the root.
        after: modules below the root that come after the last layer, where there are such.
    """

    setting: str
    roots: tuple[str, ...]
    layers: str
    after: tuple[str, ...]


class _FamilyEntry(_Entry):
    name: str
    title: str
    model_type: str
    architecture: str
    decoders: tuple[str, ...]
    language_model: LanguageModelPaths
    vision_tower: tuple[str, ...] = ()
    projector: tuple[str, ...] = ()
    feature_layer: FeatureLayer | None = None
    stacks_features: bool = False
    transformers: str | None = None
    on_disk: tuple[tuple[str, str], ...] = ()


class StoredOtherwise(_Entry):
    """How checkpoints store a tensor that is another in memory.

    Attributes:
        parts: names below a decoder layer; `*` is the number of an expert.
        transposed: whether the last two dimensions are in the other order.
    """

    parts: tuple[str, ...]
    transposed: bool = False


class _Table(_Entry):
    decoders: dict[str, dict[Matrix, tuple[tuple[str, ...], ...]]]
    stored: dict[str, dict[str, StoredOtherwise]]
    families: tuple[_FamilyEntry, ...]

    @field_validator("decoders", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        def lists(entry: Any) -> list[list[str]]:
            kinds = [entry] if isinstance(entry, str) else entry
            return [[kind] if isinstance(kind, str) else kind for kind in kinds]

        return {
            name: {role: lists(entry) for role, entry in matrices.items()}
            for name, matrices in value.items()
        }

    @model_validator(mode="after")
    def _complete(self) -> _Table:
        roles = {"q", "k", "v", "o", "gate", "up", "down"}
        for name, matrices in self.decoders.items():
            if set(matrices) != roles:
                raise ValueError(f"decoder {name}: needs exactly the roles {sorted(roles)}")
        if strangers := set(self.stored) - set(self.decoders):
            raise ValueError(f"stored: no such decoders: {sorted(strangers)}")
        for family in self.families:
            unknown = set(family.decoders) - set(self.decoders)
            if unknown or not family.decoders:
                raise ValueError(f"family {family.name}: no such decoders: {sorted(unknown)}")
        types = [family.model_type for family in self.families]
        if len(types) != len(set(types)):
            raise ValueError("a model_type belongs to two families")
        return self


@dataclass(frozen=True)
class Family:
    """A family as one model has it.

    Attributes:
        name: as in the table.
        title: for people.
        model_types: `model_type` in config.json.
        architectures: model classes of transformers that the paths hold for.
        language_model: where the language model's modules are.
        matrices: role of a projection → for each kind of layer, the modules below it that hold it,
            or parameters where experts are one tensor. A layer is of one kind.
        stored: name below a decoder layer → how checkpoints may store it otherwise.
        vision_tower: full names of modules or parameters that make up the tower.
        projector: the same for the projector.
        feature_layer: how to find what the tower computes in vain; None if nothing.
        stacks_features: whether what pictures become is one tensor, as many states for each.
        transformers: the oldest version with which it is known to work; None for any that is
            supported.
        on_disk: (name in memory, name on disk) prefixes, the published one first.
    """

    name: str
    title: str
    model_types: tuple[str, ...]
    architectures: tuple[str, ...]
    language_model: LanguageModelPaths
    matrices: Mapping[Matrix, tuple[tuple[str, ...], ...]]
    stored: Mapping[str, StoredOtherwise]
    vision_tower: tuple[str, ...]
    projector: tuple[str, ...]
    feature_layer: FeatureLayer | None
    stacks_features: bool
    transformers: str | None
    on_disk: tuple[tuple[str, str], ...]

    @property
    def is_multimodal(self) -> bool:
        """Whether the model reads pictures."""
        return bool(self.vision_tower)

    @property
    def components(self) -> tuple[Component, ...]:
        """The components that a model of this family has."""
        return ("language_model", "projector", "vision_tower") if self.is_multimodal else _TEXT

    def component(self, name: str) -> Component | None:
        """The component of the parameter called `name` in memory; None if the table has none.

        The longest matching name decides, since a projector may lie inside a tower's module.
        """
        paths: dict[str, Component] = {
            self.language_model.decoder: "language_model",
            self.language_model.head: "language_model",
            **dict.fromkeys(self.projector, "projector"),
            **dict.fromkeys(self.vision_tower, "vision_tower"),
        }
        found = [path for path in paths if is_below(name, path)]
        return paths[max(found, key=len)] if found else None

    def disk_candidates(self, name: str) -> tuple[str, ...]:
        """Names on disk that a parameter called `name` in memory may have.

        The name in published checkpoints comes first, the name in memory last.
        """
        found = [disk + name[len(path) :] for path, disk in self.on_disk if is_below(name, path)]
        return tuple(dict.fromkeys((*found, name)))

    def stored_otherwise(self, name: str) -> StoredOtherwise | None:
        """How checkpoints may store the parameter called `name` in memory otherwise.

        Its parts are named in full, as they would be in memory.
        """
        layers = self.language_model.layers
        if not is_below(name, layers):
            return None
        index, _, below = name[len(layers) + 1 :].partition(".")
        found = self.stored.get(below)
        if found is None:
            return None
        parts = tuple(f"{layers}.{index}.{part}" for part in found.parts)
        return found.model_copy(update={"parts": parts})

    def is_in_place_of_experts(self, name: str) -> bool:
        """Whether a layer without experts has the parameter where others have theirs.

        peft takes adapters of such a one for adapters of experts.
        """
        layers = self.language_model.layers
        if not is_below(name, layers):
            return False
        below = name[len(layers) + 1 :].partition(".")[2]
        parts = (part for other in self.stored.values() for part in other.parts)
        return any("*" in part and part.replace("experts.*.", "") == below for part in parts)


_TEXT: tuple[Component, ...] = ("language_model",)


def is_below(name: str, path: str) -> bool:
    """Whether the dotted `name` is `path` or lies below it."""
    return name == path or name.startswith(path + ".")


@cache
def _table() -> _Table:
    text = files("narrowtune.models").joinpath("families.yaml").read_text(encoding="utf-8")
    return _Table.model_validate(yaml.safe_load(text))


def known_families() -> tuple[str, ...]:
    """Names of the families in the table."""
    return tuple(entry.name for entry in _table().families)


def find_family(model_or_config: Any) -> Family:
    """Return the family of a model, a transformers configuration, or a parsed config.json.

    Raises:
        UnknownFamilyError: the table has no such model type, model class or language model.
    """
    config = getattr(model_or_config, "config", model_or_config)
    model_type = _entry(config, "model_type")
    entry = next((e for e in _table().families if e.model_type == model_type), None)
    if entry is None:
        raise _unknown(f"model_type {model_type!r}", f"no family of the model_type {model_type!r}")

    if config is model_or_config:
        classes = _entry(config, "architectures") or [entry.architecture]
    else:
        classes = [c.__name__ for c in type(model_or_config).__mro__]
    if entry.architecture not in classes:
        raise _unknown(
            f"a {entry.title} model of the class {classes[0]}",
            f"{entry.title} is known as {entry.architecture} only",
        )

    text_type = model_type
    if entry.vision_tower:
        text = _entry(config, "text_config") or {}
        # Where config.json says nothing, transformers takes the family's first decoder.
        text_type = _entry(text, "model_type") or entry.decoders[0]
        if text_type == model_type:  # Qwen2.5-VL's older files repeat the outer type
            text_type = entry.decoders[0]
    if text_type not in entry.decoders:
        raise _unknown(
            f"{entry.title} with a language model of the model_type {text_type!r}",
            f"{entry.title} is known with {', '.join(entry.decoders)}",
        )
    return Family(
        name=entry.name,
        title=entry.title,
        model_types=(entry.model_type,),
        architectures=(entry.architecture,),
        language_model=entry.language_model,
        matrices=_table().decoders[text_type],
        stored=_table().stored.get(text_type, {}),
        vision_tower=entry.vision_tower,
        projector=entry.projector,
        feature_layer=entry.feature_layer,
        stacks_features=entry.stacks_features,
        transformers=entry.transformers,
        on_disk=entry.on_disk,
    )


def _entry(config: Any, key: str) -> Any:
    return config.get(key) if isinstance(config, Mapping) else getattr(config, key, None)


def _unknown(asked: str, found: str) -> UnknownFamilyError:
    return UnknownFamilyError(
        asked=f"use {asked}",
        found=f"{found}; known families are {', '.join(known_families())}",
        do="add the family to models/families.yaml as docs/how-to-add-a-family.md explains",
    )
