"""Flags that commands share, and what their help says."""

from __future__ import annotations

from typing import Annotated, Any, get_args

import typer

from narrowtune.core.data_settings import METRIC_NAMES, DataSettings
from narrowtune.core.recipes import RECIPES

MODES: tuple[str, ...] = get_args(DataSettings.model_fields["mode"].annotation)


def option(metavar: str, text: str) -> Any:
    """Return an option with a short name for its value, and its help."""
    return typer.Option(metavar=metavar, help=text)


RECIPE_HELP = f"What trains: {', '.join(RECIPES)}."
METRIC_HELP = f"How answers are scored: {', '.join(METRIC_NAMES)}; or FILE.py:FUNCTION."

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Folder or hub id of a model.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any other setting of docs/configuration.md, such as training.optim=sgd or "
        "keep.0.metric=number; may be repeated.",
        show_default=False,
    ),
]
SetModel = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="device, remember_pictures, chat_template_kwargs.NAME or processor_kwargs.NAME (such "
        "as processor_kwargs.max_pixels=1000000); may be repeated.",
        show_default=False,
    ),
]
Dtype = Annotated[
    str | None,
    option("NAME", "Of the weights: bfloat16, float32, float16; the stored one unless given."),
]
Revision = Annotated[str | None, option("NAME", "Commit, tag or branch of a hub id.")]
Columns = Annotated[
    list[str] | None,
    option(
        "NAME=COLUMN",
        "Which column is which, such as answer=label; prompt=null leaves one out; may be repeated.",
    ),
]
Defaults = Annotated[
    list[str] | None,
    option("NAME=TEXT", "What rows without that column have, such as question=…; may be repeated."),
]
MaxLength = Annotated[int | None, option("N", "A row of more tokens is an error.")]
GlobalBatchSize = Annotated[int | None, option("N", "Rows of one optimiser step.")]
BatchSize = Annotated[int | None, option("N", "Rows of one forward pass, a step's at most.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there from before.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON, for machines.")]
