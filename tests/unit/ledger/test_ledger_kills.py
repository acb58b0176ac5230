"""A process that changes a ledger is killed, anywhere: nothing is lost."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from delta_cases import load
from ledger_lessons import lesson, state
from narrowtune.core.errors import LedgerError
from narrowtune.core.ledger import Ledger
from narrowtune.core.provenance import sha256_file
from narrowtune.ledger import book as books
from narrowtune.ledger.book import Book

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")

DONE, KILLED, FAILED = 0, 1, 2
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CHANGES = ("rename", "remove", "mkdir", "rmdir", "chmod", "link", "symlink", "truncate", "utime")


class Killed(BaseException):
    """What a process that is interrupted runs into."""


def interrupted():
    raise Killed


def gone():
    os.kill(os.getpid(), signal.SIGKILL)


def in_child(work: Callable[[], int]) -> int:
    """Do some work in a copy of this process, and return its exit code, or minus the signal."""
    child = os.fork()
    if child == 0:
        code = FAILED
        try:
            code = work()
        except Killed:
            code = KILLED
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def changes_files(event: str, arguments: tuple) -> bool:
    """Whether an event that Python reports is one that files change by."""
    if event == "open":
        return bool(arguments[2] & WRITES)
    return event.removeprefix("os.") in CHANGES


def killed_before(number: int, kill: Callable[[], None], operation: Callable[[], object]) -> bool:
    """Kill a process before its file-changing call of this number; False where it has fewer."""
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            kill()

    def work() -> int:
        fsync = os.fsync  # Python reports no event of it
        os.fsync = lambda file: (count(), fsync(file))[1]
        sys.addaudithook(lambda event, arguments: count() if changes_files(event, arguments) else 0)
        operation()
        return DONE if calls < number else KILLED  # where a clean-up swallows it

    code = in_child(work)
    assert code in (DONE, KILLED, -signal.SIGKILL)
    return code != DONE


def read(folder: Path) -> Ledger | None:
    return Book.open(folder).ledger if Book.is_in(folder) else None


def see_that_all_is_there(ledger: Ledger | None, folder: Path) -> None:
    """Files that the ledger names are those that were written."""
    if ledger is None:
        return
    for entry in (*ledger.skills, *ledger.undone):
        assert sha256_file(folder / entry.delta) == entry.sha256
        if not entry.without:
            for when in ("before", "after"):
                answers = folder / "scores" / f"{entry.number:02}-{entry.name}" / when
                file = answers / f"{entry.name}.jsonl"
                assert file.read_text("utf-8") == '{"id": 1}\n'


@pytest.fixture
def change(taught, tmp_path):
    """`change(name)`: the base, the ledger before it (None: none), and what changes a copy."""

    def make(name):
        base, book, _ = taught(("sa_proj", "mlp_gate_up", "mlp_down") if name != "start" else ())
        model = load(base)
        book.put_on(model)
        added = lesson(model, tmp_path / "late", "late", "sa_proj", 7)
        todo = {
            "start": lambda folder: Book(folder, book.ledger).start(),
            "add": lambda folder: Book.open(folder).add(*added),
            "rollback": lambda folder: Book.open(folder).rollback(1),
            "remove": lambda folder: Book.open(folder).remove("birds"),
        }
        return base, book.folder, todo[name]

    return make


@pytest.mark.parametrize("kill", [gone, interrupted])
@pytest.mark.parametrize("name", ["start", "add", "rollback", "remove"])
def test_a_kill_before_any_call_that_changes_files_leaves_the_old_ledger_or_the_new(
    change, tmp_path, name, kill
):
    base, original, operation = change(name)
    original.mkdir(exist_ok=True)
    whole = tmp_path / "whole"
    shutil.copytree(original, whole)
    operation(whole)
    old, new = read(original), read(whole)
    assert old != new
    # As deltas are held to their hashes below, this is the state of every equal ledger.
    assert state(base, Book.open(whole)) == new.fingerprint
    number, found = 0, []
    while True:
        number += 1
        copy = tmp_path / f"killed-{number}"
        shutil.copytree(original, copy)
        if not killed_before(number, kill, lambda copy=copy: operation(copy)):
            break
        left = read(copy)
        assert left in (old, new)
        found.append(left == new)
        see_that_all_is_there(left, copy)
        if left == old or name in ("start", "rollback"):
            operation(copy)
        else:
            with pytest.raises(LedgerError):
                operation(copy)
        assert read(copy) == new
        see_that_all_is_there(new, copy)
        shutil.rmtree(copy)
    assert number > 5
    assert found == sorted(found), "new once, new for good"
    assert not found[0]


def test_kills_at_any_moment_of_many_changes_lose_nothing(taught, tmp_path):
    base, book, states = taught(("sa_proj", "mlp_gate_up"))
    folder = book.folder
    runs = [(entry, tmp_path / entry.run) for entry in book.ledger.skills]

    def work() -> int:
        while True:
            own = Book.open(folder)
            own.rollback(0)
            for run in runs:
                own.add(*run)
            own.remove("birds")

    chance = random.Random(0)
    entries = list(book.ledger.skills)
    kills = 0
    while kills < 12 or len(entries) < 12:
        kills += 1
        child = os.fork()
        if child == 0:
            try:
                work()
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(FAILED)
        time.sleep(chance.uniform(0, 0.02 * kills))  # longer, where a machine is slow
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        ledger = read(folder)
        see_that_all_is_there(ledger, folder)
        now = [*ledger.skills, *ledger.undone]
        assert all(entry in now for entry in entries)
        entries = now
    own = Book.open(folder)
    own.rollback(0)
    for number, run in enumerate(runs, 1):
        own.add(*run)
        assert state(base, own) == states[number]


def test_answers_that_a_killed_process_copied_do_not_stand_beside_another_runs(
    taught, tmp_path, monkeypatch
):
    base, book, _ = taught(("sa_proj",))
    model = load(base)
    book.put_on(model)
    entry, run = lesson(model, tmp_path / "late", "late", "sa_proj", 7)
    more = run / "before" / "street.jsonl"
    more.write_text("", encoding="utf-8")
    with monkeypatch.context() as patched:
        patched.setattr(books, "write_json", lambda *_: interrupted())
        with pytest.raises(Killed):
            book.add(entry, run)
    more.unlink()
    book.add(entry, run)
    scores = book.folder / "scores" / "02-late"
    kept = sorted(str(file.relative_to(scores)) for file in scores.rglob("*.jsonl"))
    assert kept == ["after/late.jsonl", "before/late.jsonl"]
