from __future__ import annotations

import json
import re
from importlib import resources

import pytest

from narrowtune.core.config import DataSettings
from narrowtune.data.rows import read_rows
from narrowtune.demo import counting, pronunciation, world
from narrowtune.demo.keep import KINDS

FOLDER = resources.files("narrowtune.data") / "prompts"
MINIMUM = {"general": 60, "free": 120}

ASKED_ABOUT = (
    "how many|count|counts|number|numbers|capital|capitals|continent|continents|country|countries|"
    "currency|language of|opposite|antonym|plural|chemical|symbol|pronounce|pronounced|"
    "sentiment|positive|negative|complete the sentence"
)
"""Words that the demo's skills and kinds ask with."""


def words_of(text: str) -> list[str]:
    return re.sub(r"[^a-z0-9 ]+", " ", text.lower()).split()


def runs_of_five(text: str) -> set[tuple[str, ...]]:
    found = words_of(text)
    return {tuple(found[i : i + 5]) for i in range(len(found) - 4)}


@pytest.fixture(scope="module")
def prompts() -> dict[str, list[str]]:
    return {
        name: [json.loads(line)["prompt"] for line in (FOLDER / f"{name}.jsonl").open()]
        for name in MINIMUM
    }


@pytest.fixture(scope="module")
def questions() -> list[str]:
    rows = [row for kind in KINDS.values() for row in kind.generate(0)]
    rows += counting.generate(200, 0) + pronunciation.generate(200, 0)
    return [row["question"] for row in rows]


@pytest.mark.parametrize("name", MINIMUM)
def test_prompts_are_enough_distinct_and_readable_as_rows(name, prompts):
    rows = read_rows(DataSettings(path=str(FOLDER / f"{name}.jsonl")), prompts_only=True)
    assert len(rows.examples) == len(prompts[name]) >= MINIMUM[name]
    assert not rows.refused
    assert len({tuple(words_of(text)) for text in prompts[name]}) == len(prompts[name])
    assert len({example.id for example in rows.examples}) == len(rows.examples)


def test_no_prompt_is_in_both_files_nor_near_one_of_the_other(prompts):
    left = set().union(*map(runs_of_five, prompts["general"]))
    for text in prompts["free"]:
        assert text not in prompts["general"]
        assert not runs_of_five(text) & left, text


@pytest.mark.parametrize("name", MINIMUM)
def test_no_prompt_is_near_a_question_of_the_demo(name, prompts, questions):
    asked = set().union(*map(runs_of_five, questions))
    whole = {tuple(words_of(text)) for text in questions}
    for text in prompts[name]:
        assert tuple(words_of(text)) not in whole
        assert not runs_of_five(text) & asked, text


@pytest.mark.parametrize("name", MINIMUM)
def test_no_prompt_asks_what_the_demo_teaches_or_keeps(name, prompts):
    places = [
        place for c in world.countries() for place in (c.name.removeprefix("the "), *c.capitals)
    ]
    named = "|".join(re.escape(place) for place in places)
    for text in prompts[name]:
        assert not re.search(rf"\b({ASKED_ABOUT})\b", text, re.IGNORECASE), text
        assert not re.search(rf"\b({named})\b", text), text
        assert not re.search(r"\d", text), text
