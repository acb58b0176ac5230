"""A study on a tiny model: what it runs, that it can be stopped, and that nothing leaks."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from typer.testing import CliRunner

from narrowtune.cli.app import app
from narrowtune.core.errors import DataError, UsageError
from narrowtune.core.study_settings import ArmSettings, StudySettings
from narrowtune.pipeline.inputs import load, make_encoder
from narrowtune.pipeline.sources import Source
from narrowtune.study import anchors, workers
from narrowtune.study.chains import all_chains, open_chains
from narrowtune.study.forms import form_loss
from narrowtune.study.results import (
    append_result,
    base_of,
    by_chain,
    read_results,
    unpack_scores,
)
from narrowtune.study.rows import read_study
from narrowtune.study.run import Study
from narrowtune.study.tables import at_edge, best_point, frontier, matched, sequences
from narrowtune.study.workers import results_path, run_study
from narrowtune.train.anchor import build_anchor
from study_rows import WORDS, rows, write


@pytest.fixture(scope="module")
def settings(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    prompts = [{"prompt": f"Tell me about the {word}."} for word in WORDS]
    free = write(folder / "free.jsonl", prompts)
    skills = [
        {
            "name": kind,
            "path": write(folder / f"{kind}.jsonl", rows(kind, 0, 30)),
            "test_path": write(folder / f"{kind}_test.jsonl", rows(kind, 100, 6)),
            "max_new_tokens": 4,
        }
        for kind in ("first", "last")
    ]
    return StudySettings.model_validate(
        {
            "model": str(tiny("llama", torch.bfloat16)),
            "skills": skills,
            "keep": [
                {
                    "name": "say",
                    "path": write(folder / "say.jsonl", rows("say", 200, 6)),
                    "max_new_tokens": 4,
                }
            ],
            "arms": [
                {"recipe": "sa_proj", "learning_rates": [1e-3, 1e-2]},
                {"recipe": "mlp", "learning_rates": [1e-2], "distillation": True},
            ],
            "num_samples": 16,
            "training": {
                "global_batch_size": 4,
                "per_device_train_batch_size": 4,
                "compute_dtype": "float32",
            },
            "drift": {"prompts": free, "max_new_tokens": 4, "max_prompts": 4},
            "eval_batch_size": 8,
            "output_dir": str(folder / "out"),
        }
    )


def changed(settings, tmp_path, **update):
    return settings.model_copy(update={"output_dir": str(tmp_path / "out"), **update})


def without_seconds(results):
    drift = {"seconds": 0.0}
    return [
        result.model_copy(
            update={
                "seconds": 0.0,
                "drift": result.drift and result.drift.model_copy(update=drift),
            }
        )
        for result in results
    ]


def chains_first(chains):
    return next(iter(chains.values()))[0].shown


def weights(study):
    return {n: p.detach().clone() for n, p in study.loaded.model.named_parameters()}


@pytest.fixture(scope="module")
def finished(settings):
    """Every chain in this process."""
    study = Study(settings, threads=1)
    before = weights(study)
    found = [study.score_base()]
    for chain in all_chains(settings):
        study.run(chain, 0, found.append)
        after = weights(study)
        assert all(torch.equal(before[name], after[name]) for name in before)
    return found


def test_every_stage_of_every_chain_is_scored(settings, finished):
    base, chains = base_of(finished), by_chain(finished)
    assert [key.arm for key in chains] == ["sa_proj", "sa_proj", "mlp + LwF"]
    for stages in chains.values():
        assert [stage.skill for stage in stages] == ["first", "last"]
        for stage in stages:
            assert set(stage.tasks) == set(base.tasks) == {"first", "last", "say"}
            assert stage.tasks["say"].role == "held_out"
            assert len(unpack_scores(stage.tasks["say"].items)) == 6
            assert stage.steps == 4
            assert stage.relative_update > 0
            assert stage.drift.kl_base_tuned > 0
            assert stage.validation is not None
            assert stage.constrained is None
            assert len(stage.layers.attention) == len(stage.layers.mlp) == 2
            assert stage.layers.num_positions == stage.drift.num_tokens
            assert max(stage.layers.attention) > 0
            assert [shown.prompt for shown in stage.shown] == [
                f"Tell me about the {word}." for word in WORDS[:4]
            ]
            assert [s.base for s in stage.shown] == [s.base for s in chains_first(chains)]
            assert any(shown.base != shown.tuned for shown in stage.shown)
    # The second stage goes on from the first: it is further from the base.
    assert all(second.relative_update > first.relative_update for first, second in chains.values())
    assert not open_chains(list(all_chains(settings)), finished)


def test_a_rate_changes_the_result_and_a_second_run_does_not(settings, finished):
    slow, fast, _ = by_chain(finished).values()
    assert slow[0].drift.kl_base_tuned < fast[0].drift.kl_base_tuned
    study, again = Study(settings, threads=1), []
    study.run(next(all_chains(settings)), 0, again.append)
    assert without_seconds(again) == without_seconds(slow)


def test_a_study_that_is_stopped_goes_on(settings, finished, tmp_path):
    mine = changed(settings, tmp_path)
    chain = next(all_chains(mine))
    study, found = Study(mine, threads=1), []

    def stop(result):
        found.append(result)
        if result.stage == 2:
            raise KeyboardInterrupt

    def stop_at_once(result):
        found.append(result)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study.run(chain, 0, stop)
    assert [result.stage for result in found] == [1, 2]
    # Stage 2 was not written down: it runs again from the weights after stage 1.
    found.pop()
    study.run(chain, 1, found.append)
    assert without_seconds(found) == without_seconds(by_chain(finished)[chain.key])
    assert not list(Path(mine.output_dir).rglob("*.safetensors"))
    # Without the weights, the chain begins again.
    with pytest.raises(KeyboardInterrupt):
        study.run(chain, 0, stop_at_once)
    again = []
    study.run(chain, 1, again.append)
    assert [result.stage for result in again] == [1, 2]


def test_processes_give_what_one_gives(settings, finished, tmp_path):
    mine = changed(settings, tmp_path)
    told = []
    run_study(mine, lambda result, missing: told.append(missing), num_workers=2)
    found = read_results(results_path(mine))
    assert len(told) == len(found) == len(finished)
    assert told[0] == 6
    assert told[-1] == 0
    expected = {(r.chain, r.stage): r for r in without_seconds(finished)}
    assert {(r.chain, r.stage): r for r in without_seconds(found)} == expected
    # Nothing is left to do, and a seed more is all that is added.
    run_study(mine, lambda *_: told.append("again"), num_workers=2)
    assert "again" not in told


def test_results_of_other_settings_are_refused_and_additions_are_not(settings, finished, tmp_path):
    mine = changed(settings, tmp_path)
    for result in finished:
        append_result(results_path(mine), result)
    run_study(mine, print)
    assert (tmp_path / "out" / "study.json").exists()
    with pytest.raises(UsageError, match=r"num_samples \(16, now 8\)"):
        run_study(mine.model_copy(update={"num_samples": 8}), print)


def test_the_base_is_scored_again_where_scores_are_missing(settings, finished, tmp_path):
    mine = changed(settings, tmp_path, constrained=True)
    for result in finished:
        append_result(results_path(mine), result)
    told = []
    run_study(mine, lambda result, missing: told.append(result))
    assert [result.stage for result in told] == [0]
    base = base_of(read_results(results_path(mine)))
    assert set(base.constrained) == {"say"}
    assert base.tasks == base_of(finished).tasks


def test_no_steps_change_nothing(settings, tmp_path):
    training = settings.training.model_copy(update={"max_steps": 0})
    mine = changed(settings, tmp_path, training=training)
    study, found = Study(mine, threads=1), []
    base = study.score_base()
    study.run(next(all_chains(mine)), 0, found.append)
    assert all(result.tasks == base.tasks for result in found)
    assert all(result.drift.kl_base_tuned == 0 for result in found)
    assert all(result.relative_update == 0 for result in found)
    assert all(result.layers.attention == result.layers.mlp == [0.0, 0.0] for result in found)
    assert all(shown.base == shown.tuned for result in found for shown in result.shown)


def test_held_out_tasks_are_scored_in_the_right_form_where_asked_for(settings, tmp_path):
    mine = changed(settings, tmp_path, constrained=True, orders={"one": ["first"]})
    options = settings.keep[0].model_copy(update={"name": "chosen", "mode": "options"})
    path = write(
        tmp_path / "chosen.jsonl",
        [{**row, "options": ["dog", "cat", row["answer"]]} for row in rows("say", 250, 6)],
    )
    mine = mine.model_copy(
        update={"keep": [*settings.keep, options.model_copy(update={"path": path})]}
    )
    study, found = Study(mine, threads=1), []
    base = study.score_base()
    study.run(next(all_chains(mine)), 0, found.append)
    for result in (base, *found):
        assert set(result.constrained) == {"say", "chosen"}
        assert result.constrained["say"].valid_format == 1
        assert len(unpack_scores(result.constrained["say"].items)) == 6
        # Options are chosen among in free scores too.
        assert result.constrained["chosen"] == result.tasks["chosen"]
    assert form_loss(base, found[0]).free == pytest.approx(
        50 * sum(base.tasks[n].mean - found[0].tasks[n].mean for n in ("say", "chosen"))
    )


def test_an_average_lies_between(settings, tmp_path):
    arms = [
        ArmSettings(recipe="sa_proj", learning_rates=[1e-2], name=f"a{share}", wise_ft=share)
        for share in (0.0, 0.5, 1.0)
    ]
    mine = changed(settings, tmp_path, arms=arms, orders={"one": ["first"]})
    study, found = Study(mine, threads=1), []
    for chain in all_chains(mine):
        study.run(chain, 0, found.append)
    whole, half, none = (result.relative_update for result in found)
    assert half == pytest.approx(whole / 2, rel=0.05)  # the average is rounded to bf16
    assert none == 0
    assert found[2].drift.kl_base_tuned == 0


def test_what_moved_furthest_stays_and_less_is_learned_and_lost(settings, tmp_path):
    arms = [
        ArmSettings(recipe="sa_proj", learning_rates=[1e-2], **more)
        for more in ({}, {"density": 0.5}, {"density": 0.02}, {"density": 0.5, "wise_ft": 1.0})
    ]
    assert [arm.label for arm in arms[1:]] == [
        "sa_proj + density 0.5",
        "sa_proj + density 0.02",
        "sa_proj + density 0.5 + WiSE-FT 1",
    ]
    mine = changed(settings, tmp_path, arms=arms, orders={"one": ["first"]})
    study, found = Study(mine, threads=1), []
    for chain in all_chains(mine):
        study.run(chain, 0, found.append)
    whole, half, little, none = (result.relative_update for result in found)
    # The larger half has most of the squares.
    assert 0.7 * whole < half < whole
    assert little < half / 2
    assert none == 0
    assert found[2].drift.kl_base_tuned < found[0].drift.kl_base_tuned


def test_a_pull_to_the_base_and_a_training_of_its_own_are_an_arms(settings, tmp_path):
    more = [{}, {"pull": 1.0}, {"pull": 1e6}, {"training": {"num_train_epochs": 2}}]
    more.append({"training": {"global_batch_size": 8, "per_device_train_batch_size": 8}})
    arms = [
        ArmSettings.model_validate({"recipe": "sa_proj", "learning_rates": [1e-2], **each})
        for each in more
    ]
    assert [arm.label for arm in arms[1:4]] == [
        "sa_proj + pull 1",
        "sa_proj + pull 1e+06",
        "sa_proj + num_train_epochs 2",
    ]
    mine = changed(settings, tmp_path, arms=arms, orders={"one": ["first"]})
    study, found = Study(mine, threads=1), []
    for chain in all_chains(mine):
        study.run(chain, 0, found.append)
    assert [result.steps for result in found] == [4, 4, 4, 8, 2]
    plain, pulled, back = (result.relative_update for result in found[:3])
    assert 0 < pulled < 0.95 * plain
    assert back == 0


def test_adapters_are_not_pulled_to_the_base():
    with pytest.raises(ValueError, match="lora with"):
        ArmSettings.model_validate(
            {"recipe": "mlp", "learning_rates": [1e-3], "lora": True, "pull": 1.0}
        )


def test_replay_and_anchor_and_distillation_take_part(settings, tmp_path):
    general = write(tmp_path / "general.jsonl", rows("say", 300, 20))
    prompts = {"prompts": settings.drift.prompts, "max_new_tokens": 4, "rows_per_step": 2}
    arms = [
        {"recipe": "sa_proj", "learning_rates": [1e-2]},
        {"recipe": "sa_proj", "learning_rates": [1e-2], "anchor": prompts},
        {"recipe": "sa_proj", "learning_rates": [1e-2], "mix": [f"{general}:0.5"]},
        {
            "recipe": "sa_proj",
            "learning_rates": [1e-2],
            "distillation": {"weight": 100.0},
        },
    ]
    arms = [ArmSettings.model_validate(arm) for arm in arms]
    mine = changed(settings, tmp_path, arms=arms, orders={"one": ["first"]})
    study, found = Study(mine, threads=1), []
    for chain in all_chains(mine):
        study.run(chain, 0, found.append)
    plain, anchored, replayed, held = found
    assert [result.chain.arm for result in found] == [arm.label for arm in arms]
    assert anchored.drift.kl_base_tuned < plain.drift.kl_base_tuned
    assert replayed.steps == plain.steps + 2
    assert held.relative_update < plain.relative_update


def values(model):
    """A hash of a model's weights, whatever they are held in."""
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().float().numpy().tobytes())
    return digest.hexdigest()


def test_an_anchor_holds_what_skills_before_were_taught_with(settings, tmp_path, monkeypatch):
    prompts = {"prompts": settings.drift.prompts, "max_new_tokens": 4, "rows_per_step": 2}
    arms = [
        ArmSettings.model_validate(
            {"recipe": "mlp", "learning_rates": [1e-2], "name": name, "anchor": {**prompts, **held}}
        )
        for name, held in (("free", {"earlier_skills": 0}), ("held", {"earlier_skills": 12}))
    ]
    built = []

    def build(loaded, encoder, asked, *args, **kwargs):
        made = build_anchor(loaded, encoder, asked, *args, **kwargs)
        built.append(([message[-1].text for message in asked], values(loaded.model)))
        return made

    monkeypatch.setattr(anchors, "build_anchor", build)
    mine = changed(settings, tmp_path, arms=arms, orders={"two": ["first", "last"]})
    study, found, states = Study(mine, threads=1), [], []
    base = values(study.loaded.model)

    def note(result):
        found.append(result)
        states.append(values(study.loaded.model))

    for chain in all_chains(mine):
        study.run(chain, 0, note)
    by_arm = {arm: [r for r in found if r.chain.arm == arm] for arm in ("free", "held")}
    # What the base answers, once for both arms; then the first skill's rows, by what learned it.
    (general, asked_of_base), (taught, asked_of_first) = built
    assert (len(general), len(taught)) == (len(WORDS), 12)
    first = next(place for place, r in enumerate(found) if (r.chain.arm, r.stage) == ("held", 1))
    assert asked_of_base == base
    assert asked_of_first == states[first] != base
    assert set(taught) <= {example.prompt[-1].text for example in study.pools["first"]}
    first, second = ([r.relative_update for r in by_arm[arm]] for arm in by_arm)
    assert first[0] == second[0]
    assert first[1] != second[1]
    # A stage that teaches the very prompts holds none of them at another answer.
    pool, held = study.pools["first"], arms[1].anchor
    own = study._anchors.general(held, None)
    assert study._anchors.with_taught(own, held, [pool], pool, 0, None) is own
    assert (
        len(study._anchors.with_taught(own, held, [pool], pool[:-5], 0, None).encoded)
        == len(own.encoded) + 5
    )


def test_rows_on_both_sides_are_refused(settings, tmp_path):
    keep = [settings.keep[0].model_copy(update={"path": settings.skills[0].path})]
    with pytest.raises(DataError, match="rows on both sides"):
        Study(changed(settings, tmp_path, keep=keep), threads=1)


def test_replayed_validated_and_anchored_rows_are_not_measured(settings, tmp_path):
    say = rows("say", 200, 6)  # what is kept
    mixed = write(tmp_path / "mixed.jsonl", [*rows("say", 300, 20), say[0]])
    arm = {"recipe": "sa_proj", "learning_rates": [1e-2]}

    def study(**update):
        return Study(changed(settings, tmp_path, **update), threads=1)

    with pytest.raises(DataError, match=r"to replay .*mixed.jsonl"):
        study(arms=[ArmSettings.model_validate({**arm, "mix": [f"{mixed}:0.5"]})])
    for path, prompts in (
        (tmp_path / "some.jsonl", [{"prompt": "Free"}, {"prompt": say[0]["question"]}]),
        (tmp_path / "all.jsonl", [{"prompt": say[0]["question"]}]),
    ):
        anchored = ArmSettings.model_validate({**arm, "anchor": {"prompts": write(path, prompts)}})
        if len(prompts) > 1:
            mine = changed(settings, tmp_path, arms=[anchored])
            read = read_study(mine, make_encoder(load(mine), mine))
            (left,) = read.anchors.values()
            assert len(left) == 1
        else:
            with pytest.raises(DataError, match="an anchor on the prompts"):
                study(arms=[anchored])
    # Rows that a rate is chosen on count too.
    kept_back = study().validation["first"].examples[0]
    row = next(r for r in rows("first", 0, 30) if r["question"] in str(kept_back.messages))
    path = write(tmp_path / "test.jsonl", [*rows("first", 100, 5), row])
    skill = settings.skills[0].model_copy(update={"test_path": path})
    with pytest.raises(DataError, match="1 rows on both sides"):
        study(skills=[skill, settings.skills[1]])


def test_a_skill_is_tested_on_the_split_that_is_named(settings, tmp_path, monkeypatch):
    splits = {
        "train": datasets.Dataset.from_list(rows("first", 100, 4)),
        "test": datasets.Dataset.from_list(rows("first", 110, 6)),
    }
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    update = {"test_path": str(tmp_path / "saved"), "test_split": "test"}
    skill = settings.skills[0].model_copy(update=update)
    loaded = load(settings)
    mine = changed(settings, tmp_path, skills=[skill, settings.skills[1]])
    found = read_study(mine, make_encoder(loaded, mine), checked=True)
    assert len(found.tasks[0].examples) == 6


def test_the_tolerance_is_the_bases_and_every_process_has_it(settings, tmp_path, monkeypatch):
    mine, seen = changed(settings, tmp_path, orders={"one": ["first"]}), []
    first = Study(mine, threads=1)
    before = weights(first)

    def measure(loaded, tasks, encoder):
        now = dict(loaded.model.named_parameters())
        seen.append(all(torch.equal(before[name], now[name]) for name in before))
        return 0.25

    monkeypatch.setattr("narrowtune.study.run.measure_tolerance", measure)
    first.run(next(all_chains(mine)), 0, [].append)
    second = Study(mine, threads=1)
    second.score_base()
    assert seen == [True]
    assert first._tolerance == second._tolerance == 0.25


def test_a_process_that_need_not_check_encodes_nothing_and_has_the_same_rows(
    settings, tmp_path, monkeypatch
):
    bad = [{"question": "word " * 5000, "answer": "long"}]
    first = changed(settings, tmp_path, max_length=2000)
    loaded = load(first)
    encoder = make_encoder(loaded, first)
    whole = read_study(first, encoder)
    with monkeypatch.context() as patch:
        patch.setattr(Source, "encodable", lambda *_: pytest.fail("encoded again"))
        again = read_study(first, encoder, checked=True)
    assert {n: list(pool) for n, pool in again.pools.items()} == {
        n: list(pool) for n, pool in whole.pools.items()
    }
    assert [list(task.examples) for task in again.tasks] == [
        list(task.examples) for task in whole.tasks
    ]
    # Rows that may be refused are left out again.
    (skill, *_) = first.skills
    rows = [json.loads(line) for line in Path(skill.path).read_text("utf-8").splitlines()]
    path = write(tmp_path / "with_bad.jsonl", [*bad, *rows])
    lenient = skill.model_copy(update={"path": path, "max_refused": 1, "name": skill.label})
    other = first.model_copy(update={"skills": [lenient], "orders": {}})
    left = read_study(other, encoder, checked=True)
    assert list(left.pools[skill.label]) == list(read_study(other, encoder).pools[skill.label])


def test_workers_check_rows_unless_this_start_has(settings, tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    told = []

    def pool(*args):
        told.append(args[-1][-1])
        raise Stop

    monkeypatch.setattr(workers, "ProcessPoolExecutor", pool)
    mine = changed(settings, tmp_path)
    for _ in range(2):  # the base is scored in the first, and there in the second
        with pytest.raises(Stop):
            run_study(mine, lambda *_: None, num_workers=2)
    assert told == [True, False]


def test_more_rows_than_there_are_is_an_error(settings, tmp_path):
    study = Study(changed(settings, tmp_path, num_samples=1000), threads=1)
    with pytest.raises(DataError, match="num_samples"):
        study.run(next(all_chains(study.settings)), 0, print)


def test_the_command_runs_what_a_file_says_and_shows_it(settings, finished, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    values = json.loads(settings.model_dump_json(exclude_none=True))
    path, out = tmp_path / "study.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(values))
    # All but the last stage is there already.
    for result in finished[:-1]:
        append_result(out / "results.jsonl", result)
    found = CliRunner().invoke(app, ["study", str(path), "--output-dir", str(out)])
    assert found.exit_code == 0, found.output
    # Its chain's weights are not there, so that both of its stages run.
    counts = [line.rsplit("; ", 1)[1] for line in found.output.splitlines() if "to come" in line]
    assert counts == ["1 to come", "0 to come"]
    assert "mlp + LwF at 0.01, default, seed 0: last" in found.output
    assert len(read_results(out / "results.jsonl")) == len(finished)
    for key in by_chain(finished):
        assert found.output.count(f" {key.learning_rate:g} ") >= 2


def test_a_mistake_in_a_file_is_named(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("model: m\nskills: []\narms: [{recipe: sa_prj, learning_rates: [1e-3]}]\n")
    found = CliRunner().invoke(app, ["study", str(path)])
    assert isinstance(found.exception, UsageError)
    assert found.exception.asked == f"a study described by {path}"
    for mistake in ("skills: []", "keep: missing", "arms.0.recipe", "did you mean sa_proj"):
        assert mistake in found.exception.found


def test_unfinished_chains_are_left_out_of_the_tables_of_chains(finished):
    assert len(sequences(finished, "default", 2)) == 3
    assert len(sequences(finished[:-1], "default", 2)) == 2
    assert sequences(finished, "reversed", 2) == {}


def test_the_best_rate_is_chosen_on_validation_and_reported_on_test(finished):
    points = frontier(finished, "default", 0)["sa_proj"]
    assert [point.chain.learning_rate for point in points] == [1e-3, 1e-2]
    low, high = (replace(p, validation=v) for p, v in zip(points, (40.0, 30.0), strict=True))
    assert best_point([low, high]) is low
    assert at_edge([low, high])
    middle = replace(low, validation=90.0)
    assert not at_edge([low, middle, high])
    found = matched({"a": [replace(low, learning=10.0, forgetting=4.0)]}, "a")
    assert found == {"a": {0.5: 2.0, 0.75: 3.0, 0.9: 3.6}}


def test_adapters_are_trained_and_merged(settings, tmp_path):
    arm = ArmSettings(recipe="mlp", learning_rates=[1e-2], lora={"rank": 4})
    mine = changed(settings, tmp_path, arms=[arm])
    study, found = Study(mine, threads=1), []
    before = weights(study)
    study.run(next(all_chains(mine)), 0, found.append)
    assert [stage.chain.arm for stage in found] == ["mlp + LoRA 4"] * 2
    assert 0 < found[0].relative_update < found[1].relative_update
    assert found[0].drift.kl_base_tuned > 0
    assert all(torch.equal(before[name], value) for name, value in weights(study).items())


def test_adapters_begin_alike_whatever_ran_before(settings, tmp_path):
    arm = ArmSettings(recipe="mlp", learning_rates=[1e-2], lora={"rank": 4})
    mine = changed(settings, tmp_path, arms=[arm], orders={"one": ["first"]})
    study, found = Study(mine, threads=1), []
    for draws in (1, 7):
        torch.rand(draws)
        study.run(next(all_chains(mine)), 0, found.append)
    first, second = without_seconds(found)
    assert first == second


def test_experts_learn_over_a_chain_that_can_be_stopped(settings, tmp_path):
    arm = ArmSettings(recipe="mlp", learning_rates=[1e-2], experts=True)
    mine = changed(settings, tmp_path, arms=[arm])
    study, found = Study(mine, threads=1), []
    before, chain = weights(study), next(all_chains(mine))
    study.run(chain, 0, found.append)
    assert [stage.chain.arm for stage in found] == ["mlp + MoE"] * 2
    assert 0 < found[0].relative_update < found[1].relative_update
    assert found[0].drift.kl_base_tuned > 0
    after = weights(study)
    assert list(after) == list(before)
    assert all(torch.equal(before[name], value) for name, value in after.items())

    def stop(result):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study.run(chain, 0, stop)
    assert list(weights(study)) == list(before)


def test_the_plain_path_is_taken_where_it_is_asked_for(settings, tmp_path):
    plain = settings.training.model_copy(update={"packing": False})
    assert not Study(changed(settings, tmp_path, training=plain)).arithmetic.packing
    found = Study(changed(settings, tmp_path)).arithmetic
    assert found.packing
    assert "packed and plain logits differ by" in found.note
