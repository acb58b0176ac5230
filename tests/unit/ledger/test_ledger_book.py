"""Five skills one after the other, and back: every state's hashes are those that were recorded."""

from __future__ import annotations

import errno
import json

import pytest
from pydantic import ValidationError

from delta_cases import load
from ledger_entries import score, stage
from ledger_lessons import SKILLS, lesson, state
from narrowtune.core.errors import DeltaError, LedgerError, UsageError
from narrowtune.core.ledger import Entry
from narrowtune.ledger import book as books
from narrowtune.ledger.book import Book
from narrowtune.models.fingerprint import fingerprint

RECIPES = ("sa_proj", "mlp_gate_up", "sa_proj", "language_model", "mlp")


def test_five_skills_are_rolled_back_one_by_one_to_the_hashes_that_were_recorded(taught):
    folder, book, states = taught(RECIPES)
    assert [entry.tuned_fingerprint for entry in book.ledger.skills] == states[1:]
    for number in range(5, -1, -1):
        undone = book.rollback(number)
        assert [entry.name for entry in undone] == list(SKILLS[number : number + 1])
        again = Book.open(book.folder)
        assert again.ledger.fingerprint == states[number]
        assert state(folder, again) == states[number]
    # Nothing is deleted: what was undone is there, and may be added again.
    assert [entry.name for entry in book.ledger.undone] == list(reversed(SKILLS))
    assert all((book.folder / entry.delta).exists() for entry in book.ledger.undone)


def test_answers_of_every_stage_are_kept(taught):
    _, book, _ = taught(RECIPES[:2])
    kept = sorted(str(p.relative_to(book.folder)) for p in book.folder.rglob("*.jsonl"))
    assert kept == [
        "scores/01-birds/after/birds.jsonl",
        "scores/01-birds/before/birds.jsonl",
        "scores/02-counting/after/counting.jsonl",
        "scores/02-counting/before/counting.jsonl",
    ]


def test_a_skill_in_the_middle_is_taken_out_where_no_later_one_trained_its_tensors(taught):
    folder, book, states = taught(("sa_proj", "mlp_gate_up", "mlp_down"))
    whole = load(folder)
    book.put_on(whole)
    moved = dict(whole.named_parameters())
    later = book.remove("counting")
    assert later == ["tissue"]
    without = load(folder)
    Book.open(book.folder).put_on(without)
    assert fingerprint(without) == book.ledger.fingerprint not in states
    base = dict(load(folder).named_parameters())
    for name, tensor in without.named_parameters():
        wanted = base if "gate_proj" in name or "up_proj" in name else moved
        assert tensor.equal(wanted[name]), name
    assert book.ledger.skills[-1].without == ["counting"]
    assert [entry.name for entry in book.ledger.undone] == ["tissue", "counting"]
    assert len({entry.delta for entry in (*book.ledger.skills, *book.ledger.undone)}) == 4


def test_a_skill_that_a_later_one_was_trained_on_top_of_stays(taught):
    _, book, states = taught(("sa_proj", "mlp_gate_up", "language_model"))
    with pytest.raises(LedgerError, match=r"tissue was trained on top of it: .* in both deltas"):
        book.remove("birds")
    assert Book.open(book.folder).ledger.fingerprint == states[-1]
    assert book.remove("tissue") == []
    assert book.ledger.fingerprint == states[2]


def test_what_can_not_be_right_is_refused(taught, tmp_path):
    folder, book, states = taught(RECIPES[:2])
    model = load(folder)
    stale = lesson(model, tmp_path / "run-stale", "signs", "sa_proj", 3)
    with pytest.raises(LedgerError, match=r"taught to the state .* the latest is"):
        book.add(*stale)
    with pytest.raises(LedgerError, match="one of that name among birds, counting"):
        book.check_new("birds")
    with pytest.raises(LedgerError, match="from 0, the base, to 2"):
        book.rollback(3)
    with pytest.raises(LedgerError, match="a ledger with birds, counting"):
        book.remove("clock")
    with pytest.raises(DeltaError):
        book.put_on(model)  # another model than the base
    path = book.folder / book.ledger.skills[0].delta
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(LedgerError, match=r"01-birds\.safetensors"):
        book.rollback(1)
    path.unlink()
    with pytest.raises(LedgerError, match="no such file"):
        state(folder, book)
    path.write_bytes(whole)
    assert state(folder, book) == states[2]


def test_a_state_is_reached_though_a_later_delta_is_lost(taught):
    folder, book, states = taught(RECIPES[:2])
    (book.folder / book.ledger.skills[1].delta).unlink()
    with pytest.raises(LedgerError, match="no such file"):
        state(folder, book)
    book.rollback(1)
    assert state(folder, book) == states[1]


def test_a_change_begins_with_what_another_process_wrote(taught, tmp_path):
    folder, book, _ = taught(RECIPES[:1])
    model = load(folder)
    book.put_on(model)
    other = Book.open(book.folder)
    entry, run = lesson(model, tmp_path / "run-a", "counting", "sa_proj", 3)
    other.add(entry, run)
    late = stage("signs", {"signs": 0.0}, {"signs": 0.0}, entry.base_fingerprint)
    with pytest.raises(LedgerError, match="the latest is"):
        book.add(late, run)
    assert book.rollback(1)[0].name == "counting"
    assert [entry.number for entry in book.ledger.undone] == [2]
    assert Book.open(book.folder).ledger.next_number == 3


def test_a_skill_can_not_have_the_name_of_rows_that_were_kept(taught):
    _, book, _ = taught(RECIPES[:1])
    entry = book.ledger.skills[0]
    kept = entry.model_copy(update={"before": {**entry.before, "street": score(0.5)}})
    book._write(skills=[kept])
    with pytest.raises(LedgerError, match="rows of that name, which an earlier skill's run kept"):
        book.check_new("street")


def test_a_skill_that_was_taken_out_can_be_taught_again_under_its_name(taught, tmp_path):
    folder, book, _ = taught(("sa_proj", "mlp_gate_up"))
    first, second = book.ledger.skills
    scores = {"birds": score(0.6), "street": score(0.5)}
    kept = second.model_copy(update={"before": {**second.before, **scores}})
    book._write(skills=[first, kept])
    book.remove("birds")
    model = load(folder)
    book.put_on(model)
    book.add(*lesson(model, tmp_path / "again", "birds", "sa_proj", 5))
    assert [entry.name for entry in book.ledger.skills] == ["counting", "birds"]
    assert state(folder, Book.open(book.folder)) == fingerprint(model)


def test_a_folder_that_can_not_be_written_is_refused_before_anything_is_taught(taught, tmp_path):
    _, book, _ = taught(())
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UsageError):
        Book(tmp_path / "file", book.ledger).start()


@pytest.mark.parametrize("place", ["deltas", "scores"])
def test_a_ledger_that_can_not_be_added_to_is_refused_before_anything_is_taught(taught, place):
    _, book, _ = taught(RECIPES[:1])
    (book.folder / place).rename(book.folder / "moved")
    (book.folder / place).write_text("", encoding="utf-8")
    with pytest.raises(UsageError, match="can be written"):
        Book(book.folder, book.ledger).start()


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device", "ledger.json")


@pytest.mark.parametrize("call", ["_copy", "write_json", "FileLock"])
def test_a_disk_that_is_full_or_read_only_says_how_to_go_on(taught, tmp_path, monkeypatch, call):
    folder, book, states = taught(("sa_proj", "mlp_gate_up"))
    model = load(folder)
    book.put_on(model)
    added = lesson(model, tmp_path / "late", "tissue", "mlp_down", 7)
    with monkeypatch.context() as patched:
        patched.setattr(books, call, full)
        again = f"narrowtune ledger add {book.folder} {tmp_path / 'late'}"
        with pytest.raises(LedgerError, match=f"(?s)No space left.*as it was.*{again}"):
            book.add(*added)
        for change in (lambda: book.rollback(1), lambda: book.remove("birds")):
            if call != "_copy":
                with pytest.raises(LedgerError, match=r"(?s)No space left.*do this again"):
                    change()
    assert Book.open(book.folder).ledger.fingerprint == states[2]
    book.add(*added)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema_version": 99}, "schema version 99"),
        ({"skills": 3}, "skills"),
        ({"surprise": 1}, "surprise"),
        ({"schema_version": 2, "surprise": 1}, "schema version 2"),
        ({"skills": [{"delta": "../elsewhere.safetensors"}]}, r"skills\.0\."),
    ],
)
def test_a_ledger_that_can_not_be_read_says_why(taught, change, said):
    _, book, _ = taught(RECIPES[:1])
    path = book.folder / "ledger.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **change}), "utf-8")
    with pytest.raises(LedgerError, match=said):
        Book.open(book.folder)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(LedgerError, match=r"put ledger\.json back"):
        Book.open(book.folder)
    path.unlink()
    with pytest.raises(LedgerError, match="none there"):
        Book.open(book.folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"delta": "../x.safetensors"}, "String should match pattern"),
        ({"delta": "deltas/a/../../x.safetensors"}, "String should match pattern"),
        ({"name": "../x"}, "not what it was taught"),
        ({"after": {}}, "not what it was taught"),
    ],
)
def test_an_entry_leads_nowhere_else(taught, change, said):
    _, book, _ = taught(RECIPES[:1])
    values = book.ledger.skills[0].model_dump(mode="json")
    with pytest.raises(ValidationError, match=said):
        Entry.model_validate({**values, **change})


def test_a_delta_that_the_run_did_not_write_is_not_entered(taught, tmp_path):
    folder, book, states = taught(RECIPES[:1])
    model = load(folder)
    book.put_on(model)
    entry, run = lesson(model, tmp_path / "late", "late", "mlp", 7)
    other = lesson(load(folder), tmp_path / "other", "other", "mlp", 8)[1]
    (run / "delta.safetensors").write_bytes((other / "delta.safetensors").read_bytes())
    with pytest.raises(LedgerError, match="put the delta back that the run wrote"):
        book.add(entry, run)
    assert Book.open(book.folder).ledger.fingerprint == states[1]
