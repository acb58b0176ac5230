"""The command for studies: recipes side by side, as in the paper."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from narrowtune.cli.flags import AsJson, Set, option
from narrowtune.cli.printing import open_console
from narrowtune.cli.settings import study_settings
from narrowtune.core.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from narrowtune.core.study_settings import StudySettings
    from narrowtune.study.phases import Phase
    from narrowtune.study.presets import Preset
    from narrowtune.study.results import StageResult


def study(
    config: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A YAML file: skills, keep, arms, seeds. Or a preset on the small world: "
            "miniature, miniature-quick.",
        ),
    ],
    model: Annotated[str | None, option("MODEL", "In place of the file's.")] = None,
    output_dir: Annotated[str | None, option("FOLDER", "The study's folder.")] = None,
    workers: Annotated[
        int, typer.Option(metavar="N", min=1, help="Chains at a time; small models gain by it.")
    ] = 1,
    summary: Annotated[
        bool,
        typer.Option("--summary", help="Of a preset: run nothing, sum up what was run so far."),
    ] = False,
    more: Set = None,
    as_json: AsJson = False,
) -> None:
    """Teach skills in a row with many recipes and seeds, and compare what they learn and forget.

    A study that was stopped goes on where it was; arms, rates, orders and seeds can be added to
    one that is finished. A preset runs the whole protocol of docs/study.md.
    """
    from narrowtune.study.presets import PRESETS

    preset = PRESETS.get(str(config))
    if preset is not None:
        given = [flag for flag, value in (("--model", model), ("--set", more)) if value]
        if given:
            raise UsageError(
                asked=f"the preset {preset.name} with {' and '.join(given)}",
                found="a preset, which has its own model and settings",
                do="leave these out, or write a YAML file (docs/study.md)",
            )
        folder = Path(output_dir or f"runs/{preset.name}")
        _run_preset(preset, folder, workers, as_json, only_read=summary)
        return
    if summary:
        raise UsageError(
            asked=f"the summary of the study {config}",
            found="a file's study, which has no claims to read",
            do="leave --summary out; a study that is finished runs nothing, and is shown again",
        )
    settings = study_settings(config, {"model": model, "output_dir": output_dir}, more)
    from narrowtune.study.results import read_results
    from narrowtune.study.view import stage_line
    from narrowtune.study.workers import results_path, run_study

    console = open_console(as_json)

    def report(result: StageResult, missing: int) -> None:
        console.print(stage_line(result, missing), soft_wrap=True)

    run_study(settings, report, num_workers=workers)
    results = read_results(results_path(settings))
    if as_json:
        typer.echo(json.dumps([result.model_dump() for result in results], indent=2))
        return
    _show(console, settings, results)


def _show(console: Console, settings: StudySettings, results: list[StageResult]) -> None:
    """Print a finished study's tables, draw its figures, and write its gallery."""
    from narrowtune.study.figures import draw_study
    from narrowtune.study.gallery import write_gallery
    from narrowtune.study.probe_view import probe_tables
    from narrowtune.study.view import chain_table, frontier_table
    from narrowtune.study.workers import results_path

    path = results_path(settings)
    for order, skills in settings.all_orders.items():
        console.print(frontier_table(results, order, skills[0]))
        if len(skills) > 1:
            console.print(chain_table(results, order, skills))
        for found in probe_tables(results, order):
            console.print(found)
    figures = path.parent / "figures"
    drawn = draw_study(results, settings.all_orders, figures)
    console.print(f"Results: {path}", markup=False, soft_wrap=True)
    console.print(f"Figures: {figures} ({', '.join(drawn)})", markup=False, soft_wrap=True)
    for page in write_gallery(results, path.parent):
        console.print(f"Gallery: {page}", markup=False, soft_wrap=True)


def _run_preset(
    preset: Preset, folder: Path, workers: int, as_json: bool, *, only_read: bool
) -> None:
    from narrowtune.study.miniature import run_miniature
    from narrowtune.study.phases import Watch
    from narrowtune.study.view import claims_table, stage_line

    console = open_console(as_json)

    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    def stage(result: StageResult, missing: int) -> None:
        console.print(stage_line(result, missing), soft_wrap=True)

    def done(phase: Phase) -> None:
        _show(console, phase.settings, phase.results)

    watch = Watch(say, stage, done)
    summary, page = run_miniature(preset, folder, watch, num_workers=workers, only_read=only_read)
    if as_json:
        typer.echo(summary.model_dump_json(indent=2))
        return
    console.print(claims_table(summary))
    say(f"Summary: {page}")
