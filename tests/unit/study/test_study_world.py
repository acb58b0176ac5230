"""The rows of the miniature study: what they are drawn from, and that nothing leaks."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from narrowtune.core.errors import UsageError
from narrowtune.core.study_settings import StudySettings
from narrowtune.data.rows import read_rows
from narrowtune.data.splits import find_overlap
from narrowtune.miniature.reference import shipped
from narrowtune.miniature.registry import TASKS
from narrowtune.study.chains import all_chains
from narrowtune.study.presets import PRESETS, SKILL_ORDERS, Sizes, make_arms
from narrowtune.study.run import Study
from narrowtune.study.world import GENERAL, write_world

PRESET = replace(PRESETS["miniature"], sizes=Sizes(4, 6, 2, 3, 3, 4, 8, 8))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("out") / "world", PRESET)


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_skills_and_kept_tasks_are_those_of_the_protocol(world):
    assert tuple(skill.label for skill in world.skills) == SKILL_ORDERS["default"]
    assert len(world.keep) == 8
    assert all(TASKS[keep.label].role == "held_out" for keep in world.keep)
    for skill in world.skills:
        assert skill.metric == TASKS[skill.label].metric
        assert len(lines(skill.path)) == 8
        assert len(lines(skill.test_path)) == 3
        assert round(skill.validation * 8) == 2


def test_prompts_have_pictures_and_no_labels(world):
    for path, count in ((world.anchor_prompts, 8), (world.drift_prompts, 4)):
        rows = lines(path)
        assert len(rows) == count
        assert all(set(row) == {"id", "image", "question"} for row in rows)
    settings = world.keep[0].model_copy(update={"path": world.anchor_prompts})
    found = read_rows(settings, prompts_only=True).examples
    assert [len(example.images) for example in found] == [1] * 8
    assert all("answer" in row for row in lines(world.replay))


def test_general_rows_are_neither_taught_nor_kept_and_share_no_seed(world):
    taught = {skill.label for skill in world.skills} | {keep.label for keep in world.keep}
    assert not taught & set(GENERAL)
    seeds = {}
    for path in (world.anchor_prompts, world.drift_prompts, world.replay):
        for row in lines(path):
            task, split, seed, _ = row["id"].split("-")
            assert (task in GENERAL, split) == (True, "pretrain")
            seeds.setdefault(path, set()).add(seed)
        if path != world.drift_prompts:
            assert {row["id"].split("-")[0] for row in lines(path)} == set(GENERAL)
    assert {row["id"].split("-")[0] for row in lines(world.drift_prompts)} == {"captions"}
    every = [seed for found in seeds.values() for seed in found]
    assert len(every) == len(set(every)) == 3
    assert "0" not in every


def test_nothing_is_both_learned_and_measured(world):
    measured = [e for keep in world.keep for e in read_rows(keep).examples]
    for skill in world.skills:
        tested = skill.model_copy(update={"path": skill.test_path})
        assert not find_overlap(read_rows(skill).examples, read_rows(tested).examples)
        assert not find_overlap(read_rows(skill).examples, measured)
    replayed = world.keep[0].model_copy(update={"path": world.replay, "metric": "exact_match"})
    assert not find_overlap(read_rows(replayed).examples, measured)


def test_rows_are_written_once_and_another_preset_needs_another_folder(tmp_path):
    first = write_world(tmp_path / "world", PRESET)
    written = Path(first.drift_prompts).stat().st_mtime_ns
    assert write_world(tmp_path / "world", PRESET) == first
    assert Path(first.drift_prompts).stat().st_mtime_ns == written
    other = replace(PRESET, sizes=replace(PRESET.sizes, test=4))
    with pytest.raises(UsageError, match="another preset"):
        write_world(tmp_path / "world", other)
    Path(first.drift_prompts).write_text("another")
    with pytest.raises(UsageError, match="not as they were written"):
        write_world(tmp_path / "world", PRESET)


def test_an_interrupted_folder_is_written_again(tmp_path):
    first = write_world(tmp_path / "world", PRESET)
    whole = Path(first.replay).read_text()
    (tmp_path / "world" / "world.json").unlink()
    Path(first.replay).write_text("cut")
    write_world(tmp_path / "world", PRESET)
    assert Path(first.replay).read_text() == whole


def test_a_model_that_does_not_ship_is_an_error_that_names_those_that_do(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "_WEIGHTS", tmp_path)
    with pytest.raises(UsageError, match="this one has none"):
        shipped.reference_folder("qwen2_5_vl")
    (tmp_path / "llava_onevision").mkdir()
    (tmp_path / "llava_onevision" / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="choose one of llava_onevision"):
        shipped.reference_folder("../qwen2_5_vl")
    assert shipped.reference_folder("llava_onevision") == tmp_path / "llava_onevision"


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_every_kind_of_arm_reads_the_world_with_a_multimodal_model(world, tiny, tmp_path, family):
    arms = make_arms(world.anchor_prompts, world.replay)
    labels = ("sa_proj + anchor", "language_model + replay", "vision_tower", "projector", "full")
    settings = StudySettings(
        model=str(tiny(family, torch.bfloat16)),
        skills=[skill for skill in world.skills if skill.label == "counting"],
        keep=[world.keep[0].model_copy(update={"max_new_tokens": 2})],
        arms=[arms[label].model_copy(update={"learning_rates": [1e-3]}) for label in labels],
        num_samples=4,
        training={"global_batch_size": 4, "compute_dtype": "float32"},
        drift={"prompts": world.drift_prompts, "max_prompts": 2, "max_new_tokens": 2},
        output_dir=str(tmp_path),
    )
    study, found = Study(settings, threads=1), []
    assert study.score_base().validation is not None
    for chain in all_chains(settings):
        study.run(chain, 0, found.append)
    steps = {result.chain.arm: result.steps for result in found}
    assert steps == {**dict.fromkeys(labels, 1), "language_model + replay": 2}
    assert all(result.relative_update > 0 for result in found)
