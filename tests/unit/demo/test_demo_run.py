"""Which demo is run, and what must be known before an earlier one is removed."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from narrowtune.core.config import RunConfig
from narrowtune.core.errors import UsageError
from narrowtune.demo import run, text
from narrowtune.pipeline import compare
from narrowtune.pipeline.shared import Shared

SILENT = Console(file=io.StringIO())


def test_a_model_that_is_not_there_leaves_an_earlier_demo_as_it_is(tmp_path):
    (tmp_path / ".narrowtune-demo").touch()
    (tmp_path / "data").mkdir()
    with pytest.raises(UsageError, match=r"'qwen9'[\s\S]*smollm2, which learns from text"):
        run.run_demo(tmp_path, model="qwen9", seed=0, quick=True, console=SILENT)
    assert (tmp_path / "data").exists()


def test_what_the_demo_on_text_needs_is_asked_for_first(tmp_path, monkeypatch):
    from narrowtune.core import extras

    there = extras.find_spec
    monkeypatch.setattr(extras, "find_spec", lambda n: None if n == "pycountry" else there(n))
    monkeypatch.setattr(run.weights, "smollm2_folder", lambda: pytest.fail("downloaded"))
    with pytest.raises(UsageError, match=r"pycountry is not installed[\s\S]*narrowtune\[demo\]"):
        run.run_demo(tmp_path, model="smollm2", seed=0, quick=True, console=SILENT)


def test_the_demo_on_text_is_a_plain_run_and_an_anchored_one_on_the_same_rows(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(text, "QUICK", text.Size(8, 4, 4, 3))
    plain, anchored = text.prepare(tmp_path, tmp_path / "model", seed=5, quick=True)
    assert (plain.anchor, plain.output_dir) == (None, str(tmp_path / "plain"))
    assert anchored.anchor is not None
    assert anchored.training.pull_to_base > plain.training.pull_to_base == 0
    own = {"anchor": None, "output_dir": ""}
    held = {"learning_rate": 1.0, "pull_to_base": 0.0}
    first, second = (
        run.model_copy(update={**own, "training": run.training.model_copy(update=held)})
        for run in (plain, anchored)
    )
    assert first == second


def test_every_run_takes_over_the_arithmetic_of_the_first(tmp_path, monkeypatch):
    first, second = (
        RunConfig.model_validate({"model": "m", "skill": "s", "output_dir": str(tmp_path / name)})
        for name in ("first", "second")
    )
    (tmp_path / "first").mkdir()
    (tmp_path / "first/arithmetic.json").write_text("{}")
    found = []

    def teach(config, *, resume, console, shared):
        assert not resume
        found.append((tmp_path / "second/arithmetic.json").exists())
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "teach", teach)
    with pytest.raises(KeyboardInterrupt):
        run._teach(second, first, SILENT, Shared())
    assert found == [True]


def test_all_runs_share_what_they_read(tmp_path, monkeypatch):
    configs = [
        RunConfig.model_validate({"model": "m", "skill": "s", "output_dir": str(tmp_path / name)})
        for name in ("one", "two", "three")
    ]
    given = []

    def teach_alike(config, first, console, shared):
        given.append((config.output_dir, first, shared))

    monkeypatch.setattr(run.pictures, "prepare", lambda *_, **__: configs)
    monkeypatch.setattr(run, "teach_alike", teach_alike)
    monkeypatch.setattr(run, "summary_lines", lambda _: [])
    monkeypatch.setattr(run, "sentence", lambda _: "")
    monkeypatch.setattr(run, "build_comparison", lambda runs, folder: folder)
    run.run_demo(tmp_path / "demo", model=str(tmp_path), seed=0, quick=True, console=SILENT)
    assert [name for name, *_ in given] == [config.output_dir for config in configs]
    assert len({id(shared) for *_, shared in given}) == 1
    assert given[0][2]._several
