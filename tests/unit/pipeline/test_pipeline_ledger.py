"""A ledger's place in a run: opened before it, entered after it, built into a folder."""

from __future__ import annotations

import errno
import json
import shutil
from types import SimpleNamespace

import pytest
import torch

from delta_cases import disturb, load
from ledger_entries import stage
from narrowtune.core.config import RunConfig
from narrowtune.core.errors import DeltaError, LedgerError, UsageError
from narrowtune.core.ledger import Ledger
from narrowtune.core.provenance import sha256_file
from narrowtune.delta.extract import extract
from narrowtune.ledger import book as books
from narrowtune.ledger.book import Book
from narrowtune.models.fingerprint import fingerprint
from narrowtune.models.select import select
from narrowtune.pipeline import ledger as ledgers
from narrowtune.pipeline.ledger import add_run, build, check_state, enter, open_book


def add(book, model, run, name, recipe):
    """Teach a skill without teaching."""
    selection, before = select(model, recipe), fingerprint(model)
    base = {name: p.detach().clone() for name, p in model.named_parameters()}
    disturb(model, selection.names, seed=len(name))
    delta = extract(model, selection, base)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    delta.save(run / "delta.safetensors")
    entry = stage(name, {name: 0.1}, {name: 0.6}, before)
    changes = {
        "sha256": sha256_file(run / "delta.safetensors"),
        "tuned_fingerprint": fingerprint(model),
    }
    book.add(entry.model_copy(update=changes), run)


@pytest.fixture
def skills(tiny, tmp_path):
    """A base folder with a stale copy of its weights, and a ledger of three skills on it."""
    base = tmp_path / "base"
    shutil.copytree(tiny("llama", torch.bfloat16), base)
    (base / "model.gguf").write_bytes(b"stale")
    model = load(base)
    ledger = Ledger(
        model=str(base), loading={}, family="llama", base_fingerprint=fingerprint(model)
    )
    book = Book(tmp_path / "ledger", ledger)
    for name, recipe in (("one", "sa_proj"), ("three", "mlp_gate_up"), ("other", "sa_proj")):
        add(book, model, tmp_path / name, name, recipe)
    return book


def test_what_the_first_step_leaves_out_is_said_after_the_last(skills, tmp_path):
    result = build(skills.folder, tmp_path / "out")
    assert list(result.left_out) == ["model.gguf"]
    assert fingerprint(load(tmp_path / "out")) == skills.ledger.fingerprint
    assert not list(tmp_path.glob(".narrowtune-*"))


def test_a_base_below_the_home_folder_is_found_again(skills, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    skills._write()
    path = skills.folder / "ledger.json"
    path.write_text(path.read_text("utf-8").replace(str(tmp_path / "base"), "~/base"), "utf-8")
    build(skills.folder, tmp_path / "out", number=1)
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_an_output_that_can_not_be_replaced_is_refused_before_any_work(
    skills, tmp_path, monkeypatch
):
    monkeypatch.setattr(ledgers, "apply_to_folder", None)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(DeltaError, match="is the current directory"):
        build(skills.folder, tmp_path / "here")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="can be written"):
        build(skills.folder, tmp_path / "file" / "out")


def config(model, folder):
    values = {"model": model, "skill": {"path": "a.jsonl"}, "keep": [{"path": "b.jsonl"}]}
    return RunConfig.model_validate({**values, "ledger": str(folder), "output_dir": "run"})


def test_a_model_below_the_home_folder_is_kept_by_its_whole_path(loaded, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(loaded.folder.parent))
    open_book(config(f"~/{loaded.folder.name}", tmp_path / "ledger"), loaded)
    assert Book.open(tmp_path / "ledger").ledger.model == str(loaded.folder)


def test_a_ledger_that_is_there_and_can_not_be_written_is_refused(loaded, tmp_path):
    run = config(str(loaded.folder), tmp_path / "ledger")
    open_book(run, loaded)
    open_book(run, loaded)
    (tmp_path / "ledger" / "deltas").touch()
    with pytest.raises(UsageError, match="can be written"):
        open_book(run, loaded)


@pytest.mark.parametrize(
    ("outcome", "code"), [("ship", 1), ("over_budget", 3), ("not_enough_evidence", 4)]
)
def test_a_run_that_can_not_be_entered_keeps_its_verdict(skills, monkeypatch, outcome, code):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    latest = skills.ledger.fingerprint
    late = stage("late", {"late": 0.1}, {"late": 0.6}, latest)
    monkeypatch.setattr(ledgers, "_entry", lambda *_: late)
    monkeypatch.setattr(Book, "_check_delta", lambda *_: None)
    monkeypatch.setattr(books, "_copy", full)
    record = SimpleNamespace(verdict=SimpleNamespace(outcome=outcome))
    said = rf"(?s)No space left.*verdict is {outcome}.*narrowtune ledger add {skills.folder} run"
    with pytest.raises(LedgerError, match=said) as caught:
        enter(skills, config("m", skills.folder), record)
    assert caught.value.exit_code == code
    assert LedgerError.exit_code == 1


def test_a_ledger_that_never_held_a_skill_takes_another_base(loaded, tmp_path):
    folder = tmp_path / "ledger"
    stale = Ledger(model="other", loading={}, family="llama", base_fingerprint="0" * 64)
    Book(folder, stale).start()
    book = open_book(config(str(loaded.folder), folder), loaded)
    assert book.ledger.base_fingerprint == fingerprint(loaded.model)
    assert Book.open(folder).ledger == book.ledger


def test_folders_below_the_home_folder_are_meant_as_such(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    values = {"model": "m", "skill": {"path": "a.jsonl"}}
    run = RunConfig.model_validate({**values, "ledger": "~/skills", "output_dir": "~/runs/x"})
    assert (run.ledger, run.output_dir) == ("/home/me/skills", "/home/me/runs/x")


def test_a_state_that_is_not_the_recorded_one_is_refused(skills):
    check_state(skills, skills.ledger.fingerprint, [_rows(e) for e in skills.ledger.skills])
    with pytest.raises(LedgerError, match="another state"):
        check_state(skills, "0" * 64, [])


def _rows(entry):
    return SimpleNamespace(name=entry.name, sha256=entry.rows_sha256, role="held_out")


@pytest.mark.parametrize("name", ["path", "image_root"])
def test_a_run_is_entered_only_from_where_its_rows_are_seen(skills, tmp_path, monkeypatch, name):
    run, here, there = tmp_path / "w" / "run", tmp_path / "w", tmp_path / "elsewhere"
    for folder in (run, there):
        folder.mkdir(parents=True)
    values = {"path": str(tmp_path), name: "rows"}
    settings = RunConfig.model_validate({"model": "m", "skill": values, "output_dir": "run"})
    (run / "resolved.yaml").write_text(settings.model_dump_json(), encoding="utf-8")
    entered = []
    monkeypatch.setattr(ledgers, "read_record", lambda _: None)
    monkeypatch.setattr(ledgers, "_entry", lambda *_: None)
    monkeypatch.setattr(Book, "add", lambda _, entry, run: entered.append(run))
    monkeypatch.chdir(there)
    with pytest.raises(LedgerError, match="where the run was started"):
        add_run(skills.folder, run)
    (here / "rows").mkdir()
    monkeypatch.chdir(here)
    add_run(skills.folder, run)
    assert entered == [run]


def finished(run, tasks):
    """Write what a run's entry is made of; returns its record."""
    (run / "after").mkdir(parents=True)
    (run / "delta.safetensors").write_bytes(b"")
    item = json.dumps({"id": "1", "question": "Which?", "reference": "this"})
    for name in tasks:
        (run / "after" / f"{name}.jsonl").write_text(item + "\n", encoding="utf-8")
    mean = SimpleNamespace(mean=0.5, stderr=0.1)
    scores = {"role": "held_out", "before": mean, "after": mean, "num_items": 1}
    return SimpleNamespace(
        delta=SimpleNamespace(base_fingerprint="b", tuned_fingerprint="t"),
        tasks=[SimpleNamespace(name=name, **scores) for name in tasks],
        data=[
            SimpleNamespace(name="new", role="target", sha256="2" * 64, metric=""),
            SimpleNamespace(name="new (test)", role="target", sha256="0" * 64, metric=""),
            SimpleNamespace(name="l", role="held_out", sha256="1" * 64, metric="first 2222"),
            # General rows of the same name, which nothing is scored on.
            SimpleNamespace(name="l", role="mix", sha256="3" * 64, metric=""),
        ],
        recipe="sa_proj",
        created="",
        name=run.name,
    )


def test_an_entry_says_how_its_scores_were_made(skills, tmp_path):
    values = {
        "model": "m",
        "skill": {"path": "new.jsonl", "test_path": "t.jsonl", "metric": "number"},
        "keep": [
            {"path": "k.jsonl", "mode": "options"},
            {"path": "l.jsonl", "metric": "scoring.py:first"},
        ],
        "output_dir": str(tmp_path / "run"),
    }
    record = finished(tmp_path / "run", ["new", "k", "l", "one"])
    made = []
    for limit in (8, 9):
        values["keep"][1]["max_new_tokens"] = limit
        settings = RunConfig.model_validate(values)
        made.append(ledgers._entry(settings, skills, record, tmp_path / "run"))
    assert {name: each.scoring for name, each in made[0].after.items()} == {
        "new": "number generate 32",
        "k": "exact_match options",
        "l": "first 2222 generate 8",
        "one": "exact_match generate 32",  # an earlier skill, as the ledger has it
    }
    assert made[0].before == made[0].after
    assert (made[0].rows_sha256, made[0].taught_sha256) == ("0" * 64, "2" * 64)
    # The very same items, and not the same scores.
    assert made[0].after["l"].items == made[1].after["l"].items
    assert made[0].after["l"] != made[1].after["l"]
