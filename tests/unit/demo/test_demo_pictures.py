"""The demo on pictures: all runs have the same rows; prompts ask for nothing that is measured."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest

from narrowtune.core.config import DataSettings, RunConfig
from narrowtune.data.rows import read_rows
from narrowtune.data.splits import find_overlap
from narrowtune.demo import pictures
from narrowtune.miniature.registry import TASKS, tasks_of


@pytest.fixture(scope="module")
def configs(tmp_path_factory) -> list[RunConfig]:
    folder = tmp_path_factory.mktemp("demo")
    patch = pytest.MonkeyPatch()
    patch.setattr(pictures, "QUICK", pictures.Size(train=24, test=8, keep=4, drift=5, anchor=9))
    made = pictures.prepare(folder, folder / "model", seed=3, quick=True)
    patch.undo()
    return made


def test_runs_differ_in_what_trains_and_in_nothing_else(configs):
    assert [Path(config.output_dir).name for config in configs] == list(pictures.RUNS)
    for config, run in zip(configs, pictures.RUNS.values(), strict=True):
        assert config.recipe == run.recipe
        assert config.training.learning_rate == run.learning_rate
        assert (config.anchor is not None) == (config.training.pull_to_base > 0) == run.anchored
    own = {"recipe": "", "anchor": None, "output_dir": ""}
    rate = {"learning_rate": 1.0, "pull_to_base": 0.0}
    first, *others = [
        config.model_copy(
            update={**own, "training": config.training.model_copy(update=rate)}
        ).model_dump()
        for config in configs
    ]
    assert all(other == first for other in others)
    assert {"sa_proj", "mlp_gate_up", "language_model"} <= {run.recipe for run in configs}


def test_all_held_out_tasks_are_kept_and_all_answers_are_scored_as_the_world_says(configs):
    kept = configs[0].keep
    assert [task.name for task in kept] == [task.name for task in tasks_of("held_out")]
    for settings in (configs[0].skill, *kept):
        task = TASKS[settings.name]
        assert (settings.metric, settings.max_new_tokens) == (task.metric, task.max_new_tokens)


def test_prompts_have_pictures_and_no_answers_and_come_from_nothing_that_is_measured(configs):
    anchor = configs[-1].anchor
    assert anchor is not None
    drift = configs[0].drift
    for path, count in ((anchor.prompts, 9), (drift.prompts, 5)):
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        assert len(rows) == count
        for row in rows:
            task, split, *_ = row["id"].split("-")
            assert TASKS[task].role in ("probe", "pretrain")
            assert split == "pretrain"
            assert set(row) == {"id", "image", "question"}
            assert (Path(path).parent / row["image"]).is_file()
    assert drift.max_prompts == 5


def test_no_picture_is_used_for_two_things(configs):
    config = configs[-1]
    seen: Counter[str] = Counter()
    paths = [config.skill.path, config.skill.test_path, *(task.path for task in config.keep)]
    paths += [config.anchor.prompts, config.drift.prompts]
    for path in paths:
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            picture = Path(path).parent / json.loads(line)["image"]
            seen[hashlib.sha256(picture.read_bytes()).hexdigest()] += 1
    assert set(seen.values()) == {1}


def test_rows_are_read_like_anyone_s_and_none_is_both_taught_and_measured(configs):
    config = configs[0]
    taught = read_rows(config.skill).examples
    assert len(taught) == 24
    own_test = DataSettings(path=config.skill.test_path)
    for measured in (own_test, *config.keep):
        assert not find_overlap(taught, read_rows(measured).examples)


def test_another_seed_draws_other_rows_and_the_same_prompts(configs, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "QUICK", pictures.Size(24, 8, 4, 5, 9))
    other = pictures.prepare(tmp_path, tmp_path / "model", seed=4, quick=True)[0]
    here, there = (Path(config.skill.path).read_text() for config in (configs[0], other))
    assert here != there
    here, there = (Path(config.drift.prompts).read_text() for config in (configs[0], other))
    assert here == there
