from __future__ import annotations

import pytest

from narrowtune.core.errors import UsageError
from narrowtune.core.recipes import RECIPES, get_recipe

MATRICES = {
    "sa_proj": {"q", "k", "v", "o"},
    "sa_qkv": {"q", "k", "v"},
    "sa_o": {"o"},
    "mlp": {"gate", "up", "down"},
    "mlp_gate_up": {"gate", "up"},
    "mlp_down": {"down"},
    "sa_proj+mlp_gate_up": {"q", "k", "v", "o", "gate", "up"},
    "language_model": set(),
    "projector": set(),
    "vision_tower": set(),
    "full": set(),
}


def test_every_recipe_and_its_matrices():
    assert {name: set(recipe.matrices) for name, recipe in RECIPES.items()} == MATRICES
    assert all(name == recipe.name for name, recipe in RECIPES.items())


def test_a_recipe_with_matrices_touches_the_language_model_only():
    for recipe in RECIPES.values():
        if recipe.matrices:
            assert recipe.components == ("language_model",)


def test_whole_components():
    assert get_recipe("vision_tower").components == ("vision_tower",)
    assert get_recipe("projector").components == ("projector",)
    assert set(get_recipe("full").components) == {"vision_tower", "projector", "language_model"}


def test_an_unknown_recipe_lists_those_that_exist():
    with pytest.raises(UsageError) as caught:
        get_recipe("lora")
    assert "'lora'" in caught.value.asked
    assert all(name in caught.value.do for name in RECIPES)
