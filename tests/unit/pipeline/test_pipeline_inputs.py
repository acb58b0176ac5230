"""What a run reads: each row is read and encoded before anything runs, and errors name it."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from narrowtune.core.config import RunConfig, parse_config
from narrowtune.core.errors import DataError, UsageError
from narrowtune.data.examples import RowsRefusedError
from narrowtune.evaluate.clusters import effective_items, effective_items_together
from narrowtune.models.load import load_model
from narrowtune.pipeline.inputs import (
    Inputs,
    Taught,
    add_anchor_prompts,
    make_encoder,
    read_inputs,
)
from study_rows import write

LONG = "a word and " * 300


def rows_about(what: str, count: int) -> list[dict[str, Any]]:
    return [{"question": f"Which {what} is {i}?", "answer": f"{what} {i}"} for i in range(count)]


@pytest.fixture
def config(tmp_path):
    """`config(**changes)` is a run on 20 rows of a skill and 6 to keep."""

    def make(**changes: Any) -> RunConfig:
        skill = {"path": write(tmp_path / "skill.jsonl", rows_about("dog", 20))}
        values = {
            "model": "m",
            "skill": {**skill, **changes.pop("skill", {})},
            "keep": [write(tmp_path / "keep.jsonl", rows_about("tree", 6))],
            "max_length": 400,
            **changes,
        }
        return parse_config(values, "test")

    return make


@pytest.fixture
def read(loaded, tmp_path):
    def run(config: RunConfig, **more: Any) -> Inputs:
        encoder = make_encoder(loaded, config)
        return read_inputs(config, encoder, tmp_path / "rows_refused.jsonl", **more)

    return run


def refused_rows(tmp_path: Path) -> list[tuple[str, int]]:
    lines = (tmp_path / "rows_refused.jsonl").read_text().splitlines()
    return [(row["path"], row["row"]) for row in map(json.loads, lines)]


@pytest.mark.parametrize("mode", ["generate", "options"])
def test_a_keep_row_that_is_too_long_is_named_when_it_is_read(read, config, tmp_path, mode):
    rows = [{**row, "options": [row["answer"], "no"]} for row in rows_about("tree", 4)]
    if mode == "generate":
        rows[2]["question"] += LONG
    else:
        rows[2]["options"].append(LONG)
    path = write(tmp_path / "kept.jsonl", rows)
    with pytest.raises(RowsRefusedError) as error:
        read(config(keep=[{"path": path, "mode": mode}]))
    assert path in error.value.asked
    assert "row 3: " in error.value.found
    assert "max_length is 400" in error.value.found
    assert "raise max_length" in error.value.do
    assert "pixels" not in error.value.do
    assert refused_rows(tmp_path) == [(path, 3)]
    allowed = read(config(keep=[{"path": path, "mode": mode, "max_refused": 1}]))
    assert [example.row for example in allowed.tasks[1].examples] == [1, 2, 4]
    assert (allowed.summaries[1].num_used, allowed.summaries[1].num_refused) == (3, 1)


def test_all_sets_with_rows_that_can_not_be_used_are_named_at_once(read, config, tmp_path):
    dogs, trees, pens = (rows_about(what, 6) for what in ("dog", "tree", "pen"))
    del dogs[1]["answer"]
    trees[3]["question"] += LONG
    del pens[0]["question"]
    bad, long, odd = (
        write(tmp_path / f"bad {name}.jsonl", rows)
        for name, rows in (("dogs", dogs), ("trees", trees), ("pens", pens))
    )
    fine = write(tmp_path / "fine.jsonl", rows_about("cup", 6))
    with pytest.raises(DataError) as error:
        read(config(skill={"path": bad}, keep=[long, fine, odd]))
    assert error.value.asked == "3 sets of rows"
    assert all(path in error.value.found for path in (bad, long, odd))
    assert fine not in error.value.found
    for key in ("skill", "keep.0", "keep.2"):
        assert f"--set {key}.max_refused=1" in error.value.do
    assert refused_rows(tmp_path) == [(bad, 2), (long, 4), (odd, 1)]
    allowed = [{"path": path, "max_refused": 1} for path in (long, fine, odd)]
    inputs = read(config(skill={"path": bad, "max_refused": 1}, keep=allowed))
    assert [summary.num_used for summary in inputs.summaries[:4]] == [5, 5, 6, 5]


@pytest.mark.parametrize("key", ["drift", "anchor"])
def test_a_prompt_that_is_too_long_is_named_when_it_is_read(read, config, tmp_path, key):
    prompts = [{"prompt": "Hello."}, {"prompt": LONG}, {"prompt": "Bye."}]
    path = write(tmp_path / "prompts.jsonl", prompts)
    with pytest.raises(RowsRefusedError) as error:
        read(config(**{key: {"prompts": path}}))
    assert path in error.value.asked
    assert "row 2: " in error.value.found
    assert f"{key}.prompts" in error.value.do
    assert refused_rows(tmp_path) == [(path, 2)]
    # What is not used is not asked to fit.
    assert read(config(**{key: {"prompts": path, "max_prompts": 1}})).drift_prompts


def test_max_refused_is_one_limit_over_reading_and_encoding(read, config, tmp_path):
    rows = rows_about("dog", 20)
    rows[4] = {"question": "What?"}
    rows[9]["question"] += LONG
    path = write(tmp_path / "some.jsonl", rows)
    with pytest.raises(RowsRefusedError) as error:
        read(config(skill={"path": path, "max_refused": 1}))
    assert "row 5: " in error.value.found
    assert "row 10: " in error.value.found
    assert "--set skill.max_refused=2" in error.value.do
    assert refused_rows(tmp_path) == [(path, 5), (path, 10)]
    inputs = read(config(skill={"path": path, "max_refused": 2}))
    summary = inputs.summaries[0]
    assert (summary.num_rows, summary.num_used, summary.num_refused) == (20, 18, 2)
    assert sum(summary.splits.values()) == 18
    assert len(inputs.rows) == summary.splits["train"]


def test_rows_mixed_in_are_refused_under_their_own_path(read, config, tmp_path):
    rows = rows_about("pen", 40)
    for row in rows:
        row["answer"] += LONG
    path = write(tmp_path / "mix.jsonl", rows)
    with pytest.raises(RowsRefusedError) as error:
        read(config(mix=[{"path": path, "share": 0.5}]))
    assert path in error.value.asked
    assert {name for name, _ in refused_rows(tmp_path)} == {path}
    # The skill's rows have a limit of their own.
    with pytest.raises(RowsRefusedError):
        read(config(mix=[{"path": path, "share": 0.5}], skill={"max_refused": 40}))
    inputs = read(config(mix=[{"path": path, "share": 0.5, "max_refused": 40}]))
    [mixed] = [part for part in inputs.summaries if part.role == "mix"]
    assert (mixed.num_used, mixed.num_refused) == (0, 8)


@pytest.mark.parametrize(
    ("settings", "row", "reason", "remedy"),
    [
        (
            {"metric": "number"},
            {"answer": "two or three"},
            "'two or three', which is not a number; exact_match, contains, relaxed_number",
            "--set keep.1.metric=NAME",
        ),
        (
            {"metric": "option_letter"},
            {"answer": "a tree", "options": ["3", "4"]},
            "names none of ['3', '4']; exact_match",
            "--set keep.1.metric=NAME",
        ),
        (
            {"mode": "options"},
            {"answer": "3"},
            "mode 'options' needs two or more options",
            "--set keep.1.mode=generate",
        ),
    ],
)
def test_a_metric_or_mode_that_does_not_fit_is_named_with_its_row_and_what_fits(
    read, config, tmp_path, settings, row, reason, remedy
):
    options = ["3", "4"] if settings != {"metric": "number"} else []
    rows = [{"question": f"How many {i}?", "answer": "3", "options": options} for i in range(4)]
    rows[2] = {"question": "What?", **row}
    path = write(tmp_path / "misfit.jsonl", rows)
    keep = [str(tmp_path / "keep.jsonl"), {"path": path, **settings}]
    with pytest.raises(RowsRefusedError) as error:
        read(config(keep=keep))
    assert path in error.value.asked
    assert "1 of 4 rows" in error.value.found
    assert f"row 3: {'mode' if 'mode' in settings else 'the metric'}" in error.value.found
    assert reason in error.value.found
    assert remedy in error.value.do
    assert "--set keep.1.max_refused=1" in error.value.do


def test_rows_of_which_none_can_be_used_are_not_gone_on_without(read, config, tmp_path):
    path = write(tmp_path / "words.jsonl", rows_about("tree", 3))
    with pytest.raises(RowsRefusedError) as error:
        read(config(keep=[{"path": path, "metric": "number"}]))
    assert "3 of 3 rows" in error.value.found
    assert "max_refused" not in error.value.do
    with pytest.raises(DataError, match="none of which can be used") as error:
        read(config(keep=[{"path": path, "metric": "number", "max_refused": 3}]))
    assert path in error.value.asked


def test_prompts_are_not_advised_to_be_refused(read, config, tmp_path):
    path = write(tmp_path / "prompts.jsonl", [{"prompt": "Hello."}, {"text": "Bye."}])
    with pytest.raises(RowsRefusedError) as error:
        read(config(anchor={"prompts": path}))
    assert "anchor.prompts" in error.value.do
    assert "max_refused" not in error.value.do


def test_the_skill_s_answers_are_those_of_its_own_rows(read, config, tmp_path):
    path = write(tmp_path / "mix.jsonl", rows_about("pen", 20))
    inputs = read(config(mix=[f"{path}:0.5"]))
    assert len(inputs.rows) == 16 + 8
    assert all(answer.startswith("dog") for answer in inputs.skill_answers)
    assert len(inputs.skill_answers) == 16
    assert [part.num_used for part in inputs.summaries if part.role == "mix"] == [8]


def test_overlap_with_a_test_file_is_an_error_or_noted(read, config, tmp_path):
    path = write(tmp_path / "test.jsonl", [*rows_about("dog", 3), *rows_about("cat", 2)])
    with pytest.raises(DataError, match="taught and rows to be tested"):
        read(config(skill={"test_path": path}))
    inputs = read(config(skill={"test_path": path}, allow_overlap=True))
    assert inputs.summaries[0].notes == ["3 rows are both taught and tested."]


def test_limit_is_for_the_rows_to_learn_from(read, config, tmp_path):
    path = write(tmp_path / "test.jsonl", rows_about("cat", 15))
    inputs = read(config(skill={"test_path": path, "limit": 10}))
    assert inputs.summaries[0].splits == {"train": 10, "validation": 0, "test": 15}
    taught, tested = inputs.summaries[:2]
    assert (taught.num_used, tested.num_used) == (10, 15)
    assert taught.name != tested.name


def test_a_test_file_beside_a_split_of_a_folder(read, config, tmp_path):
    datasets = pytest.importorskip("datasets")
    splits = {
        name: datasets.Dataset.from_list(rows_about(what, 12))
        for name, what in (("train", "dog"), ("test", "cat"))
    }
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    skill = {"path": str(tmp_path / "saved"), "split": "train"}
    file = write(tmp_path / "test.jsonl", rows_about("sun", 5))
    assert len(read(config(skill={**skill, "test_path": file})).tasks[0].examples) == 5
    skill["test_path"] = skill["path"]
    inputs = read(config(skill={**skill, "test_split": "test"}))
    assert {example.answers[0][:3] for example in inputs.tasks[0].examples} == {"cat"}


def test_an_anchor_prompt_with_a_picture_is_refused_by_a_model_without_eyes(read, config, tmp_path):
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    prompts = [{"prompt": "Hello."}, {"prompt": "<image>What?", "image": "a.png"}]
    path = write(tmp_path / "prompts.jsonl", prompts)
    with pytest.raises(DataError, match="row 2"):
        read(config(anchor={"prompts": path}))


def test_drift_takes_free_prompts_and_those_of_the_keep_sets(read, config, tmp_path):
    many = write(tmp_path / "many.jsonl", rows_about("stone", 30))
    keep = [str(tmp_path / "keep.jsonl"), many]
    inputs = read(config(keep=keep, drift={"max_prompts": 40}))
    names = [name for name, _ in inputs.drift_prompts]
    # The six of one set are fewer than its share.
    assert [names.count(name) for name in ("free prompts", "keep", "many")] == [17, 6, 17]
    given = write(tmp_path / "given.jsonl", [{"prompt": "Hello."}])
    inputs = read(config(keep=keep, drift={"prompts": given}))
    assert [name for name, _ in inputs.drift_prompts] == ["free prompts"]


def test_without_a_skill_the_rest_is_read(read, config):
    inputs = read(config(anchor=True), with_skill=False)
    assert [task.role for task in inputs.tasks] == ["held_out"]
    assert inputs.anchor_prompts
    assert not inputs.rows


def test_an_anchor_whose_prompts_are_all_kept_is_refused(read, config, tmp_path):
    path = write(tmp_path / "prompts.jsonl", rows_about("tree", 4))
    with pytest.raises(DataError, match="4 prompts, all of which are measured") as error:
        read(config(anchor={"prompts": path}))
    assert error.value.do == "give anchor.prompts a file of others"


def test_an_anchor_holds_nothing_that_the_skill_is_tested_or_validated_on(read, config, tmp_path):
    own = {"validation": 0.25, "test": 0.25}
    inputs = read(config(skill=own))
    tested, validated = inputs.tasks[0].examples, inputs.kept_back
    assert tested
    assert validated
    rows = [{"prompt": "Say something else."}]
    rows += [{"prompt": each.prompt[-1].text} for each in (*tested, *validated)]
    path = write(tmp_path / "prompts.jsonl", rows)
    found = read(config(skill=own, anchor={"prompts": path}))
    assert [messages[-1].text for messages in found.anchor_prompts] == ["Say something else."]
    told = f"{len(rows) - 1} anchor prompts are measured (kept, tested or validated on)"
    assert any(note.startswith(told) for note in found.notes)


def test_rows_that_generation_would_begin_otherwise_are_noted(read, config, loaded, monkeypatch):
    assert not any("begin otherwise" in note for note in read(config()).notes)
    template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Answer: ' }}{% endif %}"
    )
    monkeypatch.setattr(loaded.tokenizer, "chat_template", template)
    inputs = read(config())
    num_rows = len(inputs.rows) + len(inputs.validation)
    (note,) = [note for note in inputs.notes if "begin otherwise" in note]
    assert note.startswith(f"{num_rows} rows to train on")


def _num_answers(labels: list[int]) -> int:
    """How many stretches of tokens are learned."""
    learned = [label != -100 for label in [-100, *labels]]
    return sum(now and not before for before, now in pairwise(learned))


def test_answers_that_are_marked_as_not_to_be_learned_are_not_and_counted(read, config, tmp_path):
    turns = ("user", "assistant", "user", "assistant")
    rows = [
        {
            "messages": [
                {"role": role, "content": f"{role} {number} {place}", "weight": place % 2 * half}
                for place, role in enumerate(turns)
                for half in [number % 2 if place < 3 else 1]
            ]
        }
        for number in range(20)
    ]
    inputs = read(config(skill={"path": write(tmp_path / "turns.jsonl", rows)}))
    answers = [_num_answers(row.labels) for row in [*inputs.rows, *inputs.validation]]
    assert set(answers) == {1, 2}
    (note,) = [note for note in inputs.notes if "are not learned" in note]
    assert note.startswith(f"{answers.count(1)} answers")
    assert not any("are not learned" in note for note in read(config()).notes)


def test_rows_to_mix_in_from_a_path_without_a_name_are_refused(read, config):
    with pytest.raises(UsageError, match=r"mix\.0"):
        read(config(mix=["..:0.1"]))


def test_prompts_are_in_what_a_run_is_held_to(read, config, tmp_path):
    prompts = write(tmp_path / "mine.jsonl", rows_about("pen", 4))
    anchored = {"anchor": {"prompts": prompts}, "drift": {"prompts": prompts}}
    found = {part.role: part for part in read(config(**anchored)).summaries}
    assert found["anchor"].sha256 == found["drift"].sha256
    assert found["anchor"].path == found["drift"].path == prompts
    assert "anchor" not in {part.role for part in read(config()).summaries}


def test_prompts_and_mixed_rows_have_their_pictures_where_they_are_said_to_be(
    tiny, config, tmp_path
):
    pictures = tmp_path / "elsewhere"
    pictures.mkdir()
    PIL.Image.new("RGB", (40, 30), "red").save(pictures / "one.png")
    rows = [{"question": f"What is {i}?", "answer": "a", "image": "one.png"} for i in range(10)]
    mixed = write(tmp_path / "mixed.jsonl", rows)
    prompts = [{"prompt": f"Name it, {i}.", "image": "one.png"} for i in range(3)]
    free = write(tmp_path / "free.jsonl", prompts)
    root = {"image_root": str(pictures)}
    seeing = load_model(str(tiny("qwen2_5_vl")), device="cpu")

    def read(mix, anchor, drift):
        made = config(
            mix=[{"path": mixed, "share": 0.5, **mix}],
            anchor={"prompts": free, **anchor},
            drift={"prompts": free, **drift},
        )
        inputs = read_inputs(made, make_encoder(seeing, made), None)
        add_anchor_prompts(made, make_encoder(seeing, made), inputs)
        return inputs

    found = read(root, root, root)
    assert len(found.anchor_prompts) == len(found.drift_prompts) == 3
    assert [part.num_used for part in found.summaries if part.role == "mix"] == [8]
    for missing in range(3):
        with pytest.raises(DataError, match=r"one\.png"):
            read(*({} if place == missing else root for place in range(3)))


@pytest.mark.parametrize("part", ["anchor", "drift"])
def test_a_folder_of_pictures_without_prompts_is_no_setting(config, part):
    with pytest.raises(UsageError, match="image_root is of the pictures in prompts"):
        config(**{part: {"image_root": "."}})


@pytest.fixture
def seeing(tiny):
    return load_model(str(tiny("qwen2_5_vl")), device="cpu")


@pytest.mark.parametrize("column", ["image_path", "scan"])
@pytest.mark.parametrize("earlier", [False, True])
def test_pictures_that_nobody_reads_are_said_before_rows_that_can_not_be_split(
    seeing, config, tmp_path, column, earlier
):
    # One question about forty pictures is one prompt, as long as nobody sees the pictures.
    rows = [{"question": "Total?", "answer": str(i), column: f"{i}.jpg"} for i in range(40)]
    path = write(tmp_path / "scans.jsonl", rows)
    made = config() if earlier else config(skill={"path": path})
    taught = [Taught(config(skill={"path": path}).skill, 42)] if earlier else []
    with pytest.raises(DataError, match=f"that have {column}, which nobody reads"):
        read_inputs(made, make_encoder(seeing, made), with_skill=not earlier, taught=taught)


def test_rows_whose_pictures_are_too_large_may_have_smaller_ones(seeing, config, tmp_path):
    PIL.Image.new("RGB", (900, 900), "red").save(tmp_path / "large.png")
    pictures = ["large.png"] * 12
    rows = [{**row, "images": pictures} for row in rows_about("cat", 3)]
    prompts = [{"prompt": "What is it?", "images": pictures}]
    large = write(tmp_path / "large.jsonl", rows)
    free = write(tmp_path / "free.jsonl", prompts)
    for changes in ({"keep": [large]}, {"drift": {"prompts": free}}):
        made = config(max_length=100, **changes)
        with pytest.raises(RowsRefusedError) as error:
            read_inputs(made, make_encoder(seeing, made))
        assert "max_length is 100" in error.value.found
        assert "raise max_length, or lower the pictures' pixels" in error.value.do


def test_the_remedy_is_for_the_rows_at_hand(read, config, tmp_path):
    # The skill's own rows may be too long; that is no advice for a row without an answer.
    rows = [*rows_about("dog", 20), {"question": LONG, "answer": "no"}]
    skill = {"path": write(tmp_path / "long.jsonl", rows), "max_refused": 1}
    path = write(tmp_path / "kept.jsonl", [*rows_about("tree", 3), {"question": "What?"}])
    with pytest.raises(RowsRefusedError) as error:
        read(config(skill=skill, keep=[path]))
    assert "answer is missing" in error.value.found
    assert "max_length" not in error.value.do


@pytest.mark.parametrize("key", ["keep", "drift"])
def test_a_folder_without_the_pictures_is_named_and_may_be_corrected(read, config, tmp_path, key):
    rows = [{**row, "image": f"images/{i:04}.png"} for i, row in enumerate(rows_about("cat", 3))]
    path = write(tmp_path / "cats.jsonl", rows)
    with pytest.raises(RowsRefusedError) as error:
        read(config(**({"keep": [path]} if key == "keep" else {"drift": {"prompts": path}})))
    missing = f"picture 'images/0000.png' does not exist in {tmp_path} (image_root)"
    assert missing in error.value.found
    assert "correct image_root" in error.value.do


def test_questions_that_are_asked_again_are_no_further_evidence(read, config, tmp_path):
    once = write(tmp_path / "once.jsonl", rows_about("tree", 6))
    often = write(tmp_path / "often.jsonl", rows_about("tree", 6) * 10)
    tasks = read(config(keep=[once, often])).tasks[1:]
    assert [len(task.examples) for task in tasks] == [6, 60]
    assert [effective_items(task.groups) for task in tasks] == pytest.approx([6, 6])
    assert effective_items_together([task.groups for task in tasks]) == pytest.approx([3, 3])
