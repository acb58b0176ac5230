"""The command for studies: recipes side by side, as in the paper."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from narrowtune.cli.flags import AsJson, Set, option
from narrowtune.cli.printing import open_console
from narrowtune.cli.settings import study_settings

if TYPE_CHECKING:
    from narrowtune.study.results import StageResult


def study(
    config: Annotated[
        Path, typer.Argument(metavar="FILE", help="A YAML file: skills, keep, arms, seeds.")
    ],
    model: Annotated[str | None, option("MODEL", "In place of the file's.")] = None,
    output_dir: Annotated[str | None, option("FOLDER", "The study's folder.")] = None,
    workers: Annotated[
        int, typer.Option(metavar="N", min=1, help="Chains at a time; small models gain by it.")
    ] = 1,
    more: Set = None,
    as_json: AsJson = False,
) -> None:
    """Teach skills in a row with many recipes and seeds, and compare what they learn and forget.

    A study that was stopped goes on where it was; arms, rates, orders and seeds can be added to
    one that is finished.
    """
    settings = study_settings(config, {"model": model, "output_dir": output_dir}, more)
    from narrowtune.study.figures import draw_study
    from narrowtune.study.results import read_results
    from narrowtune.study.view import chain_table, frontier_table, stage_line
    from narrowtune.study.workers import results_path, run_study

    console = open_console(as_json)

    def report(result: StageResult, missing: int) -> None:
        console.print(stage_line(result, missing), soft_wrap=True)

    run_study(settings, report, num_workers=workers)
    path = results_path(settings)
    results = read_results(path)
    if as_json:
        typer.echo(json.dumps([result.model_dump() for result in results], indent=2))
        return
    for order, skills in settings.all_orders.items():
        console.print(frontier_table(results, order, skills[0]))
        if len(skills) > 1:
            console.print(chain_table(results, order, skills))
    figures = path.parent / "figures"
    drawn = draw_study(results, settings.all_orders, figures)
    console.print(f"Results: {path}", markup=False, soft_wrap=True)
    console.print(f"Figures: {figures} ({', '.join(drawn)})", markup=False, soft_wrap=True)
