"""A dial turned through the command line: what ships is between base and trained weights."""

from __future__ import annotations

import io
import json

import pytest
import torch
from rich.console import Console
from runs import counting_rows, run_cli, saying_rows, write_rows, write_run

from delta_cases import load, same_bits, weights
from narrowtune.core.config import load_config
from narrowtune.core.errors import UsageError
from narrowtune.core.results import ItemResult
from narrowtune.delta.apply import apply
from narrowtune.delta.store import Delta
from narrowtune.evaluate.evaluate import summarise, write_items
from narrowtune.models.fingerprint import fingerprint
from narrowtune.pipeline import teach as teaching
from narrowtune.pipeline.compare import run_comparison
from narrowtune.pipeline.ways import contenders


@pytest.fixture
def dialled(tiny, tmp_path, monkeypatch):
    """`dialled(lost)` is a run that loses the share `lost(α, folder)` of items, as if measured.

    By default it goes the way that is the default; `more` are other settings.
    """
    monkeypatch.setenv("NARROWTUNE_CACHE", str(tmp_path / "cache"))
    keep = write_rows(tmp_path / "many.jsonl", saying_rows(40))
    model = tiny("llama", torch.bfloat16)
    config = write_run(tmp_path, model, "run", keep=[{"path": str(keep), "max_new_tokens": 4}])

    def run(lost, way=None, **more):
        reached = {}

        def score_tasks(loaded, tasks, encoder, *, fingerprint, folder, **_):
            if folder.parent.name == "dial":
                reached[fingerprint] = float(folder.name)
            elif folder.name == "before":
                reached[fingerprint] = 0.0
            # What ships must be weights that the dial has looked at, by their fingerprint.
            alpha = reached[fingerprint]
            found = []
            for task in tasks:
                items = []
                for place, example in enumerate(task.examples):
                    share = alpha if task.role == "target" else 1 - lost(alpha, folder.name)
                    right = float(place < share * len(task.examples))
                    fields = {"question": "", "answer": "", "reference": ["x"], "lenient": right}
                    items.append(
                        ItemResult(id=example.id, strict=right, valid_format=True, **fields)
                    )
                write_items(items, folder / f"{task.name}.jsonl")
                found.append(summarise(task, items, 0.0))
            return found

        monkeypatch.setattr(teaching, "score_tasks", score_tasks)
        dial = {"num_steps": 4, **({"way": way} if way else {})}
        changes = {"dial": dial, "budget": 30.0, "anchor": None, **more}
        record = teaching.teach(load_config(config, changes))
        return model, tmp_path / "run", record

    return run


@pytest.mark.parametrize("way", ["linear", "largest"])
def test_what_ships_lies_between_base_and_trained_weights(dialled, way):
    folder, run, record = dialled(lambda alpha, _: 0.0 if alpha <= 0.5 else 0.9, way)
    assert record.dial.way == way
    assert record.dial.alpha == 0.5
    assert [step.alpha for step in record.dial.walked] == [0.25, 0.5, 0.75]
    assert record.dial.walked[-1].stopped_by == "the mean of the held-out tasks"
    assert [step.alpha for step in record.dial.beyond] == [1.0]
    assert (record.dial.num_items, record.dial.num_confirming) == (20, 20)
    kept = next(task for task in record.tasks if task.role == "held_out")
    assert kept.num_items == 20, "the verdict is of the items that were not searched on"
    parts = [(run / name / "many.jsonl").read_text("utf-8") for name in ("before", "dial/0")]
    ids = [{json.loads(line)["id"] for line in part.splitlines()} for part in parts]
    assert [len(part) for part in ids] == [20, 20]
    assert not ids[0] & ids[1]
    assert (run / "dial" / "0.75" / "many.jsonl").exists()
    whole, shipped = load(folder), load(folder)
    apply(whole, Delta.load(run / "delta_whole.safetensors"))
    delta = Delta.load(run / "delta.safetensors")
    apply(shipped, delta)
    how_far = {
        "linear": "0.5 of what was trained",
        "largest": "the 50 % of elements that moved furthest",
    }
    went = f"The dial went to {how_far[way]}."
    assert went in delta.metadata.notes
    base, tuned, found = weights(load(folder)), weights(whole), weights(shipped)
    moved = 0
    for name in delta.bits:
        if way == "linear":
            middle = (base[name].double() + tuned[name].double()) / 2
            assert found[name].equal(middle.float().bfloat16())
        else:
            stays = found[name] != base[name]
            assert found[name][stays].equal(tuned[name][stays])
            far = (tuned[name].float() - base[name].float()).abs()
            assert far[stays].min() >= far[~stays].max()
        moved += int((found[name] != tuned[name]).sum())
    assert moved
    others = [n for n in base if n not in delta.bits]
    assert same_bits({n: base[n] for n in others}, {n: found[n] for n in others})
    assert record.verdict.outcome == "ship"
    page = (run / "report.html").read_text(encoding="utf-8")
    assert 'id="dial"' in page
    assert "at stake: the mean of the held-out tasks" in page
    assert (run / "plots" / "dial.png").exists()
    text = (run / "report.md").read_text(encoding="utf-8")
    assert f"{went} At 0.5 the held-out tasks" in text
    symbol = {"linear": "α", "largest": "density"}[way]
    assert f"| {symbol} | held-out mean, points" in text
    assert f'role="columnheader">{symbol}</th>' in page


def test_without_a_dial_the_changes_that_are_largest_may_be_all_that_stays(
    tiny, tmp_path, monkeypatch
):
    monkeypatch.setenv("NARROWTUNE_CACHE", str(tmp_path / "cache"))
    model = tiny("llama", torch.bfloat16)
    config = write_run(tmp_path, model, "run")
    deltas = {}
    for density in (1.0, 0.25):
        changes = {"training.density": density, "anchor": None}
        changes["output_dir"] = str(tmp_path / f"run {density}")
        record = teaching.teach(load_config(config, changes))
        deltas[density] = Delta.load(tmp_path / f"run {density}" / "delta.safetensors")
        said = any("training.density" in note for note in record.notes)
        assert said == (density < 1)
        assert any("furthest" in note for note in deltas[density].metadata.notes) == said
    assert deltas[1.0].bits.keys() == deltas[0.25].bits.keys()
    for name, whole in deltas[1.0].bits.items():
        part = deltas[0.25].bits[name]
        stays = part != 0
        assert part[stays].equal(whole[stays])
        assert 0 < stays.sum() < 0.4 * whole.numel()
    # The tuned model that was scored is the one that the delta gives.
    loaded = load(model)
    apply(loaded, Delta.load(tmp_path / "run 0.25" / "delta.safetensors"))
    assert fingerprint(loaded) == deltas[0.25].metadata.tuned_fingerprint


def test_a_pull_to_the_base_makes_a_smaller_change_and_is_said(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("NARROWTUNE_CACHE", str(tmp_path / "cache"))
    moved = {}
    for pull in (0.0, 2.0):
        folder = tmp_path / f"run {pull}"
        config = write_run(tmp_path, tiny("llama", torch.float32), folder.name)
        changes = {"training.pull_to_base": pull, "anchor": None, "output_dir": str(folder)}
        record = teaching.teach(load_config(config, changes))
        assert record.training.pull_to_base == (pull or None)
        assert ("pulled back to the base" in (folder / "report.html").read_text()) == bool(pull)
        moved[pull] = sum(tensor.relative_update for tensor in record.proof.selected)
    assert 0 < moved[2.0] < moved[0.0]


def test_a_density_with_a_dial_is_refused(tiny, tmp_path):
    config = write_run(tmp_path, tiny("llama", torch.bfloat16), "run")
    with pytest.raises(UsageError, match="a dial finds how much may stay"):
        load_config(config, {"dial": {"num_steps": 4}, "training.density": 0.5})
    assert load_config(config, {"dial": {"num_steps": 4}}).dial.way == "linear"


def test_a_dial_that_can_not_leave_the_base_says_what_would_help(dialled):
    folder, run, record = dialled(lambda alpha, _: 0.9 if alpha else 0.0)
    assert record.dial.alpha == 0
    assert [step.after_decision for step in record.dial.steps] == [False, True, True, True]
    assert not any(bits.any() for bits in Delta.load(run / "delta.safetensors").bits.values())
    whole = load(folder)
    apply(whole, Delta.load(run / "delta_whole.safetensors"))
    assert not same_bits(weights(whole), weights(load(folder)))
    assert record.verdict.outcome == "not_enough_evidence"
    text = (run / "report.md").read_text(encoding="utf-8")
    assert "nothing is learned and nothing is lost" in text
    assert "Train longer" not in text
    assert "take smaller steps" in text


def test_what_is_looked_at_after_the_choice_changes_nothing_else(dialled, tmp_path, monkeypatch):
    asked = []
    score_beyond = teaching.look_beyond

    def look_beyond(dial, *given):
        asked.append((dial.alpha, {p.name for p in (run_folder / "after").iterdir()}))
        return score_beyond(dial, *given)

    monkeypatch.setattr(teaching, "look_beyond", look_beyond)
    found = {}
    for whole in (True, False):
        run_folder = tmp_path / f"curve {whole}"
        dial = {"num_steps": 4, "whole_curve": whole}
        _, _, record = dialled(
            lambda alpha, _: 0.9 if alpha == 0.5 else 0.0, dial=dial, output_dir=str(run_folder)
        )
        found[whole] = record, Delta.load(run_folder / "delta.safetensors")
    # It was taken, and confirmed on all tasks, before anything else was looked at.
    ((alpha, confirmed),) = asked
    assert alpha == 0.25
    assert confirmed == {"many.jsonl", "skill.jsonl"}
    (curve, delta), (plain, same) = found[True], found[False]
    assert [step.alpha for step in curve.dial.beyond] == [0.75, 1.0]
    assert all(step.within for step in curve.dial.beyond), "they would have passed"
    assert curve.dial.alpha == plain.dial.alpha == 0.25
    assert curve.dial.walked == plain.dial.steps
    assert (curve.verdict, curve.tasks) == (plain.verdict, plain.tasks)
    assert delta.metadata.tuned_fingerprint == same.metadata.tuned_fingerprint
    assert "look beyond the dial" in curve.seconds
    assert "look beyond the dial" not in plain.seconds
    for whole in (True, False):
        for name in ("report.md", "report.html"):
            page = (tmp_path / f"curve {whole}" / name).read_text(encoding="utf-8")
            assert page.count("looked at after the choice") == (2 if whole else 0)
            assert "At 0.5 the held-out tasks" in page


def test_a_dial_that_is_not_confirmed_is_not_turned_again(dialled):
    # The other part loses more.
    _, _, record = dialled(lambda _, folder: 0.8 if folder == "after" else 0.0)
    assert record.dial.alpha == 1
    assert record.verdict.outcome == "over_budget"


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


def test_mitigations_are_compared_on_the_same_training(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("NARROWTUNE_CACHE", str(tmp_path / "cache"))
    rows = [{"question": f"Tell number {k}.", "answer": "no"} for k in range(20)]
    general = write_rows(tmp_path / "mixed.jsonl", rows)
    keep = write_rows(tmp_path / "many.jsonl", saying_rows(40))
    kept = [{"path": str(keep), "max_new_tokens": 4}]
    file = write_run(tmp_path, tiny("llama", torch.bfloat16), "all", keep=kept)
    changes = {"mix": f"{general}:0.5", "budget": 60.0, "anchor": None}
    settings = load_config(file, {**changes, "training.max_steps": 2, "dial": {"num_steps": 2}})
    names = ["mlp", "mlp+dial", "mlp+density", "mlp+mix"]
    ways = contenders(settings, names, [])
    console = Console(file=io.StringIO())
    records, page = run_comparison(settings, ways, trial=False, console=console)
    plain, dialled, dense, mixed = records
    for record in records:
        assert record.training.num_steps == 2
        assert record.training.num_samples == plain.training.num_samples
        assert (record.dial is None) == (record is not dialled)
        assert any(data.role == "mix" for data in record.data) == (record is mixed)
    # One training: a dial and a density take of it, and rows that are mixed in are another.
    whole = Delta.load(page.parent / "mlp" / "delta.safetensors").bits
    under = Delta.load(page.parent / "mlp+dial" / "delta_whole.safetensors").bits
    assert same_bits(whole, under)
    assert not same_bits(whole, Delta.load(page.parent / "mlp+mix" / "delta.safetensors").bits)
    assert 0 < dense.delta.num_changed < plain.delta.num_changed
    found = json.loads((page.parent / "comparison.json").read_text("utf-8"))
    # What can't be equal is said: a dial's items, and what is learned from.
    assert found["differences"] == ["data", "numbers of items"]
