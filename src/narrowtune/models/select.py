"""Recipe + model → the exact names that train.

Owns `Selection`. Names are exact and checked to exist; nothing is ever matched by substring.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from narrowtune.core.errors import SelectionError
from narrowtune.core.recipes import RECIPES, Component, Recipe, get_recipe
from narrowtune.core.results import ComponentCount, LayerCount
from narrowtune.models.families import Family, find_family, is_below
from narrowtune.models.structure import (
    check_trainable,
    find_components,
    find_fused,
    find_projections,
    find_ties,
    find_unused,
    show_names,
)

EXPERTS = (".experts.gate_up_proj", ".experts.down_proj")
"""How names of tensors that hold all experts of a layer end."""


@dataclass(frozen=True)
class Selection:
    """What a recipe trains in one model.

    Attributes:
        recipe: name of the recipe.
        family: name of the model's family.
        names: parameters that train, as named in memory, in the model's order.
        disk_names: the same → their names in published checkpoints. For a given folder,
            `narrowtune.models.disk.locate` says which names it really has.
        excluded: parameters that belong to the recipe but that the forward pass never uses →
            why.
        fused: matrices that hold several projections, and train whole.
        notes: sentences for people.
        num_parameters: numbers that train.
        components: all components of the model, with what trains in each.
        layers: what trains, by decoder layer and, outside of layers, by part.
    """

    recipe: str
    family: str
    names: tuple[str, ...]
    disk_names: Mapping[str, str]
    excluded: Mapping[str, str]
    fused: tuple[str, ...]
    notes: tuple[str, ...]
    num_parameters: int
    components: tuple[ComponentCount, ...]
    layers: tuple[LayerCount, ...]

    def __str__(self) -> str:
        """A table for people: by component, then by layer, then what needs saying."""
        total = sum(c.num_parameters for c in self.components)
        lines = [
            f"{self.recipe} on {self.family}: {len(self.names)} tensors, "
            f"{self.num_parameters:,} of {total:,} parameters "
            f"({100 * self.num_parameters / total:.2f} %) train",
            "",
            *_columns(
                [("component", "parameters", "trainable")]
                + [
                    (c.component, f"{c.num_parameters:,}", f"{c.num_trainable:,}")
                    for c in self.components
                ]
            ),
            "",
            *_columns(
                [("where", "each", "matrices")]
                + [
                    (where, f"{first.num_trainable:,}", ", ".join(first.matrices))
                    for where, first in _runs(self.layers)
                ]
            ),
        ]
        reasons: dict[str, int] = {}
        for reason in self.excluded.values():
            reasons[reason] = reasons.get(reason, 0) + 1
        remarks = [f"{count} tensors left out: {reason}" for reason, count in reasons.items()]
        remarks += self.notes
        return "\n".join([*lines, *([""] if remarks else []), *remarks])


def resolve(model: nn.Module, recipe: str | Recipe) -> Selection:
    """Say what `recipe` trains in `model`. Looks, and changes nothing.

    Raises:
        UsageError: there is no recipe of that name.
        UnknownFamilyError: the table does not know the model.
        SelectionError: the model lacks the recipe's parts, is built in an unexpected way, is
            quantised, or stores a projection that trains and one that does not in one matrix.
    """
    recipe = get_recipe(recipe) if isinstance(recipe, str) else recipe
    family = find_family(model)
    check_trainable(model, family)
    components = find_components(model, family)
    if not set(recipe.components) & set(family.components):
        raise SelectionError(
            asked=f"the recipe {recipe.name!r} on a {family.title} model",
            found=f"a text model, without {' or '.join(recipe.components)}",
            do="choose one of "
            + ", ".join(r.name for r in RECIPES.values() if "language_model" in r.components),
        )

    excluded: dict[str, str] = {}
    fused: dict[str, tuple[str, ...]] = {}
    if recipe.matrices:
        modules = find_fused(family, recipe.matrices, recipe.name)
        fused = {module: roles for module, roles in modules.items() if len(roles) > 1}
        chosen = set(find_projections(model, family, recipe.matrices))
    else:
        mine = {n for n, component in components.items() if component in recipe.components}
        excluded = {n: why for n, why in find_unused(model, family).items() if n in mine}
        chosen = mine - set(excluded)
    names = tuple(name for name in components if name in chosen)
    _check(names, recipe, family, components)

    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    ties = find_ties(model)
    return Selection(
        recipe=recipe.name,
        family=family.name,
        names=names,
        disk_names={name: _published(family, name) for name in names},
        excluded=excluded,
        fused=tuple(f"{module} = {', '.join(roles)}" for module, roles in fused.items()),
        notes=tuple(
            [
                f"{m} holds {', '.join(r)} in one matrix, which trains whole"
                for m, r in fused.items()
            ]
            + [
                f"{', '.join(ties[name])} is the same tensor as {name} (tied): it trains once"
                for name in names
                if name in ties
            ]
            + _about_experts(names, sizes)
        ),
        num_parameters=sum(sizes[name] for name in names),
        components=_count_components(components, sizes, names, family),
        layers=_count_layers(names, sizes, family),
    )


def select(
    model: nn.Module, recipe: str | Recipe, *, dtype: torch.dtype | None = None
) -> Selection:
    """Resolve `recipe` and set `requires_grad` on exactly its parameters.

    Args:
        model: a transformers model.
        recipe: name of a recipe, or one of your own.
        dtype: what the selected parameters are held in from now on; as they are unless given. A
            bf16 weight swallows most steps of a small learning rate, so give `torch.float32`
            where the model is in bf16, and train under autocast (`bf16=True`). `extract` rounds
            to the base's dtype; selecting again with the model's own rounds the model as well
            (`model.to(…)` would round buffers that are wider, too). What an earlier selection
            held in another dtype stays so, since it may be trained; `extract` rounds that as well.

    Raises:
        UnknownFamilyError, SelectionError: as `resolve`.
    """
    selection = resolve(model, recipe)
    chosen = set(selection.names)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
        if dtype is not None and name in chosen:
            parameter.data = parameter.data.to(dtype)
    return selection


def _about_experts(names: tuple[str, ...], sizes: Mapping[str, int]) -> list[str]:
    """Say that all experts of a mixture train, where they do: few mean that."""
    trained = sum(sizes[name] for name in names if name.endswith(EXPERTS))
    if not trained:
        return []
    share = 100 * trained / sum(sizes.values())
    return [
        f"the experts of a mixture train, all of them, {share:.0f} % of the model: sa_proj alone "
        "leaves them frozen"
    ]


def _published(family: Family, name: str) -> str:
    """A parameter's name in published checkpoints; of parts, all of their names."""
    other = family.stored_otherwise(name)
    parts = [name] if other is None else other.parts
    return ", ".join(family.disk_candidates(part)[0] for part in parts)


def _check(
    names: tuple[str, ...], recipe: Recipe, family: Family, components: dict[str, Component]
) -> None:
    """The last gate: something is selected, and nothing outside of the recipe's components."""
    strangers = [name for name in names if components[name] not in recipe.components]
    if names and not strangers:
        return
    raise SelectionError(
        asked=f"the recipe {recipe.name!r} on a {family.title} model",
        found=f"it would train parameters of another part: {show_names(strangers)}"
        if strangers
        else f"it selects nothing; the model's parameters are {show_names(list(components))}",
        do="check the family's paths in models/families.yaml",
    )


def _count_components(
    components: dict[str, Component], sizes: dict[str, int], names: tuple[str, ...], family: Family
) -> tuple[ComponentCount, ...]:
    return tuple(
        ComponentCount(
            component=part,
            num_parameters=sum(sizes[n] for n, c in components.items() if c == part),
            num_trainable=sum(sizes[n] for n in names if components[n] == part),
        )
        for part in family.components
    )


def _count_layers(
    names: tuple[str, ...], sizes: dict[str, int], family: Family
) -> tuple[LayerCount, ...]:
    """Trainable parameters by decoder layer; elsewhere by the table's part that holds them."""
    layers = family.language_model.layers
    parts = (*family.projector, *family.vision_tower)
    groups: dict[str, list[str]] = {}
    for name in names:
        if is_below(name, layers):
            where = f"{layers}.{name[len(layers) + 1 :].split('.')[0]}"
        else:
            where = next((p for p in parts if is_below(name, p)), name.rpartition(".")[0])
        groups.setdefault(where, []).append(name)
    return tuple(
        LayerCount(
            name=where,
            num_trainable=sum(sizes[name] for name in members),
            matrices=list(dict.fromkeys(_module(name, where) for name in members))
            if is_below(where, layers)
            else [],
        )
        for where, members in groups.items()
    )


def _module(name: str, where: str) -> str:
    """The module of a parameter below `where`; experts that are one tensor are their own."""
    below = name[len(where) + 1 :]
    return below.removesuffix(".weight").removesuffix(".bias")


def _runs(layers: tuple[LayerCount, ...]) -> list[tuple[str, LayerCount]]:
    """Neighbouring layers with the same content, as one line: `model.layers.0 … 29`."""
    runs: list[list[LayerCount]] = []
    for layer in layers:
        last = runs[-1][-1] if runs else None
        if (
            last is not None
            and layer.matrices
            and (last.matrices, last.num_trainable) == (layer.matrices, layer.num_trainable)
        ):
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return [
        (run[0].name if len(run) == 1 else f"{run[0].name} … {run[-1].name.split('.')[-1]}", run[0])
        for run in runs
    ]


def _columns(rows: list[tuple[str, str, str]]) -> list[str]:
    """Rows as text: the first column left, the second right, the third as it is."""
    widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
    return [
        f"  {left:<{widths[0]}}  {middle:>{widths[1]}}  {right}".rstrip()
        for left, middle, right in rows
    ]
