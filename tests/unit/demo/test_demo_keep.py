from __future__ import annotations

import re

import pytest

from narrowtune.demo import words, world
from narrowtune.demo.keep import KINDS


@pytest.fixture(scope="module")
def rows() -> dict[str, list[dict]]:
    return {name: kind.generate(0) for name, kind in KINDS.items()}


def answers(rows: list[dict]) -> dict[str, list[str]]:
    return {row["question"]: row["answers"] for row in rows}


def test_enough_kinds_and_items_for_the_benchmark(rows):
    assert len(rows) >= 4
    assert sum(map(len, rows.values())) >= 3000


@pytest.mark.parametrize("name", list(KINDS))
def test_rows_are_complete_distinct_and_determined_by_the_seed(name, rows):
    found = rows[name]
    assert found == KINDS[name].generate(0)
    assert found != KINDS[name].generate(1)
    assert len({row["id"] for row in found}) == len(found)
    assert len({(row["question"], *row.get("options", ())) for row in found}) == len(found)
    for row in found:
        assert row["answer"] == row["answers"][0]
        assert row["group"].startswith(f"{name}:")
        assert all(answer.strip() for answer in row["answers"])
        assert ("options" in row) == (KINDS[name].mode == "options")


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.mode == "generate"])
def test_an_echo_of_the_question_is_never_right(name, rows):
    for row in rows[name]:
        said = re.sub(r"\W+", " ", row["question"]).lower().split()
        for answer in row["answers"]:
            wanted = re.sub(r"\W+", " ", answer).lower().split()
            windows = [said[i : i + len(wanted)] for i in range(len(said))]
            assert wanted not in windows, row


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.mode == "options"])
def test_options_hold_the_answer_in_no_preferred_place(name, rows):
    found = rows[name]
    assert all(row["answer"] in row["options"] for row in found)
    assert all(len(set(row["options"])) == len(row["options"]) == 2 for row in found)
    first = sum(row["options"][0] == row["answer"] for row in found) / len(found)
    assert 0.4 < first < 0.6


def test_spot_checks(rows):
    capitals, opposites = answers(rows["capitals"]), answers(rows["opposites"])
    assert capitals["What is the capital of Kenya?"] == ["Nairobi"]
    assert "Kiev" in capitals["What is the capital of Ukraine?"]
    assert opposites["What is the opposite of 'tall'?"] == ["short"]
    assert set(opposites["What is the opposite of 'old'?"]) == {"new", "young"}
    assert opposites["What is the opposite of 'true'?"][0] == "false"
    plurals = answers(rows["plurals"])
    assert plurals["What is the plural of 'city'?"] == ["cities"]
    assert plurals["What is the plural of 'mouse'?"] == ["mice"]
    assert plurals["What is the plural of 'church'?"] == ["churches"]
    assert answers(rows["elements"])["What is the chemical symbol for gold?"] == ["Au"]


def test_linked_opposites_are_one_entity(rows):
    groups = {re.split("['\"]", row["question"])[1]: row["group"] for row in rows["opposites"]}
    assert groups["hot"] == groups["cold"]
    assert groups["long"] == groups["short"] == groups["tall"]
    assert groups["hot"] != groups["wet"]


def test_regular_plurals_follow_the_spelling():
    spelt = {"boy": "boys", "lady": "ladies", "fox": "foxes", "wish": "wishes", "idea": "ideas"}
    assert {noun: words.regular_plural(noun) for noun in spelt} == spelt


def test_disputed_and_dependent_places_are_left_out():
    codes = {country.code for country in world.countries()}
    assert codes.isdisjoint({"TW", "PS", "IL", "XK", "HK", "GL", "CS"})
    assert {"FR", "KE", "AE", "FJ"} <= codes
    assert 185 <= len(codes) <= 195
