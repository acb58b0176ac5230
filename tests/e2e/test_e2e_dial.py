"""A dial turned through the command line: what ships is between base and trained weights."""

from __future__ import annotations

import json

import torch
from runs import counting_rows, run_cli, saying_rows, write_rows, write_run

from delta_cases import load, same_bits, weights
from narrowtune.core.results import RunRecord
from narrowtune.delta.apply import apply
from narrowtune.delta.store import Delta


def test_a_dialled_run(tiny, tmp_path):
    folder = tiny("llama", torch.bfloat16)
    keep = write_rows(tmp_path / "many.jsonl", saying_rows(40))
    config = write_run(tmp_path, folder, "run", keep=[{"path": str(keep), "max_new_tokens": 4}])
    more = ["--dial", "--set", "dial.num_steps=2", "--budget", "60", "--set", "anchor=false"]
    done = run_cli("teach", config, *more, "--json", cache=tmp_path / "cache")
    assert done.stdout, done.stderr
    record = RunRecord.model_validate_json(done.stdout)
    assert record.dial is not None
    assert record.dial.alpha in (0.5, 1.0), done.stderr
    assert (record.dial.num_items, record.dial.num_confirming) == (20, 20)
    kept = next(task for task in record.tasks if task.role == "held_out")
    assert kept.num_items == 20, "the verdict is of the items that were not searched on"
    run = tmp_path / "run"
    parts = [(run / name / "many.jsonl").read_text("utf-8") for name in ("before", "dial/0")]
    ids = [{json.loads(line)["id"] for line in part.splitlines()} for part in parts]
    assert [len(part) for part in ids] == [20, 20]
    assert not ids[0] & ids[1]
    assert (run / "dial" / "0.5" / "many.jsonl").exists()
    whole, shipped = load(folder), load(folder)
    apply(whole, Delta.load(run / "delta_whole.safetensors"))
    delta = Delta.load(run / "delta.safetensors")
    apply(shipped, delta)
    assert f"The dial went to {record.dial.alpha:g}" in " ".join(delta.metadata.notes)
    base, tuned, found = weights(load(folder)), weights(whole), weights(shipped)
    for name in delta.bits:
        between = torch.lerp(base[name].float(), tuned[name].float(), record.dial.alpha)
        assert found[name].equal(between.bfloat16())
    others = [n for n in base if n not in delta.bits]
    assert same_bits({n: base[n] for n in others}, {n: found[n] for n in others})
    page = (run / "report.html").read_text(encoding="utf-8")
    assert 'id="dial"' in page
    assert (run / "plots" / "dial.png").exists()
    assert "## The dial" in (run / "report.md").read_text(encoding="utf-8")


def test_a_dial_that_can_not_show_its_budget_kept_is_refused_before_training(tiny, tmp_path):
    config = write_run(tmp_path, tiny("llama", torch.bfloat16), "run")
    done = run_cli("teach", config, "--dial", "--budget", "1", cache=tmp_path / "cache")
    assert done.returncode == 2
    said = " ".join(done.stderr.split())
    assert "a dial within a budget of 1 points" in said
    assert "give more keep items, raise the budget, or leave the dial out" in said
    assert not (tmp_path / "run" / "train.jsonl").exists()


def test_a_run_without_a_dial_has_no_part_of_one(tiny, tmp_path):
    config = write_run(tmp_path, tiny("llama", torch.bfloat16), "run")
    write_rows(tmp_path / "skill.jsonl", counting_rows(12))
    done = run_cli("teach", config, "--max-steps", "1", "--json", cache=tmp_path / "cache")
    assert json.loads(done.stdout)["dial"] is None
    assert 'id="dial"' not in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert not (tmp_path / "run" / "delta_whole.safetensors").exists()
