"""`narrowtune check`: a run's rows, read and encoded without the model's weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from narrowtune.cli.flags import AsJson, MaxLength, Set, option
from narrowtune.cli.printing import open_console
from narrowtune.cli.settings import run_settings
from narrowtune.core.errors import UsageError
from narrowtune.core.run_folder import check_output


def check(
    config: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="A YAML file, as for teach.")
    ] = None,
    model: Annotated[str | None, option("MODEL", "Folder or hub id of the base model.")] = None,
    skill: Annotated[str | None, option("PATH", "Rows to learn from and be tested on.")] = None,
    keep: Annotated[
        list[str] | None, option("PATH", "Rows that must not get worse; may be repeated.")
    ] = None,
    max_length: MaxLength = None,
    show: Annotated[
        int, typer.Option(metavar="N", min=0, help="Rows to show as the model is given them.")
    ] = 1,
    refused: Annotated[
        Path | None, option("FILE", "New; gets the rows that can't be used, a JSON line each.")
    ] = None,
    more: Set = None,
    as_json: AsJson = False,
) -> None:
    """Read all rows as teach would, and show what is learned of them. Loads no weights.

    Every row is encoded with the model's own chat template and processor; what can't be used is
    named. Items of one group or picture are worth less than their number as evidence. Writes
    nothing but --refused; of a hub id, only settings and tokenizer are downloaded. Memory, devices
    and what the recipe finds in the model are not looked at: `narrowtune plan` does that.
    """
    flags = {"model": model, "skill.path": skill, "keep": keep, "max_length": max_length}
    settings = run_settings(config, flags, more)
    if settings.ledger is not None:
        raise UsageError(
            asked=f"a check of a run with the ledger {settings.ledger}",
            found="earlier skills in it, whose rows are not read here",
            do="check it without them: --set ledger=null",
        )
    from narrowtune.pipeline.preview import check_rows
    from narrowtune.report.check_view import render_check

    if refused is not None:
        check_output(refused.parent, [], overwrite=False)
        if os.path.lexists(refused):
            raise UsageError(
                asked=f"rows that can't be used in {refused}",
                found="that it is there already",
                do="give the name of a new file, or remove that one",
            )
    try:
        found = check_rows(settings, num_shown=show, refused_path=refused)
    finally:
        if refused is not None and refused.exists():
            typer.echo(f"Rows that can't be used: {refused}", err=True)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        open_console().print(render_check(found))
