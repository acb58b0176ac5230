"""A study on pictures: what a frozen tower sees is computed once for all arms."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from narrowtune.core.data_settings import SkillSettings
from narrowtune.core.study_settings import StudySettings
from narrowtune.miniature.rows import write_rows
from narrowtune.study import anchors
from narrowtune.study.chains import all_chains
from narrowtune.study.run import Study


@pytest.fixture
def settings(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("NARROWTUNE_CACHE", str(tmp_path / "cache"))
    train = write_rows(tmp_path, "counting", "train", 8, 1)
    test = write_rows(tmp_path, "counting", "test", 5, 1)
    skill = SkillSettings(**train.model_dump(), test_path=test.path)
    prompts = tmp_path / "drift.jsonl"
    prompts.write_text('{"prompt": "Tell me."}\n', encoding="utf-8")
    return StudySettings.model_validate(
        {
            "model": str(tiny("qwen2_5_vl", torch.bfloat16)),
            "skills": [skill.model_copy(update={"max_new_tokens": 4}).model_dump()],
            "keep": [
                write_rows(tmp_path, "charts", "test", 4, 1)
                .model_copy(update={"max_new_tokens": 4})
                .model_dump()
            ],
            "arms": [
                {"recipe": recipe, "learning_rates": [1e-2]}
                for recipe in ("sa_proj", "mlp", "projector")
            ],
            "training": {
                "global_batch_size": 4,
                "per_device_train_batch_size": 4,
                "compute_dtype": "float32",
            },
            "drift": {"prompts": str(prompts), "max_new_tokens": 4},
            "output_dir": str(tmp_path / "out"),
        }
    )


def outcomes(study: Study) -> list:
    found = [study.score_base()]
    for chain in all_chains(study.settings):
        study.run(chain, 0, found.append)
    return [
        (r.chain.arm, r.tasks, r.drift and r.drift.kl_base_tuned, r.final_loss, r.relative_update)
        for r in found
    ]


def test_all_arms_look_pictures_up_and_find_what_they_would_without(settings):
    plain = outcomes(Study(settings.model_copy(update={"remember_pictures": False})))
    study = Study(settings)
    store, seen = study._store, []
    tower = study.loaded.model.get_submodule(study.loaded.family.vision_tower[0])
    tower.register_forward_pre_hook(lambda *_: seen.append(1))
    found = outcomes(study)
    for (arm, tasks, kl, loss, update), expected in zip(found, plain, strict=True):
        assert (arm, tasks) == expected[:2]
        if arm != "base":
            assert (kl, loss, update) == pytest.approx(expected[2:], rel=1e-3)
    # Seven rows to learn from and one kept back, five and four to be asked; two arms see no other
    # than the base, and the projector's own sees for itself.
    assert store.num_computed == 8 + 5 + 4
    # Once more those of the rows by which each arm's first step is compared.
    looks = (1 + 5 + 4) + 2 * (8 + 5 + 4) + 2 * 4
    assert store.num_computed + store.num_found == looks
    before = len(seen)
    study.run(next(all_chains(settings)), 0, lambda result: None)
    assert len(seen) == before + 1  # the plain path of that comparison


def test_an_anchor_asks_of_the_pictures_of_what_is_taught(settings, tmp_path, monkeypatch):
    second = write_rows(tmp_path, "clock", "train", 8, 1)
    clocks = write_rows(tmp_path, "clock", "test", 4, 1)
    own = SkillSettings(**second.model_dump(), test_path=clocks.path)
    general = tmp_path / "general.jsonl"
    rows = write_rows(tmp_path, "captions", "train", 3, 1)
    lines = [json.loads(line) for line in Path(rows.path).read_text("utf-8").splitlines()]
    asked = [{"id": row["id"], "image": row["image"], "prompt": row["question"]} for row in lines]
    general.write_text("".join(json.dumps(row) + "\n" for row in asked), encoding="utf-8")
    arm = {"recipe": "mlp", "learning_rates": [1e-2]}
    anchor = {"prompts": str(general), "max_new_tokens": 4, "earlier_skills": 0}
    arms = [
        {**arm, "name": name, "anchor": {**anchor, **more}}
        for name, more in (("plain", {}), ("about", {"skill_pictures": 4}))
    ]
    skills = [*settings.model_dump()["skills"], own.model_dump()]
    changed = StudySettings.model_validate(
        {
            **settings.model_dump(),
            "skills": skills,
            "arms": arms,
            "orders": {"both": ["counting", "clock"]},
        }
    )
    study = Study(changed)
    plain, about = (each.anchor for each in changed.arms)
    general = study._anchors.general(plain, None)
    assert study._anchors.general(about, None) is general
    for skill in ("counting", "clock"):
        pool = study.pools[skill]
        found = study._anchors.about_skill(general, about, pool, study._asked(skill), 1, None)
        assert len(found.encoded) == found.num_general == 3 + 4
        known = {study.encoder.encode(row).picture_digest for row in pool}
        assert len({row.picture_digest for row in found.encoded[3:]} & known) == 4
    text = [replace(row, messages=row.messages[1:]) for row in pool]
    assert study._anchors.about_skill(general, about, text, (), 1, None) is general
    assert study._anchors.about_skill(general, plain, pool, (), 1, None) is general
    # A chain asks of what it teaches, as `teach` does.
    seen = []
    build = anchors.build_anchor
    monkeypatch.setattr(
        anchors,
        "build_anchor",
        lambda *given, **more: seen.append(given[2]) or build(*given, **more),
    )
    chain = next(each for each in all_chains(changed) if each.arm.anchor == about)
    study.run(chain, 0, lambda result: None)
    assert [len(prompts) for prompts in seen] == [4, 4]
