"""`narrowtune plan`: what would train, and what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from narrowtune.cli.flags import (
    RECIPE_HELP,
    AsJson,
    BatchSize,
    GlobalBatchSize,
    MaxLength,
    Set,
    option,
)
from narrowtune.cli.printing import open_console
from narrowtune.cli.settings import run_settings
from narrowtune.core.errors import UsageError

_FILES = (".yaml", ".yml")


def plan(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|FILE", help="Folder or hub id of a model; or a YAML file, as for teach."
        ),
    ],
    recipe: Annotated[str | None, option("RECIPE", RECIPE_HELP)] = None,
    skill: Annotated[str | None, option("PATH", "The skill's rows: sizes come from them.")] = None,
    keep: Annotated[
        list[str] | None, option("PATH", "Rows to keep; may be repeated. Needs no --skill.")
    ] = None,
    anchor: Annotated[bool | None, typer.Option(help="Count an anchor on general prompts.")] = None,
    global_batch_size: GlobalBatchSize = None,
    per_device_train_batch_size: BatchSize = None,
    max_length: MaxLength = None,
    measure: Annotated[bool, typer.Option(help="Time some steps on this machine.")] = True,
    power_watts: Annotated[float | None, option("W", "Machine's power, for energy.")] = None,
    co2_kg_per_kwh: Annotated[float | None, option("KG", "Grid factor, for CO2.")] = None,
    price_per_hour: Annotated[float | None, option("PRICE", "Of the machine.")] = None,
    more: Set = None,
    as_json: AsJson = False,
) -> None:
    """Show what would train and what it costs. Writes nothing but what a hub id downloads."""
    path = Path(model)
    is_file = path.is_file() or (path.suffix.lower() in _FILES and not path.is_dir())
    # A plan needs no skill, and a run's settings do.
    with_skill = (
        is_file or skill is not None or any(pair.startswith("skill") for pair in more or [])
    )
    flags = {
        "model": None if is_file else model,
        "recipe": recipe,
        "skill.path": skill if with_skill else "(no skill)",
        "keep": keep,
        "anchor": anchor,
        "training.global_batch_size": global_batch_size,
        "training.per_device_train_batch_size": per_device_train_batch_size,
        "max_length": max_length,
        "cost.power_watts": power_watts,
        "cost.co2_kg_per_kwh": co2_kg_per_kwh,
        "cost.price_per_hour": price_per_hour,
    }
    settings = run_settings(path if is_file else None, flags, more)
    if settings.ledger is not None:
        raise UsageError(
            asked=f"a plan of a run with the ledger {settings.ledger}",
            found="earlier skills in it, which a plan does not put on the base nor count as kept",
            do="plan it without them: --set ledger=null",
        )
    from narrowtune.pipeline.single import plan as make_plan
    from narrowtune.report.plan_view import render_plan

    result = make_plan(settings, with_skill=with_skill, measure_time=measure)
    if as_json:
        typer.echo(result.model_dump_json(indent=2))
    else:
        open_console().print(render_plan(result))
