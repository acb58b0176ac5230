"""Everything through the command line: teach, what it writes, its exit codes, delta, report."""

from __future__ import annotations

import json

import pytest
import torch
from runs import counting_rows, run_cli, saying_rows, write_rows, write_run
from safetensors.torch import load_file

from narrowtune.core.results import EXIT_CODES, RunRecord


@pytest.fixture(scope="module")
def taught(tiny, tmp_path_factory):
    """One finished run on a tiny Llama, with its process."""
    folder = tmp_path_factory.mktemp("taught")
    config = write_run(folder, tiny("llama", torch.bfloat16), "run")
    done = run_cli("teach", config, "--json", cache=folder / "cache")
    return folder, done


def test_teach_writes_the_run_folder_and_exits_with_its_verdict(taught):
    folder, done = taught
    record = RunRecord.model_validate_json(done.stdout)
    assert record.verdict is not None
    assert done.returncode == EXIT_CODES[record.verdict.outcome], done.stderr
    written = {path.relative_to(folder / "run").as_posix() for path in (folder / "run").rglob("*")}
    assert written >= {
        "run.yaml",
        "resolved.yaml",
        "arithmetic.json",
        "plan.json",
        "before/skill.jsonl",
        "before/keep.jsonl",
        "after/skill.jsonl",
        "after/keep.jsonl",
        "train.jsonl",
        "delta.safetensors",
        "drift.json",
        "record.json",
        "report.html",
        "report.md",
        "report.json",
    }
    assert record == RunRecord.model_validate_json((folder / "run/record.json").read_text())


def test_the_record_says_what_trained_and_that_nothing_else_moved(taught):
    folder, done = taught
    record = RunRecord.model_validate_json(done.stdout)
    assert record.proof is not None
    assert record.plan is not None
    assert record.training is not None
    assert record.proof.frozen_identical
    assert all(tensor.received_gradient for tensor in record.proof.selected)
    assert any(tensor.changed for tensor in record.proof.selected)
    assert sum(t.num_elements for t in record.proof.selected) == record.plan.num_trainable
    assert len(record.proof.selected) == 2 * 4
    steps = [json.loads(line) for line in (folder / "run/train.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps] == list(range(1, record.training.num_steps + 1))
    assert all({"loss", "cross_entropy", "anchor_kl", "learning_rate"} <= set(r) for r in steps)


def test_a_budget_that_the_items_cannot_prove_is_said_before_anything_runs(taught):
    folder, done = taught
    plan = json.loads((folder / "run/plan.json").read_text())
    assert plan["smallest_budget"] > 1.0, "the run's budget is 1 point"
    said = " ".join(done.stderr.split())
    assert "can't prove a loss within 1 points" in said
    assert said.index("can't prove") < said.index("evaluate the base")


def test_a_second_run_into_the_same_folder_is_refused(taught):
    folder, _ = taught
    again = run_cli("teach", folder / "run.yaml", cache=folder / "cache")
    assert again.returncode == 2
    assert "already there and finished" in again.stderr
    assert "--resume" not in again.stderr


def test_a_finished_run_is_not_resumed(taught):
    folder, _ = taught
    again = run_cli("teach", folder / "run.yaml", "--resume", cache=folder / "cache")
    assert again.returncode == 2
    assert "a finished run" in again.stderr


def test_resuming_with_other_settings_names_them(taught):
    folder, _ = taught
    again = run_cli(
        "teach", folder / "run.yaml", "--resume", "--learning-rate", "0.5", cache=folder / "cache"
    )
    assert again.returncode == 2
    assert "was learning_rate: 0.001" in again.stderr
    assert "now learning_rate: 0.5" in again.stderr


def test_delta_applied_to_the_folder_is_undone_byte_for_byte(taught, tiny):
    folder, _ = taught
    base, delta = tiny("llama", torch.bfloat16), folder / "run/delta.safetensors"
    cache = folder / "cache"
    applied = run_cli("delta", "apply", base, delta, "--output", folder / "tuned", cache=cache)
    assert applied.returncode == 0, applied.stderr
    undone = run_cli(
        "delta", "undo", folder / "tuned", delta, "--output", folder / "base", cache=cache
    )
    assert undone.returncode == 0, undone.stderr
    before, tuned = (
        load_file(base / "model.safetensors"),
        load_file(folder / "tuned/model.safetensors"),
    )
    assert any(not torch.equal(before[name], tuned[name]) for name in before)
    assert (base / "model.safetensors").read_bytes() == (
        folder / "base/model.safetensors"
    ).read_bytes()
    twice = run_cli(
        "delta", "apply", folder / "tuned", delta, "--output", folder / "twice", cache=cache
    )
    assert twice.returncode == 1
    assert "applied" in twice.stderr


def test_evaluate_with_the_delta_scores_what_the_run_scored(taught, tiny):
    folder, done = taught
    record = RunRecord.model_validate_json(done.stdout)
    keep = next(task for task in record.tasks if task.name == "keep")
    scored = run_cli(
        "evaluate",
        tiny("llama", torch.bfloat16),
        "--tasks",
        folder / "keep.jsonl",
        "--delta",
        folder / "run/delta.safetensors",
        "--max-new-tokens",
        "4",
        "--output",
        folder / "evaluation",
        "--json",
        cache=folder / "other",
    )
    assert scored.returncode == 0, scored.stderr
    assert json.loads(scored.stdout)[0]["strict"]["mean"] == keep.after.mean
    after = (folder / "run/after/keep.jsonl").read_text()
    assert (folder / "evaluation/keep.jsonl").read_text() == after


def test_probe_and_report_run_from_what_the_run_left(taught, tiny):
    folder, _ = taught
    delta, cache = folder / "run/delta.safetensors", folder / "cache"
    probed = run_cli(
        "probe",
        tiny("llama", torch.bfloat16),
        "--delta",
        delta,
        "--prompts",
        folder / "general.jsonl",
        "--max-new-tokens",
        "4",
        "--json",
        cache=cache,
    )
    assert probed.returncode == 0, probed.stderr
    assert json.loads(probed.stdout)["kl_base_tuned"] > 0
    before = (folder / "run/report.html").read_text()
    rebuilt = run_cli("report", folder / "run", cache=cache)
    assert rebuilt.returncode == 0, rebuilt.stderr
    assert (folder / "run/report.html").read_text() == before


def test_plan_changes_nothing_and_counts_exactly(tiny, tmp_path):
    model = tiny("llama", torch.bfloat16)
    before = (model / "model.safetensors").read_bytes()
    skill = write_rows(tmp_path / "skill.jsonl", counting_rows(20))
    done = run_cli(
        "plan", model, "--recipe", "sa_proj", "--skill", skill, "--json", cache=tmp_path / "cache"
    )
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    stored = load_file(model / "model.safetensors")
    parts = ("q_proj", "k_proj", "v_proj", "o_proj")
    wanted = sum(t.numel() for n, t in stored.items() if n.split(".")[-2] in parts)
    assert plan["num_trainable"] == wanted
    assert plan["time"]["measured_step_seconds"] > 0
    assert (model / "model.safetensors").read_bytes() == before
    assert not (tmp_path / "runs").exists()


def test_plan_without_a_skill_counts_what_is_kept_and_the_anchor(tiny, tmp_path):
    keep = write_rows(tmp_path / "keep.jsonl", saying_rows(12))
    model, cache = tiny("llama", torch.bfloat16), tmp_path / "cache"
    done = run_cli(
        *("plan", model, "--keep", keep, "--anchor", "--set", "eval_batch_size=4", "--json"),
        cache=cache,
    )
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["smallest_budget"] > 0
    assert plan["memory"]["anchor"] > 0
    assert plan["time"]["evaluation_seconds"] > 0
    assert plan["time"]["training_seconds"] is None
    missing = run_cli("plan", model, "--keep", tmp_path / "none.jsonl", cache=cache)
    assert missing.returncode == 1
    mixed = run_cli("plan", model, "--set", "mix=[a.jsonl:0.1]", cache=cache)
    assert mixed.returncode == 2
    assert "--skill" in mixed.stderr


def test_no_steps_change_exactly_nothing(tiny, tmp_path):
    config = write_run(tmp_path, tiny("llama", torch.bfloat16), "none", training={"max_steps": 0})
    done = run_cli("teach", config, "--json", cache=tmp_path / "cache")
    assert done.returncode == 4, done.stderr
    record = RunRecord.model_validate_json(done.stdout)
    assert record.verdict is not None
    assert record.verdict.learning is not None
    assert record.verdict.forgetting is not None
    assert record.drift is not None
    assert record.delta is not None
    assert record.verdict.learning.value == 0.0
    assert record.verdict.forgetting.value == 0.0
    assert record.verdict.forgetting.upper_bound > 0
    assert record.drift.kl_base_tuned == 0.0
    assert record.drift.top1_agreement == 1.0
    assert all(g.base_max == g.tuned_max for g in record.drift.token_groups)
    assert record.delta.num_changed == 0


def test_another_dtype_is_said_once_before_anything_is_measured_and_in_the_record(tiny, tmp_path):
    config = write_run(tmp_path, tiny("llama", torch.bfloat16), "wide", training={"max_steps": 0})
    done = run_cli("teach", config, "--set", "dtype=float32", "--json", cache=tmp_path / "cache")
    assert done.returncode == 4, done.stderr
    note = "a delta will fit the model in float32 only"
    assert done.stderr.count(note) == 1
    assert done.stderr.index(note) < done.stderr.index("evaluate the base")
    assert "Warning" not in done.stderr
    assert sum(note in each for each in json.loads(done.stdout)["notes"]) == 1


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"recipe": "sa_prj"}, 2, ("recipe", "sa_proj")),
        ({"lerning_rate": 1}, 2, ("lerning_rate",)),
        ({"skill": {"path": "missing.jsonl"}}, 1, ("missing.jsonl",)),
        ({"recipe": "vision_tower"}, 1, ("vision_tower",)),
        ({"max_length": 5}, 1, ("max_length", "5")),
    ],
)
def test_mistakes_get_one_clear_error(tiny, tmp_path, changes, code, words):
    config = write_run(tmp_path, tiny("llama", torch.bfloat16), "wrong", **changes)
    done = run_cli("teach", config, cache=tmp_path / "cache")
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    for word in ("asked", "found", "do", *words):
        assert word in done.stderr


def test_rows_both_taught_and_kept_are_an_error(tiny, tmp_path):
    config = write_run(tmp_path, tiny("llama", torch.bfloat16), "overlap")
    write_rows(tmp_path / "keep.jsonl", counting_rows(3))
    done = run_cli("teach", config, cache=tmp_path / "cache")
    assert done.returncode == 1
    assert "kept" in done.stderr
    assert "allow_overlap" in done.stderr


def test_unusable_rows_are_written_down_and_stop_the_run_unless_allowed(tiny, tmp_path):
    config = write_run(tmp_path, tiny("llama", torch.bfloat16), "refused")
    rows = [*counting_rows(20), {"question": "What?"}, {"question": "", "answer": "1"}]
    write_rows(tmp_path / "skill.jsonl", rows)
    stopped = run_cli("teach", config, cache=tmp_path / "cache")
    assert stopped.returncode == 1
    assert "row 21" in stopped.stderr
    refused = [
        json.loads(line)
        for line in (tmp_path / "refused/rows_refused.jsonl").read_text().splitlines()
    ]
    assert [row["row"] for row in refused] == [21, 22]
    allowed = run_cli(
        "teach",
        config,
        "--max-refused",
        "2",
        "--output-dir",
        tmp_path / "allowed",
        "--json",
        cache=tmp_path / "cache",
    )
    record = RunRecord.model_validate_json(allowed.stdout)
    assert record.data[0].num_refused == 2


def test_the_gallery_can_be_left_out(tiny, tmp_path):
    config = write_run(tmp_path, tiny("llama", torch.bfloat16), "private")
    run_cli("teach", config, "--no-gallery", cache=tmp_path / "cache")
    html = (tmp_path / "private/report.html").read_text()
    assert "How many words" not in html
    assert "Say the word" not in html


def test_rows_mixed_in_that_are_kept_are_an_error(tiny, tmp_path):
    config = write_run(tmp_path, tiny("llama", torch.bfloat16), "mixed")
    general = write_rows(tmp_path / "mix.jsonl", saying_rows(20))
    done = run_cli("teach", config, "--mix", f"{general}:0.2", cache=tmp_path / "cache")
    assert done.returncode == 1
    assert "mixed in" in done.stderr
    other = [{"question": f"Name a thing {i}.", "answer": "pen"} for i in range(20)]
    write_rows(tmp_path / "mix.jsonl", other)
    done = run_cli("teach", config, "--mix", f"{general}:0.25", "--json", cache=tmp_path / "cache")
    record = RunRecord.model_validate_json(done.stdout)
    assert record.training is not None
    train = record.data[0].splits["train"]
    assert record.training.num_samples == 2 * (train + round(0.25 * train))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--metric", "foo"), "metric"),
        (("--max-new-tokens", "0"), "max_new_tokens"),
        (("--dtype", "float8"), "dtype"),
        (("--set", "max_lenght=5"), "max_lenght"),
    ],
)
def test_evaluate_explains_what_it_was_asked(tiny, tmp_path, arguments, words):
    rows = write_rows(tmp_path / "rows.jsonl", saying_rows(2))
    done = run_cli("evaluate", tiny("llama"), "--tasks", rows, *arguments, cache=tmp_path / "cache")
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
