"""An earlier demo gives way to the next one; what else is there is never touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from narrowtune.core.errors import UsageError
from narrowtune.core.run_folder import COMPARISON
from narrowtune.demo.folder import clear

RUNS = ("plain", "anchored")


def _earlier_demo(folder: Path) -> Path:
    runs = ("data/skill.jsonl", "plain/record.json", "anchored/record.json")
    for name in (*runs, *COMPARISON, ".narrowtune-demo"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_an_earlier_demo_is_removed(tmp_path):
    folder = _earlier_demo(tmp_path / "demo")
    clear(folder, RUNS)
    assert [path.name for path in folder.iterdir()] == [".narrowtune-demo"]


def test_a_new_folder_is_made_and_marked(tmp_path):
    clear(tmp_path / "a" / "b", RUNS)
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == [".narrowtune-demo"]


def test_a_demo_with_something_beside_it_is_left_as_it_is(tmp_path):
    folder = _earlier_demo(tmp_path / "demo")
    (folder / "thesis.tex").write_text("three years")
    before = sorted(folder.rglob("*"))
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        clear(folder, RUNS)
    assert sorted(folder.rglob("*")) == before


def test_a_folder_that_is_no_demo_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(UsageError, match="data"):
        clear(tmp_path, RUNS)
