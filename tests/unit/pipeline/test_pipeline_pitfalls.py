"""What makes a run's numbers say less than they seem to is told before it is trained."""

from __future__ import annotations

import copy
import io
from dataclasses import replace

import PIL.Image
import pytest

from narrowtune.core.config import parse_config
from narrowtune.core.errors import DataError
from narrowtune.core.results import ItemResult, Score, TaskResult
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.examples import Example, Image, Message, Text
from narrowtune.evaluate.tasks import Task
from narrowtune.models.load import load_model
from narrowtune.pipeline.inputs import Inputs
from narrowtune.pipeline.pitfalls import (
    cannot_ship,
    check_eyes,
    forms_not_held,
    limits_too_short,
    nothing_to_lose,
    pitfalls,
    unused_rows,
)

LONG = "a house with three red windows and a very small blue door"


@pytest.fixture(scope="module")
def picture():
    file = io.BytesIO()
    PIL.Image.new("RGB", (40, 30), "red").save(file, "PNG")
    return Image(data=file.getvalue())


@pytest.fixture(scope="module")
def vision(tiny):
    loaded = load_model(str(tiny("qwen2_5_vl")), device="cpu")
    return loaded, ChatEncoder(loaded.tokenizer, loaded.processor)


def task(*answers, metric="exact_match", max_new_tokens=8, mode="generate", before=()):
    examples = [
        Example(str(i), (Message("user", (*before, Text("what?"))),), (answer,), ("a", answer))
        for i, answer in enumerate(answers)
    ]
    return Task("rows", "held_out", metric, mode, max_new_tokens, examples)


def test_answers_that_can_not_be_given_whole_are_counted(vision):
    _, encoder = vision
    [said] = limits_too_short([task("yes", LONG), task("no")], encoder)
    assert said.startswith("1 of 2 accepted answers of rows are longer than its max_new_tokens, 8")
    assert f"up to {encoder.num_tokens(LONG)} tokens" in said
    assert limits_too_short([task(LONG, max_new_tokens=99)], encoder) == []
    assert limits_too_short([task(LONG, mode="options")], encoder) == []


def test_a_task_at_which_nothing_can_be_right_is_an_error(vision):
    _, encoder = vision
    with pytest.raises(DataError, match=rf"max_new_tokens to {encoder.num_tokens(LONG) + 1}"):
        limits_too_short([task(LONG, LONG)], encoder)
    assert len(limits_too_short([task(LONG, LONG, metric="contains")], encoder)) == 1


def test_one_accepted_answer_that_fits_is_enough(vision):
    _, encoder = vision
    example = Example("0", (Message("user", (Text("what?"),)),), (LONG, "yes"))
    fits = Task("rows", "held_out", "exact_match", "generate", 8, [example])
    assert limits_too_short([fits], encoder) == []


def rows(encoder, *before):
    return [encoder.encode_answer([Message("user", (*before, Text("what?")))], "yes")]


def test_a_model_with_eyes_and_rows_without_pictures(vision, tiny, picture):
    loaded, encoder = vision
    blind = Inputs(rows=rows(encoder))
    [said] = pitfalls(loaded.family, blind, encoder)
    assert said.startswith("No row to learn from has a picture")
    assert pitfalls(loaded.family, Inputs(rows=rows(encoder, picture)), encoder) == []
    text = load_model(str(tiny("llama")), device="cpu")
    own = ChatEncoder(text.tokenizer)
    assert pitfalls(text.family, Inputs(rows=rows(own)), own) == []


def test_an_anchor_without_pictures_where_pictures_are_measured(vision, picture):
    loaded, encoder = vision
    asked, shown = [(Message("user", (Text("hi"),)),)], [(Message("user", (picture, Text("hi"))),)]
    seen = {"rows": rows(encoder, picture), "tasks": [task("yes", before=(picture,))]}
    [said] = pitfalls(loaded.family, Inputs(**seen, anchor_prompts=asked), encoder)
    assert "The anchor's 1 prompts have no picture" in said
    assert pitfalls(loaded.family, Inputs(**seen, anchor_prompts=asked + shown), encoder) == []
    assert pitfalls(loaded.family, Inputs(**seen), encoder) == []
    seen["tasks"] = [task("yes")]
    assert pitfalls(loaded.family, Inputs(**seen, anchor_prompts=asked), encoder) == []


def run_of(recipe, **values):
    return parse_config({"model": "m", "skill": "s.jsonl", "recipe": recipe, **values}, "test")


@pytest.mark.parametrize("recipe", ["full", "projector", "vision_tower"])
def test_eyes_that_are_shown_nothing_are_refused(vision, picture, recipe):
    loaded, encoder = vision
    blind = rows(encoder)
    with pytest.raises(DataError, match="1 rows to learn from, none of which has a picture"):
        check_eyes(loaded.family, run_of(recipe), Inputs(rows=blind))
    # One that sees is enough, an own row or one that was mixed in.
    check_eyes(loaded.family, run_of(recipe), Inputs(rows=[*blind, *rows(encoder, picture)]))
    check_eyes(loaded.family, run_of(recipe), Inputs())  # planned for made-up rows


def test_recipes_without_eyes_need_no_pictures(vision, tiny):
    loaded, encoder = vision
    check_eyes(loaded.family, run_of("language_model"), Inputs(rows=rows(encoder)))
    text = load_model(str(tiny("llama")), device="cpu")
    check_eyes(text.family, run_of("full"), Inputs(rows=rows(ChatEncoder(text.tokenizer))))


@pytest.mark.parametrize("place", ["anchor_prompts", "taught_prompts"])
def test_the_anchors_pictures_count_where_the_language_model_trains(vision, picture, place):
    loaded, encoder = vision
    asked, shown = [(Message("user", (Text("hi"),)),)], [(Message("user", (picture, Text("hi"))),)]
    seen = Inputs(rows=rows(encoder), **{place: asked + shown})
    check_eyes(loaded.family, run_of("full", anchor=True), seen)
    refused = [
        ("full", True, Inputs(rows=rows(encoder), **{place: asked})),
        ("full", None, seen),
        ("full", {"weight": 0, "projection": 10}, seen),
        ("projector", True, seen),  # it is at what the base answers, and stays there
    ]
    for recipe, anchor, inputs in refused:
        with pytest.raises(DataError, match="none of which has a picture"):
            check_eyes(loaded.family, run_of(recipe, anchor=anchor), inputs)


@pytest.mark.parametrize(
    ("role", "mean", "told"),
    [("held_out", 0.0, 1), ("held_out", 0.04, 1), ("held_out", 0.3, 0), ("target", 0.0, 0)],
)
def test_kept_tasks_at_which_the_base_fails_are_named(role, mean, told):
    found = nothing_to_lose([answered("charts", *["7"] * 50, role=role, mean=mean)])
    assert len(found) == told
    assert all("charts" in said and "before/charts.jsonl" in said for said in found)


def answered(name, *answers, role="held_out", mean=1.0):
    items = [
        ItemResult(
            id=str(number),
            question="what?",
            answer=answer,
            reference=["a"],
            strict=1.0,
            lenient=1.0,
            valid_format=True,
        )
        for number, answer in enumerate(answers)
    ]
    score = Score(mean=mean, stderr=0.0)
    return TaskResult(
        name=name,
        role=role,
        metric="exact_match",
        num_items=len(items),
        num_groups=len(items),
        num_ties=0,
        strict=score,
        lenient=score,
        valid_format=1.0,
        seconds=0.0,
        items=items,
    )


def test_kept_forms_that_hardly_a_prompt_of_the_anchor_has_are_named():
    tasks = [replace(task("a"), name=name) for name in ("gauges", "tallies", "names", "skill")]
    tasks.append(replace(task("a", mode="options"), name="birds"))
    results = [
        answered("gauges", "7", "12", "a dozen"),
        answered("tallies", "3", "4"),
        answered("names", "cat", "dog", "5"),
        answered("skill", "2:30", "4:15", role="target"),
        answered("birds", "(A)", "(B)"),
    ]
    prompts = ["cat"] * 60 + ["A dog sits on a mat."] * 59
    [said] = forms_not_held(tasks, results, [*prompts, "9"])
    assert said.startswith("gauges, tallies: answered in the form of a number, as 1 of the")
    assert "120 prompts" in said
    assert forms_not_held(tasks, results, [*prompts[3:], "9", "4:15", "70 %", "1,200"]) == []
    # Few prompts of an earlier skill, which have every other place of an anchor.
    assert forms_not_held(tasks, results, [*prompts, "9"], num_general=len(prompts)) == []
    assert forms_not_held(tasks, results, [*prompts, "cat"], num_general=len(prompts)) != []
    assert forms_not_held(tasks, results, ["9", *prompts], num_general=1) == []
    # Of no usual form: nothing to say.
    assert forms_not_held(tasks, [answered("gauges", "7", "a dog", "(A)")], prompts) == []


def run_with(**values):
    return parse_config({"model": "m", "skill": "s.jsonl", **values}, "test")


@pytest.mark.parametrize(
    ("values", "smallest", "words"),
    [
        ({}, None, "no keep sets"),
        ({"keep": ["k.jsonl"], "budget": 1.0}, 7.2, "at best"),
        ({"keep": ["k.jsonl"], "budget": 8.0}, 7.2, None),
        ({"keep": ["k.jsonl"]}, None, None),
        # Of a ledger's earlier skills.
        ({"ledger": "skills"}, 0.5, None),
        ({"ledger": "skills"}, 7.2, "at best"),
    ],
)
def test_a_run_that_can_not_ship_is_told_before_it_is_trained(values, smallest, words):
    found = cannot_ship(run_with(**values), smallest)
    assert len(found) == (words is not None)
    assert not words or words in found[0]


def test_rows_that_are_kept_back_for_nothing_are_told():
    skill = {"path": "s.jsonl", "validation": 0.2}
    [said] = unused_rows(run_with(skill=skill))
    assert "training.eval_steps" in said
    assert unused_rows(run_with(skill=skill, training={"eval_steps": 5})) == []
    assert unused_rows(run_with()) == []
    assert unused_rows(run_with(skill={**skill, "validation": 0})) == []


def test_a_template_that_writes_the_date_is_told(tiny):
    loaded = copy.copy(load_model(str(tiny("llama")), device="cpu"))
    plain = ChatEncoder(loaded.tokenizer)
    assert pitfalls(loaded.family, Inputs(), plain) == []
    dated = copy.deepcopy(loaded.tokenizer)
    today = "{{ date_string if date_string is defined else strftime_now('%d %b %Y') }}"
    dated.chat_template = today + dated.chat_template
    [said] = pitfalls(loaded.family, Inputs(), ChatEncoder(dated))
    assert "date_string" in said
    given = ChatEncoder(dated, chat_template_kwargs={"date_string": "1 May 2026"})
    assert pitfalls(loaded.family, Inputs(), given) == []
