"""What is wrong with paths and trackers is said before a model is loaded, all at once."""

from __future__ import annotations

import importlib.util

import pytest

from narrowtune.core.config import ModelSettings, parse_config
from narrowtune.core.errors import DataError, UsageError
from narrowtune.pipeline import single
from narrowtune.pipeline.checks import check_paths, check_run
from narrowtune.pipeline.teach import teach


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "a", "answer": "b"}\n', encoding="utf-8")
    return str(path)


@pytest.fixture(autouse=True)
def _no_model(monkeypatch):
    def load(_settings):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(single, "load", load)
    monkeypatch.setattr("narrowtune.pipeline.teach.load", load)


def test_all_missing_paths_of_a_run_are_in_one_error(tmp_path, rows):
    values = {
        "model": "./no-model",
        "skill": {"path": "./no-skill", "test_path": "no-test.jsonl", "image_root": "no-root"},
        "keep": [rows, {"path": "no-keep.csv", "image_root": "no-root-either"}],
        "mix": ["no-mix.json:0.1"],
        "anchor": {"prompts": "no-anchor.jsonl"},
        "drift": {"prompts": "no-drift.jsonl"},
        "training": {"deepspeed": "no-speed.json"},
        "output_dir": str(tmp_path / "run"),
    }
    with pytest.raises(DataError) as error:
        teach(parse_config(values, "test"))
    for line in (
        "model ./no-model: no such file or folder",
        "skill.path ./no-skill: no such file or folder",
        "skill.test_path no-test.jsonl: no such file",
        "skill.image_root no-root: ",
        "keep.1.path no-keep.csv: no such file",
        "keep.1.image_root no-root-either: ",
        "mix.0.path no-mix.json: no such file",
        "anchor.prompts no-anchor.jsonl: no such file",
        "drift.prompts no-drift.jsonl: no such file",
        "training.deepspeed no-speed.json: ",
    ):
        assert f"\n  {line}" in error.value.found
    assert "keep.0" not in error.value.found
    assert not (tmp_path / "run").exists()


def test_a_plan_without_a_skill_looks_for_none(rows):
    config = parse_config({"model": "m", "skill": "./none", "keep": [rows]}, "test")
    check_run(config, with_skill=False)
    with pytest.raises(DataError, match=r"skill\.path \./none"):
        check_run(config)


def test_what_may_be_a_hub_id_is_left_to_the_hub(rows):
    check_paths("org/model-1.5B", [("--tasks", "org/rows"), ("--tasks", rows)])
    with pytest.raises(DataError):
        check_paths("org/model/too/deep", [])


def test_paths_of_evaluate_and_probe(tmp_path, rows):
    settings = ModelSettings(model="./no-model")
    with pytest.raises(DataError) as error:
        single.evaluate(
            settings,
            [{"path": rows}, {"path": "no-rows.jsonl"}],
            tmp_path / "no-delta",
            batch_size=2,
            output=tmp_path / "answers",
        )
    for words in ("model ./no-model", "--tasks no-rows.jsonl", f"--delta {tmp_path}/no-delta"):
        assert words in error.value.found
    with pytest.raises(DataError, match=r"--prompts no\.jsonl") as error:
        single.probe(settings, tmp_path / "no-delta", "no.jsonl", max_prompts=1, max_new_tokens=1)
    assert "--delta" in error.value.found


@pytest.mark.parametrize("names", ["wandb", ["wandb", "no-such-tracker"]])
def test_a_tracker_that_can_not_be_used(tmp_path, rows, names):
    if importlib.util.find_spec("wandb"):
        pytest.skip("wandb is installed")
    values = {
        "model": "m",
        "skill": rows,
        "training": {"report_to": names},
        "output_dir": str(tmp_path / "run"),
    }
    with pytest.raises(UsageError) as error:
        teach(parse_config(values, "test"))
    assert "wandb" in error.value.asked
    assert "wandb to be installed" in error.value.found
    assert ("no-such-tracker is not supported" in error.value.found) == isinstance(names, list)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("place", ["file", "file/run"])
def test_an_output_dir_that_can_not_be_written(tmp_path, rows, place):
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    values = {"model": "m", "skill": rows, "output_dir": str(tmp_path / place)}
    with pytest.raises(UsageError) as error:
        teach(parse_config(values, "test"))
    assert str(tmp_path / place) in error.value.asked
    assert "--output-dir" in error.value.do
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


def test_answers_from_before_are_not_overwritten(tmp_path, rows):
    (tmp_path / "rows.jsonl").touch()
    before = (tmp_path / "rows.jsonl").read_bytes()
    settings = ModelSettings(model="m")
    with pytest.raises(UsageError, match=r"rows\.jsonl from before") as error:
        single.evaluate(settings, [{"path": rows}], None, batch_size=2, output=tmp_path)
    assert "--overwrite" in error.value.do
    assert (tmp_path / "rows.jsonl").read_bytes() == before
    with pytest.raises(AssertionError, match="a model was loaded"):
        single.evaluate(
            settings, [{"path": rows}], None, batch_size=2, output=tmp_path, overwrite=True
        )
