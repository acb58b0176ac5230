"""`--help` is complete and readable on a terminal of 80 columns."""

from __future__ import annotations

import pytest
import typer
from typer.testing import CliRunner

from narrowtune.cli.app import app
from narrowtune.cli.flags import MODES
from narrowtune.core.recipes import RECIPES
from narrowtune.evaluate.metrics import METRICS

COMMANDS = ["", "plan", "teach", "evaluate", "probe", "report", "demo", "delta"]
COMMANDS += [f"delta {name}" for name in ("info", "apply", "undo", "merge")]


def help_of(command: str) -> str:
    done = CliRunner().invoke(app, [*command.split(), "--help"], env={"COLUMNS": "80"})
    assert done.exit_code == 0
    return done.output


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_is_cut_and_every_flag_is_there_and_explained(command):
    text = help_of(command)
    assert "…" not in text
    assert "that...\n" not in text
    assert "and...\n" not in text
    assert max(map(len, text.splitlines())) <= 80
    found = typer.main.get_command(app)
    for name in command.split():
        found = found.commands[name]
    for parameter in found.params:
        for flag in parameter.opts:
            assert flag.startswith("-") is False or flag in text
        assert getattr(parameter, "help", None), f"{command} {parameter.name} is not explained"


def test_choices_are_listed():
    for command in ("teach", "evaluate"):
        assert all(name in help_of(command) for name in METRICS)
    for command in ("teach", "plan"):
        assert all(name in help_of(command) for name in RECIPES)
    assert all(name in help_of("evaluate") for name in MODES)


def test_a_comparison_is_not_written_over_what_is_there(tmp_path):
    page = tmp_path / "comparison.html"
    page.write_text("mine", encoding="utf-8")
    runs = [str(tmp_path / "one"), str(tmp_path / "two")]
    done = CliRunner().invoke(app, ["report", *runs, "--output", str(tmp_path)])
    assert done.exit_code
    assert "comparison.html from before" in str(done.exception)
    assert "--overwrite" in str(done.exception)
    # Then it is the runs that are looked for.
    done = CliRunner().invoke(app, ["report", *runs, "--output", str(tmp_path), "--overwrite"])
    assert "record.json" in str(done.exception)
    assert page.read_text(encoding="utf-8") == "mine"


def test_a_demo_into_a_file_is_an_error_before_anything(tmp_path):
    (tmp_path / "file").touch()
    done = CliRunner().invoke(app, ["demo", "--output-dir", str(tmp_path / "file")])
    assert "Not a directory" in str(done.exception)
    assert "choose another folder" in str(done.exception)
