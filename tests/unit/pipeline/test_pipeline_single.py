"""Commands that do one thing load and speak to the model as a run does."""

from __future__ import annotations

import json
from pathlib import Path

import PIL.Image
import pytest
import torch
from typer.testing import CliRunner

from narrowtune.cli.app import app
from narrowtune.core.config import ModelSettings, parse_config
from narrowtune.core.errors import DataError, UsageError
from narrowtune.delta.extract import extract
from narrowtune.models.load import load_model
from narrowtune.models.select import resolve
from narrowtune.pipeline import single
from narrowtune.train.masters import copy_tensors


@pytest.fixture(autouse=True)
def _no_scores_from_before(tmp_path, monkeypatch):
    monkeypatch.setenv("NARROWTUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def rows(tmp_path):
    """Four questions, one of them long."""
    path = tmp_path / "rows.jsonl"
    found = [{"question": f"Which pen is {i}?", "answer": "pen"} for i in range(4)]
    found[2]["question"] += " and a word" * 100
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return path


def doubled(loaded, recipe, path):
    """Write the delta of a model whose selected tensors are twice what they were."""
    selection = resolve(loaded.model, recipe)
    base = copy_tensors(loaded.model, selection.names)
    parameters = dict(loaded.model.named_parameters())
    with torch.no_grad():
        for name in selection.names:
            parameters[name].mul_(2)
    extract(loaded.model, selection, base).save(path)
    return path


@pytest.fixture
def delta(tiny, tmp_path):
    """A delta of the tiny Llama in bf16."""
    loaded = load_model(str(tiny("llama")), dtype="bfloat16", device="cpu")
    return doubled(loaded, "sa_o", tmp_path / "delta.safetensors")


@pytest.mark.parametrize("command", ["evaluate", "probe"])
def test_flags_reach_the_settings(monkeypatch, command, tmp_path):
    asked = []

    def stop(settings, *_, **__):
        asked.append(settings)
        raise UsageError(asked="nothing", found="a test", do="stop")

    monkeypatch.setattr(single, command, stop)
    more = {"evaluate": ["--tasks", "rows.jsonl"], "probe": ["--delta", "d.safetensors"]}[command]
    flags = ["--dtype", "bfloat16", "--revision", "abc", "--max-length", "7"]
    flags += ["--set", "chat_template_kwargs.enable_thinking=false"]
    CliRunner().invoke(app, [command, "m", *more, *flags])
    assert asked == [
        ModelSettings(
            model="m",
            dtype="bfloat16",
            revision="abc",
            max_length=7,
            chat_template_kwargs={"enable_thinking": False},
        )
    ]


def test_columns_and_a_metric_of_ones_own_reach_the_rows(tiny, tmp_path):
    rows, scoring = tmp_path / "rows.jsonl", tmp_path / "scoring.py"
    rows.write_text('{"frage": "Which pen?", "antwort": "pen"}\n')
    scoring.write_text("def half(answer, accepted):\n    return 0.5\n")
    flags = ["--columns", "question=frage", "--columns", "answer=antwort", "--max-new-tokens", "2"]
    flags += ["--metric", f"{scoring}:half", "--output", str(tmp_path / "out"), "--json"]
    ran = CliRunner().invoke(app, ["evaluate", str(tiny("llama")), "--tasks", str(rows), *flags])
    assert ran.exit_code == 0, ran.output
    (found,) = json.loads(ran.stdout)
    assert (found["strict"]["mean"], found["metric"]) == (0.5, f"{scoring}:half")


def test_a_column_that_is_not_there_shows_before_weights_are_read(tiny, tmp_path, monkeypatch):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"frage": "Which pen?", "antwort": "pen"}\n')
    monkeypatch.setattr(single, "load", lambda _: pytest.fail("weights were read"))
    flags = ["--columns", "question=frge", "--columns", "answer=antwort"]
    flags += ["--output", str(tmp_path / "out")]
    ran = CliRunner().invoke(app, ["evaluate", str(tiny("llama")), "--tasks", str(rows), *flags])
    assert isinstance(ran.exception, DataError)
    assert "frage" in str(ran.exception)


def test_a_question_that_all_rows_share_reaches_them(tiny, tmp_path):
    short = [{"output": "pen"}, {"output": "cup", "instruction": "Which cup?"}]
    short = [{"input": f"text {number}", **row} for number, row in enumerate(short)]
    whole = [{"instruction": "Which = pen?", "system": "Be brief.", **row} for row in short]
    defaults = ["--defaults", "instruction=Which = pen?", "--defaults", "system=Be brief."]
    known = []
    for name, lines, flags in (("short", short, defaults), ("whole", whole, [])):
        path, out = tmp_path / name / "rows.jsonl", tmp_path / name / "out"
        path.parent.mkdir()
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        flags = [*flags, "--tasks", str(path), "--max-new-tokens", "8", "--output", str(out)]
        ran = CliRunner().invoke(app, ["evaluate", str(tiny("llama")), *flags, "--json"])
        assert ran.exit_code == 0, ran.output
        known.append(json.loads(ran.stdout)[0]["from_cache"])
    assert known == [False, True]  # the very same items
    ran = CliRunner().invoke(app, ["evaluate", "m", "--tasks", "r", "--defaults", "question"])
    assert isinstance(ran.exception, UsageError)
    assert "--defaults question=" in str(ran.exception)


def test_columns_are_pairs(tmp_path):
    for given in (["frage"], ["question=a", "--columns", "question=b"]):
        flags = ["--tasks", "rows.jsonl", "--columns", *given]
        ran = CliRunner().invoke(app, ["evaluate", "m", *flags])
        assert isinstance(ran.exception, UsageError)
        assert "question=frage" in str(ran.exception)


def test_two_spellings_of_a_metric_share_scores_and_keep_their_own(tiny, tmp_path, caplog):
    rows, scoring = tmp_path / "rows.jsonl", tmp_path / "scoring.py"
    rows.write_text('{"question": "Which pen?", "answer": "pen"}\n')
    scoring.write_text("def none(answer, accepted):\n    return 0\n")
    found = []
    for number, path in enumerate((scoring, tmp_path / "." / ".." / tmp_path.name / "scoring.py")):
        fields = [{"path": str(rows), "metric": f"{path}:none", "max_new_tokens": 4}]
        model = ModelSettings(model=str(tiny("llama")))
        out = tmp_path / f"out{number}"
        found += single.evaluate(model, fields, None, batch_size=8, output=out).tasks
    assert [each.from_cache for each in found] == [False, True]
    assert [Path(each.metric.rpartition(":")[0]) for each in found] == [
        scoring,
        tmp_path / ".." / tmp_path.name / "scoring.py",
    ]
    assert "gives nothing to what 1 rows accept" in caplog.text


def test_exact_takes_the_plain_path(monkeypatch, tmp_path):
    asked = []

    def stop(settings, **_):
        asked.append(settings)
        raise UsageError(asked="nothing", found="a test", do="stop")

    monkeypatch.setattr("narrowtune.pipeline.teach.teach", stop)
    file = tmp_path / "run.yaml"
    file.write_text("model: m\nskill: s.jsonl\ntraining: {torch_compile: true}\n")
    for flags in ([], ["--exact"]):
        CliRunner().invoke(app, ["teach", str(file), *flags])
    found = [
        (each.training.packing, each.training.torch_compile, each.remember_pictures)
        for each in asked
    ]
    assert found == [(True, True, None), (False, False, False)]


def test_rows_that_are_too_long_are_named_before_anything_is_answered(tiny, tmp_path, rows, delta):
    settings = ModelSettings(model=str(tiny("llama")), dtype="bfloat16", max_length=150)
    with pytest.raises(DataError, match=r"row 3: .* max_length is 150"):
        single.evaluate(
            settings, [{"path": str(rows)}], None, batch_size=4, output=tmp_path / "answers"
        )
    (file,) = (tmp_path / "answers").iterdir()
    assert json.loads(file.read_text(encoding="utf-8"))["row"] == 3
    with pytest.raises(DataError, match=r"row 3: .* max_length is 150") as error:
        single.probe(settings, delta, str(rows), max_prompts=4, max_new_tokens=2)
    assert "--prompts" in error.value.do


def test_a_delta_made_in_another_dtype_is_probed_in_that_dtype(tiny, rows, delta):
    settings = ModelSettings(model=str(tiny("llama")), dtype="bfloat16", device="cpu")
    result = single.probe(settings, delta, str(rows), max_prompts=2, max_new_tokens=2)
    assert result.kl_base_tuned > 0


def test_rows_that_are_left_out_are_counted_and_named(tiny, tmp_path, rows):
    output = tmp_path / "answers"
    command = ["evaluate", str(tiny("llama")), "--tasks", str(rows), "--output", str(output)]
    command += ["--max-length", "150", "--max-new-tokens", "3"]
    done = CliRunner().invoke(app, [*command, "--max-refused", "1"])
    assert done.exit_code == 0, done.output
    assert f"1 row was not used: {output}/rows_refused.jsonl" in done.output.replace("\n", "")
    (line,) = (output / "rows_refused.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["row"] == 3
    assert len((output / "rows.jsonl").read_text(encoding="utf-8").splitlines()) == 3
    command[command.index("150")] = "2000"
    done = CliRunner().invoke(app, [*command, "--overwrite"])
    assert done.exit_code == 0, done.output
    assert [path.name for path in output.iterdir()] == ["rows.jsonl"]


def test_answers_and_drift_are_measured_on_the_plain_path_where_packing_is_not_exact(
    tiny, tmp_path, rows, delta, monkeypatch, caplog
):
    asked = []
    settings = ModelSettings(model=str(tiny("llama")), dtype="bfloat16", device="cpu")

    def differ(*_):
        asked.append(1)
        return 1.0

    monkeypatch.setattr("narrowtune.pipeline.layouts.packing_error", differ)
    found = single.evaluate(
        settings,
        [{"path": str(rows), "max_new_tokens": 3}],
        None,
        batch_size=2,
        output=tmp_path / "answers",
    )
    assert not found.tasks[0].from_cache
    single.probe(settings, delta, str(rows), max_prompts=2, max_new_tokens=2)
    assert len(asked) == 2
    assert caplog.text.count("rows are not packed") == 2


def test_a_folder_as_prompts_is_one_clear_error(tiny, delta, tmp_path):
    settings = ModelSettings(model=str(tiny("llama")), dtype="bfloat16", device="cpu")
    with pytest.raises(DataError, match="save_to_disk"):
        single.probe(settings, delta, "..", max_prompts=1, max_new_tokens=1)


@pytest.fixture
def pictured(tmp_path):
    """Eight questions about two pictures."""
    for number, colour in enumerate(("red", "green")):
        PIL.Image.new("RGB", (40, 30), colour).save(tmp_path / f"{number}.png")
    rows = [{"question": f"What is {i}?", "answer": "a", "image": f"{i % 2}.png"} for i in range(8)]
    path = tmp_path / "pictured.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("remember", [None, False])
def test_a_picture_is_looked_at_once_for_all_questions(
    tiny, tmp_path, pictured, monkeypatch, remember
):
    stores = []
    real = single.make_store

    def make_store(*args, **kwargs):
        stores.append(real(*args, **kwargs))
        return stores[-1]

    monkeypatch.setattr(single, "make_store", make_store)
    settings = ModelSettings(model=str(tiny("qwen2_5_vl")), remember_pictures=remember)
    found = single.evaluate(
        settings, [{"path": str(pictured)}], None, batch_size=4, output=tmp_path / "answers"
    )
    assert found.tasks[0].num_items == 8
    (store,) = stores
    if remember is False:
        assert store is None
    else:
        assert store.num_computed == 2
        assert store.num_found >= 6


@pytest.mark.parametrize("recipe", ["sa_o", "projector"])
def test_a_probe_remembers_pictures_unless_the_eyes_changed(
    tiny, tmp_path, pictured, monkeypatch, recipe
):
    loaded = load_model(str(tiny("qwen2_5_vl")), device="cpu")
    delta = doubled(loaded, recipe, tmp_path / "delta.safetensors")

    def drift(remember):
        settings = ModelSettings(model=str(tiny("qwen2_5_vl")), remember_pictures=remember)
        return single.probe(settings, delta, str(pictured), max_prompts=8, max_new_tokens=4)

    plain, remembered = drift(False), drift(None)
    assert plain.kl_base_tuned > 0
    assert remembered.kl_base_tuned == pytest.approx(plain.kl_base_tuned, rel=1e-4)
    kept = list((tmp_path / "cache" / "features").rglob("*.safetensors"))
    assert bool(kept) == (recipe == "sa_o")


def test_a_plan_refuses_what_a_run_would(tiny, tmp_path, rows):
    path = tmp_path / "zero.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 3}}), encoding="utf-8")
    values = {"model": "org/model", "skill": {"path": str(rows)}, "output_dir": "o"}
    config = parse_config({**values, "training": {"deepspeed": str(path)}}, "test")
    with pytest.raises(UsageError, match="ZeRO stage 3"):
        single.plan(config, with_skill=True, measure_time=False)
