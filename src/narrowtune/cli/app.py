"""The commands, besides those on deltas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from narrowtune.cli import delta as delta_commands
from narrowtune.cli import ledger as ledger_commands
from narrowtune.cli.check import check
from narrowtune.cli.flags import (
    METRIC_HELP,
    MODES,
    RECIPE_HELP,
    AsJson,
    BatchSize,
    Columns,
    Defaults,
    Dtype,
    GlobalBatchSize,
    MaxLength,
    Model,
    Overwrite,
    Revision,
    Set,
    SetModel,
    option,
)
from narrowtune.cli.judge import judge
from narrowtune.cli.plan import plan
from narrowtune.cli.printing import finish, open_console, say_delta
from narrowtune.cli.settings import column_names, model_settings, row_defaults, run_settings
from narrowtune.cli.study import study
from narrowtune.core.data_settings import EVAL_BATCH_SIZE
from narrowtune.version import __version__

# Without rich's tables: they cut names of flags where the terminal is narrow.
app = typer.Typer(
    name="narrowtune",
    help="Teach a (multimodal) language model a new skill without making it forget.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 ship or done, 1 error, 2 usage, 3 over budget, 4 not enough evidence.",
)
app.add_typer(delta_commands.app, name="delta")
app.add_typer(ledger_commands.app, name="ledger")
app.command(short_help="Read all rows, and show what is learned of them; loads no weights.")(check)
app.command(short_help="Show what would train and what it costs.")(plan)
app.command(short_help="Compare recipes over skills taught in a row.")(study)
app.command(short_help="A verdict as an exit code: of a run, or of scored items.")(judge)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"narrowtune {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command(short_help="Teach a skill, measure what was lost, and decide.")
def teach(
    config: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="A YAML file; flags override it.")
    ] = None,
    model: Annotated[str | None, option("MODEL", "Folder or hub id of the base model.")] = None,
    recipe: Annotated[
        str | None, option("RECIPE", f"{RECIPE_HELP} mlp_gate_up unless given.")
    ] = None,
    skill: Annotated[str | None, option("PATH", "Rows to learn from and be tested on.")] = None,
    keep: Annotated[
        list[str] | None, option("PATH", "Rows that must not get worse; may be repeated.")
    ] = None,
    mix: Annotated[
        list[str] | None,
        option("PATH:SHARE", "General rows mixed in, a share of the skill's; may be repeated."),
    ] = None,
    anchor: Annotated[
        bool | None,
        typer.Option(help="Hold the model to the base on prompts, and a ledger's skills."),
    ] = None,
    dial: Annotated[
        bool | None, typer.Option(help="Go only as far towards the trained weights as fits.")
    ] = None,
    budget: Annotated[float | None, option("POINTS", "Accepted mean loss.")] = None,
    budget_task: Annotated[float | None, option("POINTS", "Accepted loss of any task.")] = None,
    min_learning: Annotated[float | None, option("POINTS", "Least learning.")] = None,
    metric: Annotated[str | None, option("METRIC", f"Of the skill. {METRIC_HELP}")] = None,
    learning_rate: Annotated[float | None, option("RATE", "Peak of the schedule.")] = None,
    num_train_epochs: Annotated[float | None, option("N", "Passes over the rows.")] = None,
    max_steps: Annotated[int | None, option("N", "Optimiser steps, in place of epochs.")] = None,
    global_batch_size: GlobalBatchSize = None,
    per_device_train_batch_size: BatchSize = None,
    max_length: MaxLength = None,
    max_refused: Annotated[
        int | None, option("N", "Unusable rows of the skill that are tolerated.")
    ] = None,
    output_dir: Annotated[str | None, option("FOLDER", "The run's folder.")] = None,
    ledger: Annotated[
        str | None, option("FOLDER", "Skills taught before: put on first, kept, and added to.")
    ] = None,
    seed: Annotated[int | None, option("N", "Of splits, order and draws.")] = None,
    gallery: Annotated[bool | None, typer.Option(help="Show answers in the report.")] = None,
    exact: Annotated[
        bool,
        typer.Option("--exact", help="Train by the plain path: row by row, pictures seen anew."),
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a stopped run.")] = False,
    more: Set = None,
    as_json: AsJson = False,
) -> None:
    """Teach a skill, prove what moved, measure what was lost, and decide."""
    flags = {
        "model": model,
        "recipe": recipe,
        "skill.path": skill,
        "keep": keep,
        "mix": mix,
        "anchor": anchor,
        "dial": dial,
        "budget": budget,
        "budget_task": budget_task,
        "min_learning": min_learning,
        "skill.metric": metric,
        "skill.max_refused": max_refused,
        "training.learning_rate": learning_rate,
        "training.num_train_epochs": num_train_epochs,
        "training.max_steps": max_steps,
        "training.global_batch_size": global_batch_size,
        "training.per_device_train_batch_size": per_device_train_batch_size,
        "max_length": max_length,
        "output_dir": output_dir,
        "ledger": ledger,
        "seed": seed,
        "gallery": gallery,
        "training.packing": False if exact else None,
        "training.torch_compile": False if exact else None,
        "remember_pictures": False if exact else None,
    }
    settings = run_settings(config, flags, more)
    from narrowtune.pipeline.teach import teach as run_teach

    console = open_console(as_json)
    given = config.read_text(encoding="utf-8") if config else None
    record = run_teach(settings, given=given, resume=resume, console=console)
    if record is not None:
        finish(record, settings.output_dir, as_json, console)


@app.command(short_help="Teach one skill in several ways, side by side.")
def compare(
    config: Annotated[
        Path, typer.Argument(metavar="FILE", help="A YAML file, as for teach: data and settings.")
    ],
    recipes: Annotated[
        str | None,
        option(
            "LIST",
            "Recipes with commas between, each with any of +anchor, +projection, +pictures, +pull, "
            "+dial, +density, +mix. Unless given the paper's, also with anchor; language_model.",
        ),
    ] = None,
    learning_rates: Annotated[
        str | None, option("LIST", "Rates with commas between them, each for every recipe.")
    ] = None,
    trial: Annotated[
        bool,
        typer.Option(
            "--trial",
            help="Rank all on a quarter of the training, the better half on half of it, and run "
            "the better half of those in full.",
        ),
    ] = False,
    output_dir: Annotated[str | None, option("FOLDER", "Gets a run's folder for each.")] = None,
    more: Set = None,
    as_json: AsJson = False,
) -> None:
    """Teach one skill in several ways with equal work, and say which to take.

    Each way is a run with a report and a delta of its own. Started again with the same settings
    it goes on where it was stopped.
    """
    settings = run_settings(config, {"output_dir": output_dir}, more)
    from narrowtune.pipeline.compare import run_comparison
    from narrowtune.pipeline.ways import DEFAULT, contenders, parse_rates
    from narrowtune.report.advice import advise
    from narrowtune.report.terminal import comparison_table

    console = open_console(as_json)
    names = [name.strip() for name in recipes.split(",")] if recipes else list(DEFAULT)
    ways = contenders(settings, names, parse_rates(learning_rates or ""))
    records, page = run_comparison(settings, ways, trial=trial, console=console)
    if as_json:
        typer.echo((page.parent / "comparison.json").read_text(encoding="utf-8"))
        return
    console.rule("side by side")
    console.print(comparison_table(records))
    advice = advise(records)
    console.print(advice.reason, markup=False)
    if advice.chosen is not None:
        chosen = records[advice.chosen]
        say_delta(chosen, page.parent / chosen.name, console)
    console.print(f"Side by side: {page}", markup=False, soft_wrap=True)


@app.command()
def evaluate(
    model: Model,
    tasks: Annotated[list[str], option("PATH", "Rows with answers; may be repeated.")],
    delta: Annotated[Path | None, option("DELTA", "Apply this delta first, in memory.")] = None,
    metric: Annotated[str, option("METRIC", METRIC_HELP)] = "exact_match",
    mode: Annotated[
        str, option("MODE", f"{' or '.join(MODES)}: write an answer, or take the likeliest option.")
    ] = MODES[0],
    max_new_tokens: Annotated[int, option("N", "Length of an answer.")] = 32,
    batch_size: Annotated[
        int, typer.Option(metavar="N", min=1, help="Rows answered together at most.")
    ] = EVAL_BATCH_SIZE,
    limit: Annotated[int | None, option("N", "Use only this many rows.")] = None,
    image_root: Annotated[
        str | None, option("FOLDER", "That pictures' paths stay under; the rows' own unless given.")
    ] = None,
    split: Annotated[str | None, option("NAME", "Of a datasets folder or hub id.")] = None,
    columns: Columns = None,
    defaults: Defaults = None,
    max_length: MaxLength = None,
    max_refused: Annotated[int, option("N", "Unusable rows tolerated in each set.")] = 0,
    output: Annotated[Path, option("FOLDER", "Gets one file of answers per set of rows.")] = Path(
        "evaluation"
    ),
    overwrite: Overwrite = False,
    dtype: Dtype = None,
    revision: Revision = None,
    more: SetModel = None,
    as_json: AsJson = False,
) -> None:
    """Score a model on rows with answers, with or without a delta."""
    flags = {"model": model, "dtype": dtype, "revision": revision, "max_length": max_length}
    settings = model_settings(flags, more)
    from narrowtune.core.run_folder import REFUSED
    from narrowtune.pipeline.single import evaluate as score
    from narrowtune.report.terminal import task_table

    fields = {
        "metric": metric,
        "mode": mode,
        "max_new_tokens": max_new_tokens,
        "limit": limit,
        "image_root": image_root,
        "split": split,
        "columns": column_names(columns),
        "defaults": row_defaults(defaults),
        "max_refused": max_refused,
    }
    found = score(
        settings,
        [{"path": path, **fields} for path in tasks],
        delta,
        batch_size=batch_size,
        output=output,
        overwrite=overwrite,
    )
    if as_json:
        typer.echo(json.dumps([r.model_dump(exclude={"items"}) for r in found.tasks], indent=2))
    else:
        open_console().print(task_table(found.tasks))
    if found.refused:
        number = len(found.refused)
        rows = "1 row was" if number == 1 else f"{number} rows were"
        typer.echo(f"{rows} not used: {output / REFUSED}", err=True)


@app.command()
def probe(
    model: Model,
    delta: Annotated[Path, option("DELTA", "The delta whose drift is measured.")],
    prompts: Annotated[
        str | None, option("PATH", "File of prompts; those of the package unless given.")
    ] = None,
    max_prompts: Annotated[int, typer.Option(metavar="N", min=1, help="Use no more of them.")] = (
        200
    ),
    max_new_tokens: Annotated[
        int, typer.Option(metavar="N", min=1, help="Length of an answer.")
    ] = 32,
    image_root: Annotated[
        str | None,
        option("FOLDER", "That pictures' paths stay under; the prompts' own unless given."),
    ] = None,
    columns: Columns = None,
    defaults: Defaults = None,
    max_length: MaxLength = None,
    dtype: Dtype = None,
    revision: Revision = None,
    more: SetModel = None,
    as_json: AsJson = False,
) -> None:
    """Measure how far a delta moves the output distribution."""
    flags = {"model": model, "dtype": dtype, "revision": revision, "max_length": max_length}
    settings = model_settings(flags, more)
    from narrowtune.pipeline.single import probe as measure
    from narrowtune.report.terminal import drift_table

    result = measure(
        settings,
        delta,
        prompts,
        max_prompts=max_prompts,
        max_new_tokens=max_new_tokens,
        image_root=image_root,
        rows={"columns": column_names(columns), "defaults": row_defaults(defaults)},
    )
    if as_json:
        typer.echo(result.model_dump_json(indent=2))
    else:
        open_console().print(drift_table(result))


@app.command(short_help="Build a run's report again; compare several runs.")
def report(
    run: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="A run's folder; several to compare.")
    ],
    gallery: Annotated[
        bool | None,
        typer.Option(
            help="Of one run: show the answers that changed; as the run was told to unless given."
        ),
    ] = None,
    output: Annotated[
        Path | None, option("FOLDER", "Of a comparison; that of the runs unless given.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Build the report again from a run's folder; compare several runs."""
    from narrowtune.core.errors import UsageError
    from narrowtune.core.run_folder import COMPARISON, check_output
    from narrowtune.report.build import build_report
    from narrowtune.report.comparison import build_comparison

    if len(run) == 1:
        flags = ["--output"] * (output is not None) + ["--overwrite"] * overwrite
        if flags:
            raise UsageError(
                asked=f"the report of {run[0]} with {' and '.join(flags)}",
                found="one run, whose report stands in the run's own folder and is replaced",
                do="leave that out; or name several runs, to compare them",
            )
        path = build_report(run[0], gallery=gallery)
    else:
        if gallery is not None:
            raise UsageError(
                asked=f"a comparison with {'--gallery' if gallery else '--no-gallery'}",
                found=f"{len(run)} runs, and a comparison shows no answers",
                do="leave that out; or name one run, for its report",
            )
        folder = output or run[0].parent
        check_output(folder, COMPARISON, overwrite=overwrite)
        path = build_comparison(run, folder)
    open_console().print(f"Report: {path}", markup=False, soft_wrap=True)


@app.command(short_help="Teach a skill in several ways; show what each broke.")
def demo(
    output_dir: Annotated[Path, option("FOLDER", "Where the runs go.")] = Path("runs/demo"),
    model: Annotated[
        str,
        option(
            "NAME",
            "A reference model of the small world, by its name or folder, learns to read clocks; "
            "smollm2 to count words.",
        ),
    ] = "qwen2_5_vl",
    seed: Annotated[int, option("N", "Of the data and the runs.")] = 42,
    quick: Annotated[
        bool, typer.Option("--quick", help="A tenth of the work; shows the flow.")
    ] = False,
) -> None:
    """Teach a skill in several ways, and show what each learned and broke.

    A small multimodal model learns it by three recipes, and by one of them with the anchor; SmolLM2
    plainly and with the anchor.
    """
    from narrowtune.core.run_folder import check_output
    from narrowtune.demo.run import run_demo

    # The demo itself sees to what is in the folder.
    check_output(output_dir, (), overwrite=True)
    run_demo(output_dir, model=model, seed=seed, quick=quick, console=open_console())
