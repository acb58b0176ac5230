"""A run's folder: nothing of the user's is overwritten, and one run at a time is in it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from filelock import FileLock

from narrowtune.core.config import RunConfig
from narrowtune.core.errors import UsageError
from narrowtune.core.run_folder import RunFolder
from narrowtune.pipeline.folder import alone, open_folder


@pytest.fixture
def config():
    return RunConfig.model_validate({"model": "m", "skill": {"path": "a.jsonl"}})


@pytest.mark.parametrize(
    "name", ["train.jsonl", "run.yaml", "report.html", "before/a.jsonl", "checkpoint-3/model.bin"]
)
def test_a_file_of_the_users_by_a_runs_name_is_never_touched(tmp_path, config, name):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine\n")
    with pytest.raises(UsageError, match=name.partition("/")[0]):
        open_folder(RunFolder(tmp_path), config, None, resume=False)
    assert file.read_text() == "mine\n"
    assert {path.name for path in tmp_path.iterdir()} == {name.partition("/")[0]}


def test_settings_that_stand_where_their_copy_goes_are_that_copy(tmp_path, config):
    (tmp_path / "run.yaml").write_text("model: m  # mine\n")
    open_folder(RunFolder(tmp_path), config, "model: m  # mine\n", resume=False)
    assert (tmp_path / "run.yaml").read_text() == "model: m  # mine\n"
    assert RunFolder(tmp_path).resolved.exists()


def test_a_start_that_failed_early_is_corrected_and_leaves_no_refused_rows(tmp_path, config):
    folder = RunFolder(tmp_path)
    open_folder(folder, config, "first", resume=False)
    folder.refused.write_text("{}\n")
    open_folder(folder, config, "second", resume=False)
    assert folder.given.read_text() == "second"
    assert not folder.refused.exists()


def test_a_second_process_is_kept_out_until_the_first_ends(tmp_path):
    folder = RunFolder(tmp_path / "run")
    held = (
        "import sys, time; from pathlib import Path; "
        "from narrowtune.core.run_folder import RunFolder; "
        "from narrowtune.pipeline.folder import alone\n"
        "with alone(RunFolder(Path(sys.argv[1]))): print('in', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", held, str(folder.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "in\n"
        with pytest.raises(UsageError, match="another process"), alone(folder):
            pass
        other.kill()  # as a launcher or the kernel would
    with alone(folder):
        pass


def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, caplog):
    def unknown(*_, **__):
        raise NotImplementedError

    monkeypatch.setattr(FileLock, "acquire", unknown)
    with alone(RunFolder(tmp_path)):
        pass
    assert "can't be locked" in caplog.text


def test_a_folder_that_can_not_be_written_is_said(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(UsageError, match="can be written"),
        alone(RunFolder(tmp_path / "file" / "x")),
    ):
        pass
