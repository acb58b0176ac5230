"""A wrong setting is answered in our own words: its key, what was given, what is allowed."""

from __future__ import annotations

import re

import pytest
import yaml

from narrowtune.core.aliases import ALIASES
from narrowtune.core.anchor_settings import AnchorSettings
from narrowtune.core.config import RunConfig, TrainingSettings, parse_config
from narrowtune.core.data_settings import SkillSettings
from narrowtune.core.errors import UsageError
from narrowtune.core.mistakes import allowed_values, did_you_mean


def line(key: str, **values) -> str:
    """The line about `key` in the error for these settings."""
    with pytest.raises(UsageError) as caught:
        parse_config({"model": "m", "skill": "s.jsonl", **values}, "test")
    return next(x.strip() for x in caught.value.found.split("\n") if x.startswith(f"  {key}: "))


@pytest.mark.parametrize(
    ("key", "values", "words"),
    [
        ("seed", {"seed": "x"}, "'x' is given; it takes a whole number"),
        ("skill.limit", {"skill": {"path": "s", "limit": 0}}, "0 is given; it takes a whole"),
        ("training.eval_steps", {"training": {"eval_steps": 1.5}}, "a whole number from 0"),
        ("training.packing", {"training": {"packing": "maybe"}}, "it takes true or false"),
        ("training.learning_rate", {"training": {"learning_rate": -1}}, "a number above 0"),
        ("skill.test", {"skill": {"path": "s", "test": 1}}, "a number from 0 and below 1"),
        ("budget", {"budget": float("nan")}, "nan is given; it takes a number from 0"),
        ("training", {"training": 5}, "5 is given; it takes a section of keys"),
        ("anchor", {"anchor": 0.3}, "0.3 is given; it takes true or a section of keys or nothing"),
        ("keep", {"keep": 5}, "it takes a list, each a path or a section of keys"),
        ("keep.1", {"keep": ["a.jsonl", 5]}, "5 is given; it takes a path or a section of keys"),
        ("model", {"model": None}, "nothing is given; it takes text"),
        ("keep.0.path", {"keep": [{}]}, "missing; it takes text that is not empty"),
        (
            "keep.0.metric",
            {"keep": [{"path": "a", "metric": "numbr"}]},
            "'numbr' is given (did you mean number?); it takes exact_match / contains / number",
        ),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(key, values, words):
    assert words in line(key, **values)


@pytest.mark.parametrize(
    ("key", "values", "meant"),
    [
        ("budgte", {"budgte": 1}, "budget"),
        ("training.epochs", {"training": {"epochs": 2}}, "num_train_epochs"),
        ("learning_rate", {"learning_rate": 1}, "training.learning_rate"),
        ("training.max_length", {"training": {"max_length": 9}}, "max_length"),
        ("keep.0.pth", {"keep": [{"pth": "a"}]}, "path"),
    ],
)
def test_an_unknown_key_says_which_was_meant(key, values, meant):
    assert line(key, **values).endswith(f"no such key (did you mean {meant}?)")


def test_the_keys_that_there_are_are_listed_once_for_each_section():
    values = {"a": 1, "b": 1, "training": {"c": 1, "d": 1}, "keep": [{"path": "x", "e": 1}]}
    with pytest.raises(UsageError) as caught:
        parse_config({"model": "m", "skill": "s.jsonl", **values}, "test")
    found = caught.value.found.split("\n")
    assert sum("no such key" in each for each in found) == 5
    listed = [each.strip() for each in found if " are " in each]
    assert [each.partition(" are ")[0] for each in sorted(listed)] == [
        "keys",
        "keys of keep.0",
        "keys of training",
    ]
    assert all(each.endswith(("seed", "max_refused", "fsdp_config")) for each in listed)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("model_name_or_path", {"model_name_or_path": "x"}),
        ("cutoff_len", {"cutoff_len": 1}),
        ("training.gradient_accumulation_steps", {"training": {"gradient_accumulation_steps": 2}}),
        ("training.bf16", {"training": {"bf16": True}}),
    ],
)
def test_what_other_tools_call_a_setting_is_known(key, values):
    said = line(key, **values).partition("no such key; here that is ")[2]
    assert said == ALIASES[key.rpartition(".")[2]]


def test_every_alias_leads_to_something_that_is_there():
    named = set(re.findall(r"(?:training|skill)\.\w+", " ".join(ALIASES.values())))
    sections = {"training": TrainingSettings, "skill": SkillSettings}
    for name in named:
        section, _, key = name.partition(".")
        assert key in sections[section].model_fields, name
    taken = set(RunConfig.model_fields) | set(TrainingSettings.model_fields)
    assert not taken & set(ALIASES)


@pytest.mark.parametrize(
    ("key", "given", "why"),
    [
        ("1", "1: x", ""),
        ("true", "yes: x", " (YAML reads yes, no, on and off as true or false)"),
        ("nothing", "~: x", ""),
        ("training.1.5", "training: {1.5: 2}", ""),
        ("keep.0.2", "keep: [{path: a, 2: x}]", ""),
        ("chat_template_kwargs.1", "chat_template_kwargs: {1: 2}", ""),
        (
            "chat_template_kwargs.false",
            "chat_template_kwargs: {off: 2}",
            " (YAML reads yes, no, on and off as true or false)",
        ),
    ],
)
def test_a_key_that_is_no_text(key, given, why):
    values = {"model": "m", "skill": "s.jsonl"} | yaml.safe_load(given)
    with pytest.raises(UsageError) as caught:
        parse_config(values, "test")
    assert caught.value.found == f"\n  {key}: a key must be text{why}; put quotes round it"


def test_an_unknown_recipe_says_which_was_meant():
    assert "(did you mean sa_proj?)" in line("recipe", recipe="sa_porj")
    assert "mlp_gate_up" in line("recipe", recipe="nothing like it")


def test_nothing_of_the_library_s_own_wording_is_left():
    with pytest.raises(UsageError) as caught:
        parse_config({"model": 3, "skil": "s", "training": {"optim": None}, "keep": 5}, "test")
    for words in ("Input should", "Extra inputs", "Field required", "Value error"):
        assert words not in caught.value.found


def test_long_values_are_cut():
    assert len(line("seed", seed="x" * 500)) < 150


def test_allowed_values_of_the_settings():
    assert allowed_values(AnchorSettings.model_fields["max_prompts"]) == (
        "a whole number from 1 or nothing"
    )
    assert allowed_values(TrainingSettings.model_fields["warmup_ratio"]) == (
        "a number from 0 and up to 1"
    )
    assert allowed_values(RunConfig.model_fields["chat_template_kwargs"]) == "keys and values"


def test_did_you_mean():
    assert did_you_mean("Sa_proj", ["sa_proj", "mlp"]) == " (did you mean sa_proj?)"
    assert did_you_mean("gate", ["mlp_gate_up", "mlp"]) == " (did you mean mlp_gate_up?)"
    assert did_you_mean("xyz", ["mlp"]) == ""
