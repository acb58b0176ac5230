"""Tasks refuse what can't be scored, and their hash knows what decides a score."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from narrowtune.core.config import DataSettings
from narrowtune.core.errors import EvaluationError
from narrowtune.data.examples import Example, Image, Message, Text
from narrowtune.evaluate.tasks import Task, make_task, picture_of, question_of


def example(id: str = "a", question: str = "Which?", **kwargs) -> Example:
    fields = {"answers": ("yes",), "options": ("yes", "no"), **kwargs}
    turns = (Message("user", (Text(question),)), Message("assistant", (Text("yes"),)))
    return Example(id=id, messages=turns, **fields)


def task(*examples: Example, **kwargs) -> Task:
    fields = {"metric": "exact_match", "mode": "generate", "max_new_tokens": 8, **kwargs}
    return Task(name="t", role="held_out", examples=examples, **fields)


def test_a_task_takes_its_settings_from_the_data_source():
    settings = DataSettings(
        path="x/capitals.jsonl", metric="contains", mode="options", max_new_tokens=5
    )
    made = make_task(settings, [example()], "target")
    assert (made.name, made.role, made.metric) == ("capitals", "target", "contains")
    assert (made.mode, made.max_new_tokens) == ("options", 5)
    assert [e.id for e in made.examples] == ["a"]


@pytest.mark.parametrize(
    ("examples", "mode", "found"),
    [
        ([], "generate", "no items"),
        ([example("a"), example("b"), example("a")], "generate", "'a'"),
        ([example("a"), example("b", answers=())], "generate", "'b' has no accepted answer"),
        ([example("a", options=("yes",))], "options", "'a' has 1 options"),
    ],
)
def test_unusable_items_are_refused_by_name(examples, mode, found):
    with pytest.raises(EvaluationError) as caught:
        task(*examples, mode=mode)
    assert found in caught.value.found
    assert "'t'" in caught.value.asked


def test_options_are_only_needed_where_they_are_compared():
    assert task(example(options=())).examples[0].options == ()


@pytest.mark.parametrize(
    "other",
    [
        task(example(question="Which one?")),
        task(example(answers=("yes", "yep"))),
        task(example(options=("no", "yes"))),
        task(example(group="g")),
        task(example("b")),
        task(example(), metric="contains"),
        task(example(), mode="options"),
        task(example(), max_new_tokens=9),
        task(example(), example("b")),
    ],
)
def test_the_hash_changes_with_what_decides_the_scores(other: Task):
    assert other.sha256 != task(example()).sha256


def test_the_hash_does_not_change_with_name_role_or_row():
    same = replace(task(replace(example(), row=7)), name="other", role="target")
    assert same.sha256 == task(example()).sha256


def test_the_hash_knows_the_pictures_bytes():
    def shown(sha256: str) -> Task:
        turn = Message("user", (Image(path=Path("x.png"), sha256=sha256), Text("?")))
        return task(Example("a", (turn,), ("yes",)))

    assert shown("1").sha256 != shown("2").sha256


def test_question_and_picture_of_an_item():
    picture = Image(path=Path("/data/set/x/1.png"), root=Path("/data/set"))
    turns = (
        Message("system", (Text("Be short."),)),
        Message("user", (Text("First?"),)),
        Message("assistant", (Text("One."),)),
        Message("user", (picture, Text("Second?"))),
        Message("assistant", (Text("Two."),)),
    )
    item = Example("a", turns, ("Two.",))
    assert question_of(item.prompt) == "Second?"
    assert picture_of(item) == "x/1.png"
    assert picture_of(example()) is None
