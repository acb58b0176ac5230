"""Recipes as values: which matrices of which part of a model train.

Names and definitions follow "How to Teach Large Multimodal Models New Skills"
(arXiv 2510.08564, section 3): `sa_proj` trains q, k, v and o of the language model's
self-attention; `mlp_gate_up` trains gate and up with down frozen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from narrowtune.core.errors import UsageError
from narrowtune.core.mistakes import did_you_mean

Component = Literal["language_model", "projector", "vision_tower"]
"""A named part of a model. Everything that is neither tower nor projector is language model."""

Matrix = Literal["q", "k", "v", "o", "gate", "up", "down"]
"""A projection inside a decoder layer, by the role it has and not by its name on disk."""

ATTENTION: tuple[Matrix, ...] = ("q", "k", "v", "o")
MLP: tuple[Matrix, ...] = ("gate", "up", "down")


@dataclass(frozen=True)
class Recipe:
    """A named way to tune.

    Attributes:
        name: what the user types.
        components: the parts that the recipe may touch.
        matrices: the projections inside the language model's decoder layers that train, with
            their biases; empty means every parameter of the components.
        summary: one line for people.
    """

    name: str
    components: tuple[Component, ...]
    matrices: tuple[Matrix, ...]
    summary: str


_LM: tuple[Component, ...] = ("language_model",)

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("sa_proj", _LM, ATTENTION, "self-attention q, k, v, o of the language model"),
        Recipe("sa_qkv", _LM, ("q", "k", "v"), "self-attention q, k, v; o frozen"),
        Recipe("sa_o", _LM, ("o",), "self-attention o only"),
        Recipe("mlp", _LM, MLP, "gate, up and down of every MLP"),
        Recipe("mlp_gate_up", _LM, ("gate", "up"), "gate and up of every MLP; down frozen"),
        Recipe("mlp_down", _LM, ("down",), "down of every MLP only"),
        Recipe(
            "sa_proj+mlp_gate_up",
            _LM,
            (*ATTENTION, "gate", "up"),
            "self-attention projections together with gate and up",
        ),
        Recipe("language_model", _LM, (), "the whole language model, embeddings and head included"),
        Recipe("projector", ("projector",), (), "the projector between tower and language model"),
        Recipe("vision_tower", ("vision_tower",), (), "the vision tower"),
        Recipe(
            "full", ("vision_tower", "projector", "language_model"), (), "every parameter in use"
        ),
    )
}


def get_recipe(name: str) -> Recipe:
    """Return the recipe called `name`.

    Raises:
        UsageError: there is no such recipe; the message lists those that exist.
    """
    if name not in RECIPES:
        raise UsageError(
            asked=f"the recipe {name!r}",
            found="no recipe of that name" + did_you_mean(name, RECIPES),
            do="choose one of " + ", ".join(RECIPES),
        )
    return RECIPES[name]
