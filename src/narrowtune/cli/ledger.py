"""`narrowtune ledger`: the skills that one base was taught, in order, with a way back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from narrowtune.cli.flags import AsJson, option
from narrowtune.cli.printing import open_console, say_written

app = typer.Typer(
    help="Skills taught in a row: show them, go back, take one out.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Folder = Annotated[Path, typer.Argument(metavar="LEDGER", help="Folder of the ledger.")]


@app.command("show", short_help="Scores of every skill and kept task after every stage.")
def ledger_show(folder: Folder, as_json: AsJson = False) -> None:
    """Show the score of every skill and kept task after every stage."""
    from narrowtune.ledger.book import Book
    from narrowtune.ledger.book import as_json as to_json
    from narrowtune.report.ledger_view import render_ledger

    ledger = Book.open(folder).ledger
    if as_json:
        typer.echo(json.dumps(to_json(ledger), indent=2))
    else:
        open_console().print(render_ledger(ledger))


@app.command("rollback", short_help="Go back to the state after the first N skills.")
def ledger_rollback(
    folder: Folder,
    number: Annotated[int, typer.Argument(metavar="N", help="Skills that stay; 0 is the base.")],
) -> None:
    """Go back to the state after the first N skills, exactly. Files of the others stay."""
    from narrowtune.ledger.book import Book

    book = Book.open(folder)
    undone = book.rollback(number)
    names = ", ".join(entry.name for entry in reversed(undone)) or "nothing"
    console = open_console()
    console.print(f"Undone: {names}", markup=False, soft_wrap=True)
    console.print(f"State: {book.ledger.fingerprint}", markup=False, soft_wrap=True)


@app.command("remove", short_help="Take one skill out, where that is exact.")
def ledger_remove(
    folder: Folder,
    name: Annotated[str, typer.Argument(metavar="SKILL", help="Its name.")],
) -> None:
    """Take one skill out and leave later ones in.

    Only where no later one trained the same tensors; otherwise it says which did.
    """
    from narrowtune.ledger.book import Book

    book = Book.open(folder)
    later = book.remove(name)
    console = open_console()
    console.print(f"Taken out: {name}", markup=False, soft_wrap=True)
    if later:
        said = f"Still there, and to be evaluated again without it: {', '.join(later)}"
        console.print(said, markup=False, soft_wrap=True)
    console.print(f"State: {book.ledger.fingerprint}", markup=False, soft_wrap=True)


@app.command("build", short_help="Write the model that holds the skills.")
def ledger_build(
    folder: Folder,
    output: Annotated[
        Path, typer.Option(metavar="FOLDER", help="The new folder; nothing may be there yet.")
    ],
    after: Annotated[int | None, option("N", "Only the first N skills; all unless given.")] = None,
    base: Annotated[
        Path | None, option("FOLDER", "Of the base, where it is a hub id or has moved.")
    ] = None,
) -> None:
    """Write the model that holds the skills: the base with their deltas, bit for bit."""
    from narrowtune.pipeline.ledger import build

    say_written("Built", build(folder, output, number=after, base=base))


@app.command("add", short_help="Append a finished run that is not in the ledger.")
def ledger_add(
    folder: Folder,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder.")],
) -> None:
    """Append the skill of a finished run: one that was stopped before it was entered."""
    from narrowtune.pipeline.ledger import add_run

    entry = add_run(folder, run)
    open_console().print(f"Added: {entry.name}", markup=False, soft_wrap=True)
