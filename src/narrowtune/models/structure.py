"""A loaded model held against its family's table: which parameter belongs to what.

Owns the checks that a model is built as the table says, and which of its buffers the forward pass
recomputes. Whatever does not fit is refused with the
names that were seen, never skipped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from narrowtune.core.errors import SelectionError
from narrowtune.core.recipes import Component, Matrix
from narrowtune.models.families import Family, is_below

_SHOWN = 8


def check_trainable(model: nn.Module, family: Family) -> None:
    """Refuse weights that are not plain floating-point parameters.

    Raises:
        SelectionError: the model is quantised.
    """
    quantised = [n for n, p in model.named_parameters() if not p.is_floating_point()]
    settings = getattr(getattr(model, "config", None), "quantization_config", None)
    if quantised or settings is not None:
        raise SelectionError(
            asked=f"select parameters of a {family.title} model",
            found="a quantised model"
            + (f": {show_names(quantised)} are not floating-point" if quantised else ""),
            do="load the checkpoint in bfloat16, float16 or float32",
        )


def find_components(model: nn.Module, family: Family) -> dict[str, Component]:
    """Map every parameter of `model` to its component, in the model's order.

    A tensor under two names (a tied head) is listed once, under the first.

    Raises:
        SelectionError: a part of the table is not in the model, or a parameter is in no part.
    """
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    paths = family.language_model
    wanted = [paths.decoder, paths.layers, paths.embeddings, paths.final_norm, paths.head]
    for path in (*wanted, *family.vision_tower, *family.projector):
        if not any(is_below(name, path) for name in names):
            raise _unexpected(family, f"no parameters under {path!r}", names)
    components = {name: family.component(name) for name, _ in model.named_parameters()}
    strangers = [name for name, component in components.items() if component is None]
    if strangers:
        raise _unexpected(family, "parameters in no part that the table knows", strangers)
    return {name: component for name, component in components.items() if component is not None}


def count_layers(model: nn.Module, family: Family) -> int:
    """The number of decoder layers."""
    return len(model.get_submodule(family.language_model.layers))  # type: ignore[arg-type]


def find_projections(model: nn.Module, family: Family, roles: Sequence[Matrix]) -> list[str]:
    """Full names of the parameters of the projections `roles`, biases included.

    Raises:
        SelectionError: a layer lacks one of them, or has it twice, or a module is no plain
            projection.
    """
    names: list[str] = []
    for index in range(count_layers(model, family)):
        layer_path = f"{family.language_model.layers}.{index}"
        layer = model.get_submodule(layer_path)
        parameters = dict(layer.named_parameters())
        modules = [
            module
            for role in roles
            for module in modules_of(role, family, layer_path, list(parameters))
        ]
        for module in dict.fromkeys(modules):
            own = {name for name in parameters if is_below(name, module)}
            extra = own - {module, f"{module}.weight", f"{module}.bias"}
            if extra:
                raise _unexpected(
                    family, f"more than a weight and a bias in {layer_path}.{module}", sorted(extra)
                )
            names += [f"{layer_path}.{name}" for name in parameters if name in own]
    return names


def modules_of(
    role: Matrix, family: Family, layer_path: str, parameters: Sequence[str]
) -> tuple[str, ...]:
    """The modules that hold a role in one layer, or parameters where experts are one tensor.

    Args:
        role: of a projection.
        family: the model's family.
        layer_path: of the layer, for the error.
        parameters: names of the layer's parameters, below it.

    Raises:
        SelectionError: the layer is of no kind that the family has, or of more than one.
    """
    kinds = family.matrices[role]
    found = [kind for kind in kinds if all({m, f"{m}.weight"} & set(parameters) for m in kind)]
    if len(found) != 1:
        named = " or ".join(" with ".join(f"{m}.weight" for m in kind) for kind in kinds)
        how = "no" if not found else "more than one of"
        raise _unexpected(family, f"{how} {named} in {layer_path}", list(parameters))
    return found[0]


def find_fused(
    family: Family, roles: Sequence[Matrix], recipe: str
) -> dict[str, tuple[Matrix, ...]]:
    """Modules that hold the projections `roles`, each with all the roles it holds.

    Raises:
        SelectionError: a module also holds a projection that the recipe leaves frozen.
    """
    modules: dict[str, tuple[Matrix, ...]] = {}
    every = [module for role in roles for kind in family.matrices[role] for module in kind]
    for module in dict.fromkeys(every):
        held = tuple(
            role for role, kinds in family.matrices.items() if any(module in k for k in kinds)
        )
        outside = [r for r in held if r not in roles]
        if outside:
            raise SelectionError(
                asked=f"the recipe {recipe!r} on a {family.title} model",
                found=f"{module} stores {', '.join(held)} in one matrix, "
                f"and the recipe leaves {', '.join(outside)} frozen",
                do=f"choose a recipe that trains all of {', '.join(held)}, or none of them",
            )
        modules[module] = held
    return modules


def find_unused(model: nn.Module, family: Family) -> dict[str, str]:
    """Parameters that the forward pass never uses, with the reason.

    The projector of LLaVA's kind reads one hidden state of the tower (`vision_feature_layer`);
    layers after it, the tower's last norm and its pooling head get no gradient. Hidden state 0 is
    the input of layer 0, hidden state i the output of layer i − 1.

    Raises:
        SelectionError: the table's root of the tower is not in the model.
    """
    rule = family.feature_layer
    if rule is None:
        return {}
    modules = dict(model.named_modules())
    root = next((r for r in rule.roots if f"{r}.{rule.layers}" in modules), None)
    if root is None:
        raise _unexpected(family, f"no layers under {' or '.join(rule.roots)}", list(modules))
    num_layers = len(modules[f"{root}.{rule.layers}"])
    setting = getattr(model.config, rule.setting)
    chosen = [setting] if isinstance(setting, int) else list(setting)
    last = max(index if index >= 0 else num_layers + 1 + index for index in chosen)
    reason = (
        f"never used: the projector reads the tower's hidden state {last} of {num_layers} "
        f"({rule.setting} = {setting})"
    )
    dead = [f"{root}.{rule.layers}.{index}" for index in range(last, num_layers)]
    dead += [f"{root}.{name}" for name in rule.after]
    return {
        name: reason
        for name, _ in model.named_parameters()
        if any(is_below(name, path) for path in dead)
    }


def find_ties(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Parameters with several names: the first name → the other names."""
    first: dict[int, str] = {id(p): name for name, p in model.named_parameters()}
    others: dict[str, tuple[str, ...]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner = first[id(parameter)]
        if owner != name:
            others[owner] = (*others.get(owner, ()), name)
    return others


def show_names(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    shown = ", ".join(names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _unexpected(family: Family, found: str, names: Sequence[str]) -> SelectionError:
    return SelectionError(
        asked=f"find the parts of a {family.title} model",
        found=f"{found}; names there: {show_names(names) or 'none'}",
        do="check that the model is unchanged (no adapters, no wrapper), and that "
        "models/families.yaml describes this version of it",
    )


def recomputed_buffers(model: nn.Module) -> set[str]:
    """Return the rotary tables that follow from the length of the input, by name.

    Answers of a model that has some depend on the longest row of their batch.
    """
    recomputed: set[str] = set()
    for prefix, module in model.named_modules():
        rope_type = getattr(module, "rope_type", None)
        rope_types = rope_type.values() if isinstance(rope_type, Mapping) else [str(rope_type)]
        if any("dynamic" in kind or kind == "longrope" for kind in rope_types):
            recomputed.update(
                f"{prefix}.{name}".lstrip(".")
                for name, _ in module.named_buffers(recurse=False)
                if name.endswith("inv_freq") and not name.endswith("original_inv_freq")
            )
    return recomputed
