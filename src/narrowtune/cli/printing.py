"""How errors and results look on a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from narrowtune.core.errors import NarrowtuneError
from narrowtune.core.run_folder import RunFolder

if TYPE_CHECKING:
    from narrowtune.core.results import RunRecord
    from narrowtune.delta.folder import FolderResult


def report_error(error: NarrowtuneError) -> None:
    """Print what was asked, what was found and what to do, to standard error."""
    console = Console(stderr=True, highlight=False)
    console.print(f"[bold red]{type(error).__name__}[/]")
    for label, text in (("asked", error.asked), ("found", error.found), ("do", error.do)):
        console.print(f"  {label:<6}", end="", style="bold")
        console.print(text, markup=False)


def open_console(as_json: bool = False) -> Console:
    """Return where to write for people: beside the result, where that is for machines."""
    return Console(stderr=as_json, highlight=False)


def finish(record: RunRecord, folder: str, as_json: bool, console: Console) -> None:
    """Print a run's outcome, and leave with its exit code."""
    from narrowtune.core.results import EXIT_CODES
    from narrowtune.report.terminal import summary_lines

    if as_json:
        typer.echo(record.model_dump_json(indent=2))
    else:
        for line in summary_lines(record):
            console.print(line)
        say_delta(record, Path(folder), console)
        console.print(f"Report: {Path(folder) / 'report.html'}", markup=False, soft_wrap=True)
    if record.verdict is not None:
        raise typer.Exit(EXIT_CODES[record.verdict.outcome])


def say_delta(record: RunRecord, folder: Path, console: Console) -> None:
    """Say where a run's delta is, and what writes a model with it."""
    if record.delta is None:
        return
    from narrowtune.report.sections import WRITES, delta_commands

    here = record.delta.model_copy(update={"path": str(RunFolder(folder).delta)})
    console.print(f"Delta: {here.path}", markup=False, soft_wrap=True)
    for what, command in delta_commands(record, here):
        if what.startswith(WRITES):
            console.print(f"{what}: {command}", markup=False, soft_wrap=True)


def say_written(what: str, result: FolderResult) -> None:
    """Say what a new model folder holds."""
    console = open_console()
    changed = f"{result.num_tensors} tensors changed"
    console.print(f"{what}: {result.folder} ({changed})", markup=False, soft_wrap=True)
    for name, reason in result.left_out.items():
        console.print(f"  left out: {name} ({reason})", markup=False, soft_wrap=True)
