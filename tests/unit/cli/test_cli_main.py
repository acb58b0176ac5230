"""What ends the command line becomes three lines and an exit code, or stays a traceback."""

from __future__ import annotations

import errno

import pytest

from narrowtune import __main__ as entry
from narrowtune.cli import app as command_line


@pytest.fixture
def fail(monkeypatch):
    """`fail(error)` runs a command line that ends with it."""

    def run(error):
        def stop():
            raise error

        monkeypatch.setattr(command_line, "app", stop)
        monkeypatch.setattr(entry.signal, "signal", lambda *_: None)
        entry.main()

    return run


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_what_a_disk_answers_is_one_clear_error(fail, number, capsys):
    with pytest.raises(SystemExit) as left:
        fail(OSError(number, "the disk says no", "/data/run/plan.json"))
    assert left.value.code == 1
    said = " ".join("".join(capsys.readouterr()).split())
    assert "to use /data/run/plan.json" in said
    assert "the disk says no" in said
    assert "--resume" in said


def test_a_mistake_in_the_code_is_not_dressed_up(fail):
    with pytest.raises(FileNotFoundError):
        fail(FileNotFoundError(errno.ENOENT, "no such file", "x"))
    with pytest.raises(ZeroDivisionError):
        fail(ZeroDivisionError())
