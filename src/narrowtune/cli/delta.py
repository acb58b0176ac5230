"""`narrowtune delta`: look at a delta; apply, undo or merge it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from narrowtune.cli.flags import AsJson, Model
from narrowtune.cli.printing import open_console, say_written

app = typer.Typer(
    help="Look at a delta; apply, undo or merge it.", no_args_is_help=True, rich_markup_mode=None
)

File = Annotated[Path, typer.Argument(metavar="DELTA", help="A delta file.")]
Output = Annotated[
    Path, typer.Option(metavar="FOLDER", help="The new folder; nothing may be there yet.")
]


@app.command("info", short_help="Describe a delta: base, recipe, size.")
def delta_info(path: File, as_json: AsJson = False) -> None:
    """Describe a delta: base, recipe, size, share of weights that changed."""
    from narrowtune.delta.store import info
    from narrowtune.report.terminal import delta_table

    result = info(path)
    if as_json:
        typer.echo(result.model_dump_json(indent=2))
    else:
        open_console().print(delta_table(result))


@app.command("apply", short_help="Write the tuned model: the base with the delta.")
def delta_apply(model: Model, path: File, output: Output) -> None:
    """Write the tuned model: the base's folder with the delta's bits flipped, exactly."""
    from narrowtune.delta.folder import apply_to_folder

    say_written("Applied", apply_to_folder(Path(model), path, output))


@app.command("undo")
def delta_undo(model: Model, path: File, output: Output) -> None:
    """Write the base again from a tuned folder, bit for bit."""
    from narrowtune.delta.folder import undo_folder

    say_written("Undone", undo_folder(Path(model), path, output))


@app.command("merge", short_help="Write a plain folder that inference servers load.")
def delta_merge(
    model: Model,
    path: File,
    output: Output,
    max_shard_size: Annotated[
        str, typer.Option(metavar="SIZE", help="Of one weights file.")
    ] = "5GB",
) -> None:
    """Write a plain folder that `from_pretrained` and inference servers load."""
    from narrowtune.delta.folder import merge

    say_written("Merged", merge(Path(model), path, output, max_shard_size))
