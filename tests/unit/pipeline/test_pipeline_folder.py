"""A run's folder: nothing of the user's is overwritten, and one run at a time is in it."""

from __future__ import annotations

import errno
import fcntl
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml

from narrowtune.core.config import RunConfig
from narrowtune.core.errors import UsageError
from narrowtune.core.run_folder import RunFolder
from narrowtune.pipeline import trained
from narrowtune.pipeline.folder import check_batches, opened, write_settings

SETTINGS = {"model": "m", "skill": {"path": "a.jsonl"}}


@pytest.fixture
def config():
    return RunConfig.model_validate(SETTINGS)


def start(folder, config, given=None, *, resume=False):
    """Open a run's folder, and end the run at once."""
    with opened(RunFolder(folder), config, given, resume):
        pass


@pytest.mark.parametrize(
    "name",
    [
        *("train.jsonl", "run.yaml", "resolved.yaml", "started.json", "report.html"),
        *("before/a.jsonl", "plots/x.png", "checkpoint-3/model.bin"),
    ],
)
def test_a_file_of_the_users_by_a_runs_name_is_never_touched(tmp_path, config, name):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine: 1\n")
    with pytest.raises(UsageError, match=name.partition("/")[0]):
        start(tmp_path, config)
    assert file.read_text() == "mine: 1\n"
    assert {path.name for path in tmp_path.iterdir()} == {name.partition("/")[0]}


def test_a_users_resolved_settings_do_not_hide_what_lies_beside_them(tmp_path, config):
    for name in ("resolved.yaml", "train.jsonl"):
        (tmp_path / name).write_text("mine: 1\n")
    with pytest.raises(UsageError, match=r"resolved\.yaml, train\.jsonl"):
        start(tmp_path, config)


def test_settings_that_stand_where_their_copy_goes_are_that_copy(tmp_path, config):
    (tmp_path / "run.yaml").write_text("model: m  # mine\n")
    start(tmp_path, config, "model: m  # mine\n")
    assert (tmp_path / "run.yaml").read_text() == "model: m  # mine\n"
    assert RunFolder(tmp_path).resolved.exists()


def test_a_start_that_failed_early_is_corrected_and_leaves_no_refused_rows(tmp_path, config):
    folder = RunFolder(tmp_path)
    start(tmp_path, config, "first")
    folder.refused.write_text("{}\n")
    other = RunConfig.model_validate({**SETTINGS, "seed": 7})
    start(tmp_path, other, "second")
    assert folder.given.read_text() == "second"
    assert not folder.refused.exists()


def test_a_run_from_before_a_setting_was_there_goes_on(tmp_path, config):
    folder = RunFolder(tmp_path)
    start(tmp_path, config)
    folder.plan.write_text("{}")
    values = yaml.safe_load(folder.resolved.read_text())
    del values["training"]["torch_compile"], values["skill"]["columns"]
    del values["skill"]["defaults"]
    folder.resolved.write_text(yaml.safe_dump(values, sort_keys=False))
    start(tmp_path, config, resume=True)
    values["seed"] = 7
    folder.resolved.write_text(yaml.safe_dump(values, sort_keys=False))
    with pytest.raises(UsageError, match="was seed: 7\n  now seed: 42\nDo"):
        start(tmp_path, config, resume=True)


def test_a_run_may_go_on_with_smaller_batches_of_answers(tmp_path, config):
    start(tmp_path, config)
    RunFolder(tmp_path).plan.write_text("{}")
    smaller = config.model_copy(update={"eval_batch_size": 3})
    before = RunFolder(tmp_path).resolved.read_bytes()
    start(tmp_path, smaller, resume=True)
    assert RunFolder(tmp_path).resolved.read_bytes() == before  # until nothing refuses them
    check_batches(RunFolder(tmp_path), torch.nn.Linear(1, 1), smaller)
    write_settings(RunFolder(tmp_path), smaller, "as given")
    assert "eval_batch_size: 3\n" in RunFolder(tmp_path).resolved.read_text()
    assert RunFolder(tmp_path).given.read_text() == "as given"


class Turned(torch.nn.Module):
    rope_type = "longrope"

    def __init__(self):
        super().__init__()
        self.register_buffer("inv_freq", torch.ones(2))


def test_but_not_where_answers_depend_on_them(tmp_path, config):
    start(tmp_path, config)
    check_batches(RunFolder(tmp_path), Turned(), config)
    smaller = config.model_copy(update={"eval_batch_size": 3})
    with pytest.raises(UsageError, match="begun with 256, and a model whose answers depend"):
        check_batches(RunFolder(tmp_path), Turned(), smaller)


def test_a_refusal_leaves_nothing_behind(tmp_path, config):
    with pytest.raises(UsageError, match="no run that had begun"):
        start(tmp_path / "typo" / "run", config, resume=True)
    assert not list(tmp_path.iterdir())


def test_a_second_process_is_kept_out_until_the_first_ends(tmp_path, config):
    folder = tmp_path / "run"
    held = f"""
import sys, time
from pathlib import Path
from narrowtune.core.config import RunConfig
from narrowtune.core.run_folder import RunFolder
from narrowtune.pipeline.folder import opened
config = RunConfig.model_validate({SETTINGS!r})
with opened(RunFolder(Path(sys.argv[1])), config, None, False):
    print("in", flush=True)
    time.sleep(60)
"""
    command = [sys.executable, "-c", held, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "in\n"
        with pytest.raises(UsageError, match="another process"):
            start(folder, config)
        other.kill()  # as a launcher or the kernel would
    start(folder, config)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_without_locks_is_a_warning(tmp_path, config, monkeypatch, caplog, number):
    def unknown(*_):
        raise OSError(number, "no locks here")

    monkeypatch.setattr(fcntl, "flock", unknown)
    start(tmp_path, config)
    assert "can't be locked" in caplog.text
    assert RunFolder(tmp_path).resolved.exists()


def test_a_folder_that_can_not_be_written_is_said(tmp_path, config):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="can be written"):
        start(tmp_path / "file" / "x", config)


@pytest.mark.parametrize("kwargs", [{}, {"enable_thinking": False}])
def test_a_delta_says_what_a_server_has_to_set(monkeypatch, kwargs):
    seen = {}
    monkeypatch.setattr(trained, "resolve", lambda *_: None)
    monkeypatch.setattr(trained, "extract", lambda *_, **given: seen.update(given))
    config = SimpleNamespace(recipe="sa_proj", chat_template_kwargs=kwargs)
    loaded = SimpleNamespace(notes=["eyes"], model=None)
    fitted = SimpleNamespace(base={})
    run = SimpleNamespace(fitted=fitted, loaded=loaded, dial=None, config=config, base_hashes={})
    trained.extract_delta(run)
    assert seen["notes"][0] == "eyes"
    assert any("enable_thinking" in note for note in seen["notes"]) == bool(kwargs)
