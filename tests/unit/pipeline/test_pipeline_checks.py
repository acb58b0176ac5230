"""What is wrong with paths and trackers is said before a model is loaded, all at once."""

from __future__ import annotations

import importlib.util
import json

import pytest

from narrowtune.core.config import ModelSettings, parse_config
from narrowtune.core.errors import DataError, UsageError
from narrowtune.core.training_settings import TrainingSettings
from narrowtune.pipeline import single
from narrowtune.pipeline.checks import check_launch, check_paths, check_run
from narrowtune.pipeline.teach import teach


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "a", "answer": "b"}\n', encoding="utf-8")
    return str(path)


@pytest.fixture(autouse=True)
def _no_model(monkeypatch):
    def load(_settings, **_):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(single, "load", load)
    monkeypatch.setattr(single, "load_reader", load)
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
    with pytest.raises(UsageError, match="--image-root"):
        single.probe(
            settings, tmp_path, None, max_prompts=1, max_new_tokens=1, image_root=str(tmp_path)
        )


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


@pytest.mark.parametrize("name", ["rows.jsonl", "rows_refused.jsonl"])
def test_answers_from_before_are_not_overwritten(tmp_path, rows, name):
    output = tmp_path / "answers"
    output.mkdir()
    (output / name).write_text("mine", encoding="utf-8")
    settings = ModelSettings(model="m")
    with pytest.raises(UsageError, match=f"{name} from before") as error:
        single.evaluate(settings, [{"path": rows}], None, batch_size=2, output=output)
    assert "--overwrite" in error.value.do
    assert (output / name).read_text(encoding="utf-8") == "mine"
    with pytest.raises(AssertionError, match="a model was loaded"):
        single.evaluate(
            settings, [{"path": rows}], None, batch_size=2, output=output, overwrite=True
        )
    (output / name).unlink()
    (output / name).mkdir()
    with pytest.raises(UsageError, match=f"{name}: a folder"):
        single.evaluate(
            settings, [{"path": rows}], None, batch_size=2, output=output, overwrite=True
        )


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("linked", [False, True])
def test_no_answers_go_where_the_rows_are(tmp_path, rows, overwrite, linked):
    output = tmp_path
    if linked:
        output = tmp_path.parent / f"{tmp_path.name}-link"
        output.symlink_to(tmp_path)
    with pytest.raises(UsageError, match=r"rows\.jsonl there is one of the sets of rows"):
        single.evaluate(
            ModelSettings(model="m"),
            [{"path": rows}],
            None,
            batch_size=2,
            output=output,
            overwrite=overwrite,
        )


def test_an_output_that_is_a_link_to_nowhere(tmp_path, rows):
    (tmp_path / "answers").symlink_to(tmp_path / "gone")
    with pytest.raises(UsageError, match="can be written, or a new one"):
        single.evaluate(
            ModelSettings(model="m"),
            [{"path": rows}],
            None,
            batch_size=2,
            output=tmp_path / "answers",
        )


@pytest.mark.parametrize("model", ["~no-such-user-here/m", "m/" * 20 + "x" * 300, "a\0b"])
def test_a_model_that_no_disk_can_have(model, rows):
    with pytest.raises(DataError, match="model "):
        check_paths(model, [("--tasks", rows)])


def test_rows_that_no_disk_can_have(rows):
    with pytest.raises(DataError, match="--tasks xxx"):
        check_paths("m", [("--tasks", "x" * 300 + "/y.jsonl")], [("--delta", "y" * 300)])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"mix": [{"path": "", "share": 0.1}]}, "mix.0.path"),
        ({"anchor": {"prompts": ""}}, "anchor.prompts"),
        ({"drift": {"prompts": ""}}, "drift.prompts"),
        ({"model": ""}, "model"),
        ({"output_dir": ""}, "output_dir"),
    ],
)
def test_a_path_of_nothing_is_refused(values, words):
    with pytest.raises(UsageError) as error:
        parse_config({"model": "m", "skill": "s.jsonl", **values}, "test")
    assert words in error.value.found


def test_batch_sizes_that_do_not_fit_are_refused_before_anything(tmp_path, rows):
    values = {
        "model": "m",
        "skill": rows,
        "training": {"global_batch_size": 6, "per_device_train_batch_size": 4},
        "output_dir": str(tmp_path / "run"),
    }
    config = parse_config(values, "test")
    with pytest.raises(UsageError, match="global batch size of 6"):
        teach(config)
    assert not (tmp_path / "run").exists()
    whole = config.training.model_copy(update={"per_device_train_batch_size": 6})
    fitting = config.model_copy(update={"training": whole})
    check_run(fitting)
    with pytest.raises(UsageError, match="4 processes"):
        check_run(fitting, num_processes=4)


@pytest.mark.parametrize("names", [["none", "tensorboard"], ["all", "tensorboard"]])
def test_no_tracker_beside_all_or_none(rows, names):
    values = {"model": "m", "skill": rows, "training": {"report_to": names}}
    with pytest.raises(UsageError, match=f"{names[0]} stands for a list of its own"):
        check_run(parse_config(values, "test"))
    for alone in names[:1]:
        values = {"model": "m", "skill": rows, "training": {"report_to": alone}}
        check_run(parse_config(values, "test"))


def test_a_gpu_by_number_is_refused_where_the_trainer_would_take_another(rows, tmp_path):
    values = {"model": str(tmp_path), "skill": rows, "output_dir": str(tmp_path / "run")}
    config = parse_config({**values, "device": "cuda:1"}, "test")
    with pytest.raises(UsageError, match="CUDA_VISIBLE_DEVICES=1"):
        check_run(config)
    check_run(config, with_skill=False)
    for device in ("cuda", "cuda:0", "cpu", "auto"):
        check_run(parse_config({**values, "device": device}, "test"))


def test_ways_of_sharing_out_that_end_without_a_delta_are_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    check_launch(TrainingSettings(), 1)
    check_launch(TrainingSettings(fsdp=True), 2)
    with pytest.raises(UsageError, match="one process"):
        check_launch(TrainingSettings(fsdp=True), 1)
    for stage, contents in ((2, {"stage": 2}), (3, {"stage": 3}), (None, {}), (None, [])):
        path = tmp_path / "zero.json"
        path.write_text(json.dumps({"zero_optimization": contents}), encoding="utf-8")
        training = TrainingSettings(deepspeed=str(path))
        if stage == 3:
            with pytest.raises(UsageError, match="ZeRO stage 3"):
                check_launch(training, 2)
        else:
            check_launch(training, 2)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    for training in (TrainingSettings(), TrainingSettings(fsdp=True)):
        with pytest.raises(UsageError, match=r"launch without[\s\S]*training\.fsdp: true"):
            check_launch(training, 2)
