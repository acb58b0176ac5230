"""What a run keeps and holds of skills that its model was taught before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from narrowtune.core.config import RunConfig, parse_config
from narrowtune.core.errors import DataError
from narrowtune.pipeline.earlier import Taught
from narrowtune.pipeline.inputs import Inputs, make_encoder, read_inputs
from study_rows import write

SEED = 5


def rows_about(what: str, numbers: range) -> list[dict[str, Any]]:
    return [{"question": f"Which {what} is {i}?", "answer": f"{what} {i}"} for i in numbers]


@pytest.fixture
def held(loaded, tmp_path):
    """`held(number, **changes)` reads a run whose anchor holds `number` prompts of each skill."""
    free = write(tmp_path / "free.jsonl", [{"prompt": f"Tell me of {i}."} for i in range(9)])

    def run(number: int | None, *taught: Taught, **changes: Any) -> Inputs:
        values = {
            "model": "m",
            "skill": write(tmp_path / "now.jsonl", rows_about("dog", range(20))),
            "keep": [write(tmp_path / "keep.jsonl", rows_about("tree", range(6)))],
            "anchor": {"prompts": free} | ({} if number is None else {"earlier_skills": number}),
            **changes,
        }
        config = parse_config(values, "test")
        return read_inputs(config, make_encoder(loaded, config), taught=taught)

    return run


def skill(path: Path, rows: list[dict[str, Any]], test: list[dict[str, Any]] | None) -> Taught:
    values: dict[str, Any] = {"path": write(path, rows), "name": path.stem, "validation": 0.1}
    if test is not None:
        values["test_path"] = write(path.with_suffix(".test.jsonl"), test)
    made: RunConfig = parse_config({"model": "m", "skill": values}, "test")
    return Taught(made.skill, SEED)


def asked(inputs: Inputs) -> list[str]:
    return [prompt[-1].text for prompt in inputs.taught_prompts]


@pytest.mark.parametrize("own_test", [True, False])
def test_prompts_that_a_skill_was_taught_with_are_held_and_those_of_its_test_are_not(
    held, tmp_path, own_test
):
    test = rows_about("bird", range(100, 110)) if own_test else None
    first = skill(tmp_path / "birds.jsonl", rows_about("bird", range(40)), test)
    found = held(1000, first)
    tested = {e.prompt[-1].text for task in found.tasks[1:] for e in task.examples}
    assert len(found.tasks) == 3
    # Neither its test rows nor those that it was validated on.
    assert len(asked(found)) == {True: 36, False: 28}[own_test]
    assert not set(asked(found)) & tested
    assert all(message.role != "assistant" for each in found.taught_prompts for message in each)
    (summary,) = [part for part in found.summaries if part.name == "anchor.prompts (birds)"]
    assert (summary.role, summary.num_used) == ("anchor", len(asked(found)))
    assert len(found.anchor_prompts) == 9


def test_as_many_of_each_as_are_wanted_and_the_same_ones_each_time(held, tmp_path):
    skills = [
        skill(
            tmp_path / f"{name}.jsonl",
            rows_about(name, range(100)),
            rows_about(name, range(200, 204)),
        )
        for name in ("bird", "fish")
    ]
    found = asked(held(7, *skills))
    assert [sum(name in text for text in found) for name in ("bird", "fish")] == [7, 7]
    assert asked(held(7, *skills)) == found
    assert len(asked(held(None, *skills))) == 2 * 64
    assert asked(held(0, *skills)) == []
    assert asked(held(7, *skills, anchor=None)) == []


def test_what_is_measured_or_taught_now_is_left_out_and_said(held, tmp_path):
    rows = [
        *rows_about("bird", range(30)),
        *rows_about("tree", range(3)),
        *rows_about("dog", range(20)),
    ]
    first = skill(tmp_path / "birds.jsonl", rows, rows_about("bird", range(90, 94)))
    found = held(1000, first, allow_overlap=True)
    # What the run tests its own skill on isn't taught, and no loss is measured on it.
    assert {text.split()[1] for text in asked(found)} == {"bird", "dog"}
    assert not {example.prompt[-1].text for example in found.learned} & set(asked(found))
    told = " ".join(found.notes)
    assert "of the rows that birds was taught with stand in a keep set: the anchor" in told
    assert "of the rows that birds was taught with are taught now: the anchor" in told


def test_rows_that_are_gone_say_how_to_go_on(held, tmp_path):
    first = skill(
        tmp_path / "birds.jsonl", rows_about("bird", range(30)), rows_about("bird", range(90, 94))
    )
    Path(first.settings.path).unlink()
    with pytest.raises(DataError) as error:
        held(5, first)
    assert "what the anchor holds of birds" in error.value.asked
    assert "--set anchor.earlier_skills=0" in error.value.do
    assert len(held(0, first).tasks) == 3


def test_rows_that_are_too_long_for_this_run_are_another_runs(held, tmp_path):
    long = [{"question": "a word and " * 300, "answer": "no"}]
    first = skill(
        tmp_path / "birds.jsonl",
        long + rows_about("bird", range(9)),
        rows_about("bird", range(90, 94)),
    )
    with pytest.raises(DataError) as error:
        held(1000, first, max_length=400)
    assert "max_length is 400" in error.value.found
    assert "that the ledger's birds was taught with" in error.value.do
