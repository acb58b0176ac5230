"""What a run keeps and holds of skills that its model was taught before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from narrowtune.core.config import RunConfig, parse_config
from narrowtune.core.errors import DataError
from narrowtune.models.load import LoadedModel, load_model
from narrowtune.pipeline import earlier
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

    def run(
        number: int | None, *taught: Taught, loaded: LoadedModel = loaded, **changes: Any
    ) -> Inputs:
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
    (summary,) = [part for part in found.summaries if part.name == "anchor.prompts (skill birds)"]
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
        *rows_about("fish", range(10)),
    ]
    first = skill(tmp_path / "birds.jsonl", rows, rows_about("bird", range(90, 94)))
    general = write(tmp_path / "fish.jsonl", rows_about("fish", range(10)))
    now = {"path": str(tmp_path / "now.jsonl"), "validation": 0.2}
    more = {"allow_overlap": True, "mix": [f"{general}:0.5"], "skill": now}
    held(0)  # writes the skill's rows
    found = held(1000, first, **more)
    # Of its own skill nothing: neither what it learns, nor what it is tested and validated on.
    assert {text.split()[1] for text in asked(found)} <= {"bird", "fish"}
    assert not {example.prompt[-1].text for example in found.learned} & set(asked(found))
    assert len(found.learned) == len(found.rows) == 12 + 6  # mixed-in rows among them
    told = " ".join(found.notes)
    assert "rows that birds was taught with are among those that are measured" in told
    assert "rows that birds was taught with are taught now" in told


def test_rows_that_are_gone_or_others_say_how_to_go_on(held, tmp_path):
    test = rows_about("bird", range(90, 94))
    first = skill(tmp_path / "birds.jsonl", rows_about("bird", range(30)), test)
    (summary,) = (part for part in held(5, first).summaries if part.name.endswith("(skill birds)"))
    known = replace(first, sha256=summary.sha256)
    assert len(asked(held(5, known))) == 5
    write(tmp_path / "birds.jsonl", rows_about("bird", range(1, 31)))
    with pytest.raises(DataError, match="changed since"):
        held(5, known)
    assert len(asked(held(5, first))) == 5  # a ledger of before has no hash
    Path(first.settings.path).unlink()
    with pytest.raises(DataError) as error:
        held(5, first)
    assert "what the anchor holds of birds" in error.value.asked
    assert "--set anchor.earlier_skills=0" in error.value.do
    assert len(held(0, first).tasks) == 3


def test_rows_that_can_not_be_encoded_give_way_to_others_and_it_is_said(held, tmp_path):
    long = [{"question": f"a word and {i} " * 300, "answer": "no"} for i in range(20)]
    test = rows_about("bird", range(90, 94))
    first = skill(tmp_path / "birds.jsonl", long + rows_about("bird", range(9)), test)
    found = held(5, first, max_length=400)
    assert len(asked(found)) == 5
    assert all("bird" in text for text in asked(found))
    assert "rows that birds was taught with can't be encoded in this run" in " ".join(found.notes)
    only = skill(tmp_path / "long.jsonl", long, test)
    found = held(5, only, max_length=400)
    assert asked(found) == []
    assert "The anchor holds nothing of long: no row is left." in found.notes


def test_pictures_that_can_not_be_beside_those_of_the_run_are_left_out(tiny, held, tmp_path):
    seeing = load_model(str(tiny("qwen2_5_vl")), device="cpu")
    rows = [{**row, "image": f"{i}.png"} for i, row in enumerate(rows_about("bird", range(20)))]
    for shade, row in enumerate(rows):
        PIL.Image.new("RGB", (56, 56), (10 * shade, 0, 0)).save(tmp_path / row["image"])
    first = skill(tmp_path / "birds.jsonl", rows, rows_about("bird", range(90, 94)))
    found = held(5, first, loaded=seeing)
    assert len(asked(found)) == 5
    assert all(prompt[-1].images for prompt in found.taught_prompts)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(earlier, "unusable_pictures", lambda *_: "pictures of two sizes")
        found = held(5, first, loaded=seeing)
    assert asked(found) == []
    assert "The anchor holds nothing of birds: pictures of two sizes." in found.notes
