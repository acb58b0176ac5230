"""`--help` is complete and readable on a terminal of 80 columns."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from narrowtune.cli.app import app
from narrowtune.cli.flags import MODES
from narrowtune.cli.printing import finish, say_written
from narrowtune.cli.settings import column_names
from narrowtune.core.config import load_config
from narrowtune.core.errors import UsageError
from narrowtune.core.recipes import RECIPES
from narrowtune.core.results import DeltaInfo, RunRecord
from narrowtune.delta.folder import FolderResult
from narrowtune.evaluate.metrics import METRICS

COMMANDS = ["", "plan", "teach", "evaluate", "probe", "report", "demo", "delta"]
COMMANDS += [
    f"delta {name}" for name in ("info", "apply", "undo", "merge", "pack", "blend", "export")
]


def help_of(command: str) -> str:
    done = CliRunner().invoke(app, [*command.split(), "--help"], env={"COLUMNS": "80"})
    assert done.exit_code == 0
    return done.output


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_is_cut_and_every_flag_is_there_and_explained(command):
    text = help_of(command)
    _, _, explained = text.partition("\n\n")  # a line of usage may end in RUN...
    assert not [line for line in explained.splitlines() if line.endswith(("...", "…"))]
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


def planned(monkeypatch, *arguments):
    """Return the settings that `narrowtune plan` plans, and whether with a skill."""
    asked = []
    monkeypatch.setattr(
        "narrowtune.pipeline.single.plan",
        lambda config, *, with_skill, measure_time: asked.append((config, with_skill)),
    )
    CliRunner().invoke(app, ["plan", *arguments])
    ((config, with_skill),) = asked
    return config, with_skill


def test_a_runs_file_is_planned_as_it_would_be_taught(tmp_path, monkeypatch):
    path = tmp_path / "run.yaml"
    path.write_text("model: m\nrecipe: sa_proj\nskill: s.jsonl\nkeep: k.jsonl\nanchor: true\n")
    config, with_skill = planned(monkeypatch, str(path))
    assert with_skill
    assert config == load_config(path)
    config, _ = planned(monkeypatch, str(path), "--recipe", "mlp", "--skill", "t.jsonl")
    assert (config.recipe, config.skill.path, config.keep[0].path) == ("mlp", "t.jsonl", "k.jsonl")


def test_a_file_of_any_name_is_planned_and_a_ledger_is_not(tmp_path, monkeypatch):
    path = tmp_path / "run.conf"
    path.write_text("model: m\nskill: s.jsonl\n")
    assert planned(monkeypatch, str(path))[0].skill.path == "s.jsonl"
    path.write_text("model: m\nskill: s.jsonl\nledger: skills\n")
    done = CliRunner().invoke(app, ["plan", str(path)])
    assert isinstance(done.exception, UsageError)
    assert "--set ledger=null" in done.exception.do
    assert planned(monkeypatch, str(path), "--set", "ledger=null")[0].ledger is None


def test_a_model_is_planned_without_any_rows(tmp_path, monkeypatch):
    config, with_skill = planned(monkeypatch, "some/model.v2")
    assert not with_skill
    assert (config.model, config.recipe) == ("some/model.v2", "mlp_gate_up")
    (tmp_path / "model.yaml").mkdir()
    assert planned(monkeypatch, str(tmp_path / "model.yaml"))[0].model.endswith("model.yaml")


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
    page.unlink()
    plot = tmp_path / "plots" / "learning_vs_forgetting.png"
    plot.parent.mkdir()
    plot.touch()
    done = CliRunner().invoke(app, ["report", *runs, "--output", str(tmp_path)])
    assert "plots/learning_vs_forgetting.png from before" in str(done.exception)


@pytest.mark.parametrize(
    ("runs", "flags", "named"),
    [
        (1, ["--output", "x"], "with --output\n"),
        (1, ["--overwrite"], "with --overwrite\n"),
        (1, ["--output", "x", "--overwrite"], "with --output and --overwrite\n"),
        (2, ["--gallery"], "with --gallery\n"),
        (2, ["--no-gallery"], "with --no-gallery\n"),
    ],
)
def test_a_flag_that_a_report_has_no_use_for_is_refused(tmp_path, runs, flags, named):
    names = [str(tmp_path / str(number)) for number in range(runs)]
    done = CliRunner().invoke(app, ["report", *names, *flags])
    assert isinstance(done.exception, UsageError)
    assert named in str(done.exception)
    assert not any(tmp_path.iterdir())


def test_paths_are_printed_as_they_are(tmp_path, monkeypatch):
    folder = tmp_path / "b[x]" / ("long" * 30)
    for name in ("build_report", "build_comparison"):
        module = "build" if name == "build_report" else "comparison"
        monkeypatch.setattr(f"narrowtune.report.{module}.{name}", lambda *_, **__: folder)
    for runs in (["a"], ["a", "b"]):
        output = [] if len(runs) == 1 else ["--output", str(tmp_path)]
        done = CliRunner().invoke(app, ["report", *runs, *output], env={"COLUMNS": "80"})
        assert done.output == f"Report: {folder}\n"


def test_the_end_of_a_run_prints_its_report_s_path_as_it_is():
    output, folder = io.StringIO(), "b[x]/" + "long" * 30
    record = RunRecord.model_construct(verdict=None, delta=None, tasks=[], notes=[])
    finish(record, folder, False, Console(file=output, width=40))
    assert output.getvalue().splitlines()[-1] == f"Report: {folder}/report.html"


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (
            {"source": "my base", "is_folder": True},
            "narrowtune delta apply 'my base' runs/a/delta.safetensors --output tuned",
        ),
        ({"source": "maker/base", "is_folder": False}, "hf download maker/base --local-dir"),
        ({"source": "base", "ledger": "taught"}, "narrowtune ledger build taught --output tuned"),
    ],
)
def test_the_end_of_a_run_says_where_its_delta_is_and_what_writes_a_model(model, told):
    output = io.StringIO()
    delta = DeltaInfo.model_construct(path="elsewhere")
    record = RunRecord.model_construct(verdict=None, delta=delta, tasks=[], notes=[], model=model)
    finish(record, "runs/a", False, Console(file=output, width=40))
    lines = output.getvalue().splitlines()
    assert "Delta: runs/a/delta.safetensors" in lines
    assert any(told in line for line in lines)
    assert "elsewhere" not in output.getvalue()
    assert ("delta apply" in output.getvalue()) == ("ledger" not in model)


def test_a_folder_that_was_written_is_printed_as_it_is(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    folder = Path("b[x]") / ("long" * 30)
    say_written("Applied", FolderResult(folder, 3, 9, {"a[b].txt": "why " * 20}))
    first, second, *rest = capsys.readouterr().out.splitlines()
    assert first == f"Applied: {folder} (3 tensors changed)"
    assert second == f"  left out: a[b].txt ({'why ' * 20})"
    assert rest == []


def test_a_demo_into_a_file_is_an_error_before_anything(tmp_path):
    (tmp_path / "file").touch()
    done = CliRunner().invoke(app, ["demo", "--output-dir", str(tmp_path / "file")])
    assert "Not a directory" in str(done.exception)
    assert "choose another folder" in str(done.exception)


def test_columns_are_named_or_left_out(tmp_path, monkeypatch):
    assert column_names(["question=frage", "prompt=null"]) == {"question": "frage", "prompt": None}
    path = tmp_path / "run.yaml"
    path.write_text("model: m\nskill: {path: s.jsonl, columns: {prompt: null}}\n")
    assert planned(monkeypatch, str(path))[0].skill.columns == {"prompt": None}
    config, _ = planned(monkeypatch, str(path), "--set", "skill.columns.id=null")
    assert config.skill.columns == {"prompt": None, "id": None}
