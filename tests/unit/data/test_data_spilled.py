"""Values beside memory come back as they were given, and leave nothing on the disk."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import os
import pickle
import signal
import stat
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from narrowtune.core.errors import DataError
from narrowtune.data import spilled
from narrowtune.data.spilled import Joined, Spilled, pick

VALUES = [(number, "x" * (number % 5)) for number in range(20)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture(params=["memory", "disk", "both"])
def values(request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    size = {"memory": 2**20, "disk": 1, "both": 100}[request.param]
    monkeypatch.setattr(spilled, "PIECE_BYTES", size)
    made = Spilled(iter(VALUES))
    assert len(list(folder.iterdir())) == (0 if request.param == "memory" else 1)
    return made


def test_values_come_back(values: Spilled[tuple[int, str]]) -> None:
    assert len(values) == 20
    assert list(values) == list(values) == VALUES
    assert [values[number] for number in range(-20, 20)] == VALUES * 2
    assert list(values[3:17:4]) == VALUES[3:17:4]
    assert list(values[5:].pick([2, 0, 2])) == [VALUES[7], VALUES[5], VALUES[7]]
    assert VALUES[4] in values
    with pytest.raises(IndexError):
        values[20]


def test_copies_and_other_processes_read_the_same(values: Spilled[tuple[int, str]]) -> None:
    assert list(copy.copy(values)) == VALUES
    view = values[2:4]
    assert list(pickle.loads(pickle.dumps(view))) == VALUES[2:4]
    context = multiprocessing.get_context("fork")
    with context.Pool(2) as pool:
        assert pool.map(values.__getitem__, range(20)) == VALUES
    # A process that ends takes no file along.
    assert list(values) == VALUES


def test_the_file_is_its_owners_and_goes_with_the_last_view(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spilled, "PIECE_BYTES", 1)
    made = Spilled(VALUES)
    (path,) = folder.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    view = made[:2]
    del made
    gc.collect()
    assert list(view) == VALUES[:2]
    del view
    gc.collect()
    assert not list(folder.iterdir())


def test_values_that_cannot_be_made_leave_no_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spilled, "PIECE_BYTES", 1)

    def values() -> Iterator[int]:
        yield 1
        raise ValueError("the second")

    with pytest.raises(ValueError, match="the second"):
        Spilled(values())
    gc.collect()
    assert not list(folder.iterdir())


@pytest.mark.parametrize("size", [1, 10**9])
def test_no_room_is_an_error_that_says_where(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spilled, "PIECE_BYTES", size)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    if size == 1:
        with pytest.raises(DataError, match=r"beside memory[\s\S]*TMPDIR"):
            Spilled(VALUES)
    else:
        assert list(Spilled(VALUES)) == VALUES  # few values need no folder


def test_memory_does_not_grow_with_the_values(folder: Path) -> None:
    def held(number: int) -> int:
        tracemalloc.start()
        made = Spilled("x" * 1000 + str(count) for count in range(number))
        size, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(made) == number
        assert size < 16 * number + 2**16  # two places a value
        return peak

    assert held(40_000) - held(10_000) < 2 * spilled.PIECE_BYTES


@pytest.mark.parametrize("beside", [False, True])
def test_picked_values(beside: bool, folder: Path) -> None:
    given: Sequence[tuple[int, str]] = Spilled(VALUES) if beside else VALUES
    picked = pick(given, iter([3, 1]))
    assert list(picked) == [VALUES[3], VALUES[1]]
    assert isinstance(picked, Spilled) == beside


def test_joined_parts(folder: Path) -> None:
    joined = Joined([Spilled(VALUES[:3]), [], VALUES[3:4], Spilled(VALUES[4:])])
    assert len(joined) == 20
    assert list(joined) == VALUES
    assert [joined[number] for number in range(-20, 20)] == VALUES * 2
    assert joined[2:6] == VALUES[2:6]
    with pytest.raises(IndexError):
        joined[20]
    assert list(Joined([])) == []
    assert not Joined([[], []])


def test_a_program_that_is_asked_to_end_leaves_no_file(tmp_path: Path) -> None:
    code = (
        "import signal, time\n"
        "from narrowtune.__main__ import leave\n"
        "from narrowtune.data import spilled\n"
        "signal.signal(signal.SIGTERM, leave)\n"
        "spilled.PIECE_BYTES = 1\n"
        "rows = spilled.Spilled([1, 2])\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    assert len(list(tmp_path.glob("narrowtune-rows-*"))) == 1
    process.terminate()
    assert process.wait(timeout=30) == 128 + signal.SIGTERM
    assert not list(tmp_path.glob("narrowtune-rows-*"))
    process.stdout.close()


def test_a_file_that_went_meanwhile_is_an_error_that_says_which(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spilled, "PIECE_BYTES", 1)
    made = Spilled(VALUES)
    (path,) = folder.iterdir()
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=r"narrowtune-rows-[\s\S]*shorter than it was"):
        list(made)
    path.unlink()
    with pytest.raises(DataError, match=r"No such file[\s\S]*TMPDIR"):
        made[0]
