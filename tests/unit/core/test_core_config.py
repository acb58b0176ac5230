from __future__ import annotations

import pytest
import yaml

from narrowtune.core.config import RunConfig, SkillSettings, load_config, parse_config
from narrowtune.core.errors import UsageError

SMALLEST = {"model": "./m", "skill": "counting.jsonl"}


def parse(**changes):
    return parse_config({**SMALLEST, **changes}, "test")


def mistakes(**changes) -> str:
    with pytest.raises(UsageError) as caught:
        parse(**changes)
    return caught.value.found


def test_smallest_run_has_the_documented_defaults():
    run = parse()
    assert run.recipe == "mlp_gate_up"
    assert run.budget == 1.0
    assert run.skill.label == "counting"
    assert (run.skill.validation, run.skill.test) == (0.0, 0.2)
    assert run.training.lr_scheduler_type == "cosine"
    assert (run.training.warmup_ratio, run.training.max_grad_norm) == (0.03, 1.0)
    assert run.anchor is None


def test_short_forms():
    run = parse(keep=["a/capitals.json"], mix=["general.jsonl:0.25"], anchor=True)
    assert (run.keep[0].label, run.keep[0].path) == ("capitals", "a/capitals.json")
    assert (run.mix[0].path, run.mix[0].share) == ("general.jsonl", 0.25)
    assert run.anchor is not None
    assert run.anchor.rows_per_step == 4
    assert parse(anchor=False).anchor is None
    assert parse(keep="a.json").keep == parse(keep=["a.json"]).keep
    assert parse(mix="general.jsonl:0.25").mix == run.mix


@pytest.mark.parametrize(
    "skill", ["counting.jsonl", {"path": "counting.jsonl"}, SkillSettings(path="counting.jsonl")]
)
def test_rows_are_kept_back_for_validation_only_where_something_is_validated(skill):
    assert parse(skill=skill).skill.validation == 0.0
    assert parse(skill=skill, training={"max_steps": 5}).skill.validation == 0.0
    assert parse(skill=skill, training={"eval_steps": 5}).skill.validation == 0.1
    given = {"path": "counting.jsonl", "validation": 0.3}
    assert parse(skill=given).skill.validation == 0.3
    assert parse(skill=SkillSettings(**given)).skill.validation == 0.3
    # What a record holds is read back as it was.
    run = parse(skill=skill, training={"eval_steps": 5})
    assert RunConfig.model_validate(run.model_dump()) == run


def test_all_mistakes_are_reported_at_once():
    found = mistakes(recipe="sa_prog", budgte=1, training={"learning_rate": -1, "epochs": 2})
    for key in ("recipe", "budgte", "training.learning_rate", "training.epochs"):
        assert f"\n  {key}: " in found
    assert "mlp_gate_up" in mistakes(recipe="sa_prog")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"skill": {"path": "s.json", "validation": 0.5, "test": 0.5}}, "no rows to train on"),
        ({"skill": {"path": "s.json", "test_split": "test"}}, "test_split is a split of test_path"),
        ({"keep": ["a/x.json", "b/x.json"]}, "two data sets are called x"),
        ({"keep": ["other/counting.csv"]}, "two data sets are called counting"),
        ({"keep": [{"path": "x", "name": "../x"}]}, "can't be part of a file name"),
        ({"keep": [{"path": ".."}]}, "can't be part of a file name"),
        ({"skill": ""}, "skill"),
        ({"mix": ["general.jsonl"]}, "mix.0: 'general.jsonl' without a share"),
        ({"mix": [{"path": "g.jsonl", "shares": 0.1}]}, "mix.0.shares"),
        ({"keep": ["./counting.jsonl"]}, "keep.0.path: ./counting.jsonl is the skill's own file"),
        (
            {"skill": {"path": "s.json", "test_path": "s.json"}},
            "skill.test_path: s.json is the skill's own file",
        ),
        ({"mix": ["general.jsonl:0"]}, "mix.0.share"),
        ({"budget": float("nan")}, "budget"),
        ({"min_learning": float("inf")}, "min_learning"),
        ({"training": {"load_best_model_at_end": True}}, "needs training.eval_steps"),
        ({"training": {"deepspeed": "z.json", "save_steps": 5}}, "can't be gone on from"),
        ({"training": {"compute_dtype": "float16"}}, "training.compute_dtype"),
        (
            {"training": {"eval_steps": 5}, "skill": {"path": "s.json", "validation": 0}},
            "rows to validate on",
        ),
    ],
)
def test_wrong_values_name_their_key(changes, words):
    assert words in mistakes(**changes)


def test_two_inconsistencies_are_both_reported():
    found = mistakes(keep=["counting.csv"], training={"load_best_model_at_end": True})
    assert "two data sets" in found
    assert "eval_steps" in found


def test_a_kept_skill_is_an_overlap_and_nothing_else():
    assert "two data sets" not in mistakes(keep=["counting.jsonl"])
    same = {"path": "counting.jsonl", "name": "again"}
    assert parse(keep=[same], allow_overlap=True).keep[0].label == "again"
    assert parse(skill={"path": "f", "split": "a"}, keep=[{"path": "f", "split": "b", "name": "g"}])


def test_one_tracker_needs_no_list():
    assert parse(training={"report_to": "wandb"}).training.report_to == ["wandb"]


def test_rows_of_their_own_for_the_test_free_the_share():
    run = parse(skill={"path": "s.json", "validation": 0.9, "test": 0.5, "test_path": "t.json"})
    assert run.skill.test_path == "t.json"


def test_missing_model_and_skill():
    with pytest.raises(UsageError) as caught:
        parse_config({}, "flags")
    assert "model: " in caught.value.found
    assert "skill: " in caught.value.found
    assert "flags" in caught.value.asked


def test_overrides_win_over_the_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**SMALLEST, "training": {"max_steps": 5, "optim": "sgd"}}))
    run = load_config(
        path, {"training.max_steps": 7, "skill.metric": "number", "anchor.weight": 2, "budget": 5}
    )
    assert (run.training.max_steps, run.training.optim) == (7, "sgd")
    assert (run.skill.path, run.skill.metric) == ("counting.jsonl", "number")
    assert run.anchor is not None
    assert run.anchor.weight == 2
    assert run.budget == 5


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"model: [", "expected"),
        (b"\xff\xfe\x00m", "utf-8"),
        (b"- a\n- b\n", "list instead of keys and values"),
        (b"", "NoneType instead of keys and values"),
        (b"model: m\nkeep: [a]\nbudget: 1\nkeep: [b]\n", "keep is given twice, in lines 2 and 4"),
        (b"skill: {path: a, path: b}\n", "path is given twice, in lines 1 and 1"),
        (b"model: m\ntraining:\n  optim: sgd\n  optim: adam\n", "optim is given twice"),
    ],
)
def test_a_file_that_is_no_run(tmp_path, content, words):
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        load_config(path)
    assert words in caught.value.found
    assert str(path) in caught.value.asked


@pytest.mark.parametrize(
    ("content", "is_told"),
    [("defaults: {question: What is it?}\n", True), ("model: m\nmodel: n\n", False)],
)
def test_text_that_needs_quotes_is_told_so_and_nothing_else_is(tmp_path, content, is_told):
    path = tmp_path / "run.yaml"
    path.write_text(content)
    with pytest.raises(UsageError) as caught:
        load_config(path)
    assert ("put quotes round texts" in caught.value.do) == is_told


def test_a_missing_file(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        load_config(tmp_path / "none.yaml")


def test_a_resolved_run_is_read_back_unchanged(tmp_path):
    run = parse(keep=["x.json"], mix=["g.json:0.1"], anchor={"weight": 0.5}, budget_task=3)
    path = tmp_path / "resolved.yaml"
    path.write_text(yaml.safe_dump(run.model_dump(mode="json")))
    assert load_config(path) == run
    assert isinstance(run, RunConfig)
