"""The command line: each command turns its flags into settings and calls one pipeline function.

Heavy imports stand inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.console import Console

from narrowtune.core.config import (
    ModelSettings,
    RunConfig,
    load_config,
    override,
    parse_config,
    parse_model_settings,
)
from narrowtune.core.errors import NarrowtuneError, UsageError
from narrowtune.core.recipes import RECIPES
from narrowtune.version import __version__

if TYPE_CHECKING:
    from narrowtune.core.results import RunRecord
    from narrowtune.delta.folder import FolderResult

app = typer.Typer(
    name="narrowtune",
    help="Teach a (multimodal) language model a new skill without making it forget.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 ship or done, 1 error, 2 usage, 3 over budget, 4 not enough evidence.",
)
delta_app = typer.Typer(help="Look at a delta; apply, undo or merge it.", no_args_is_help=True)
app.add_typer(delta_app, name="delta")

RecipeName = Enum("RecipeName", {name: name for name in RECIPES}, type=str)  # type: ignore[misc]

Model = Annotated[str, typer.Argument(help="Folder or hub id of a Hugging Face model.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Any other setting, as key=value (docs/configuration.md).", show_default=False
    ),
]
SetModel = Annotated[
    list[str] | None,
    typer.Option("--set", help="device, max_length or chat_template_kwargs.NAME, as key=value."),
]
Dtype = Annotated[
    str | None, typer.Option(help="Of the weights; that of the stored ones unless given.")
]
Revision = Annotated[str | None, typer.Option(help="Commit, tag or branch of a hub id.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON, for machines.")]


def report_error(error: NarrowtuneError) -> None:
    """Print what was asked, what was found and what to do, to standard error."""
    console = Console(stderr=True, highlight=False)
    console.print(f"[bold red]{type(error).__name__}[/]")
    for label, text in (("asked", error.asked), ("found", error.found), ("do", error.do)):
        console.print(f"  {label:<6}", end="", style="bold")
        console.print(text, markup=False)


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


def _settings(config: Path | None, flags: dict[str, Any], more: list[str] | None) -> RunConfig:
    """Merge a file, the flags that were given, and `--set` pairs, in this order."""
    overrides = _overrides(flags, more)
    if config is None:
        return parse_config(override({}, overrides), "the command line")
    return load_config(config, overrides)


def _model_settings(
    model: str, dtype: str | None, revision: str | None, more: list[str] | None
) -> ModelSettings:
    flags = {"model": model, "dtype": dtype, "revision": revision}
    return parse_model_settings(override({}, _overrides(flags, more)), "the command line")


def _overrides(flags: dict[str, Any], more: list[str] | None) -> dict[str, Any]:
    """Return the flags that were given and the `--set` pairs, which win, by dotted key."""
    overrides = {key: value for key, value in flags.items() if value is not None}
    for pair in more or []:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(
                asked=f"--set {pair}",
                found="no '='",
                do="write --set key=value, for example --set training.optim=adamw_torch",
            )
        try:
            overrides[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UsageError(
                asked=f"--set {pair}", found=str(error), do="write the value as YAML"
            ) from None
    return overrides


def _console(as_json: bool) -> Console:
    return Console(stderr=as_json, highlight=False)


def _finish(record: RunRecord, folder: str, as_json: bool, console: Console) -> None:
    from narrowtune.core.results import EXIT_CODES
    from narrowtune.report.terminal import summary_lines

    if as_json:
        typer.echo(record.model_dump_json(indent=2))
    else:
        for line in summary_lines(record):
            console.print(line)
        console.print(f"Report: {Path(folder) / 'report.html'}")
    if record.verdict is not None:
        raise typer.Exit(EXIT_CODES[record.verdict.outcome])


def _say_written(what: str, result: FolderResult) -> None:
    console = _console(False)
    console.print(f"{what}: {result.folder} ({result.num_tensors} tensors changed)", markup=False)
    for name, reason in result.left_out.items():
        console.print(f"  left out: {name} ({reason})", markup=False)


@app.command()
def plan(
    model: Model,
    recipe: Annotated[RecipeName, typer.Option(help="What trains.")] = RecipeName("sa_proj"),  # type: ignore[call-arg]
    skill: Annotated[
        str | None, typer.Option(help="The skill's rows: sizes come from them.")
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option(help="Rows to keep; may be repeated. Needs no --skill.")
    ] = None,
    anchor: Annotated[bool | None, typer.Option(help="Count an anchor on general prompts.")] = None,
    per_device_train_batch_size: Annotated[int | None, typer.Option(min=1)] = None,
    measure: Annotated[bool, typer.Option(help="Time some steps on this machine.")] = True,
    power_watts: Annotated[float | None, typer.Option(help="Machine's power, for energy.")] = None,
    co2_kg_per_kwh: Annotated[float | None, typer.Option(help="Grid factor, for CO2.")] = None,
    price_per_hour: Annotated[float | None, typer.Option(help="Price of the machine.")] = None,
    more: Set = None,
    as_json: AsJson = False,
) -> None:
    """Show what would train and what it costs. Changes nothing."""
    from narrowtune.pipeline.single import plan as make_plan
    from narrowtune.report.plan_view import render_plan

    flags = {
        "recipe": recipe.value,
        "keep": keep,
        "anchor": anchor,
        "training.per_device_train_batch_size": per_device_train_batch_size,
        "cost.power_watts": power_watts,
        "cost.co2_kg_per_kwh": co2_kg_per_kwh,
        "cost.price_per_hour": price_per_hour,
    }
    if per_device_train_batch_size is not None:
        flags["training.global_batch_size"] = per_device_train_batch_size
    # A plan needs no skill, and a run's settings do.
    with_skill = skill is not None or any(pair.startswith("skill") for pair in more or [])
    flags["skill"] = skill if with_skill else "(no skill)"
    settings = _settings(None, {"model": model, **flags}, more)
    result = make_plan(settings, with_skill=with_skill, measure_time=measure)
    if as_json:
        typer.echo(result.model_dump_json(indent=2))
    else:
        _console(False).print(render_plan(result))


@app.command()
def teach(
    config: Annotated[Path | None, typer.Argument(help="A YAML file; flags override it.")] = None,
    model: Annotated[str | None, typer.Option(help="Folder or hub id of the base model.")] = None,
    recipe: Annotated[
        RecipeName | None, typer.Option(help="What trains.", show_default=False)
    ] = None,
    skill: Annotated[str | None, typer.Option(help="Rows to learn from and be tested on.")] = None,
    keep: Annotated[
        list[str] | None, typer.Option(help="Rows that must not get worse; may be repeated.")
    ] = None,
    mix: Annotated[
        list[str] | None, typer.Option(help="General rows mixed in, as path:share.")
    ] = None,
    anchor: Annotated[
        bool | None, typer.Option(help="Hold the model to the base on general prompts.")
    ] = None,
    budget: Annotated[float | None, typer.Option(help="Accepted mean loss, points.")] = None,
    budget_task: Annotated[float | None, typer.Option(help="Accepted loss of any task.")] = None,
    min_learning: Annotated[float | None, typer.Option(help="Least learning, points.")] = None,
    metric: Annotated[str | None, typer.Option(help="How the skill's answers are scored.")] = None,
    learning_rate: Annotated[float | None, typer.Option()] = None,
    num_train_epochs: Annotated[float | None, typer.Option()] = None,
    max_steps: Annotated[int | None, typer.Option()] = None,
    global_batch_size: Annotated[int | None, typer.Option()] = None,
    per_device_train_batch_size: Annotated[int | None, typer.Option()] = None,
    max_length: Annotated[int | None, typer.Option(help="Longer rows are an error.")] = None,
    max_refused: Annotated[int | None, typer.Option(help="Unusable rows tolerated.")] = None,
    output_dir: Annotated[str | None, typer.Option(help="The run's folder.")] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    gallery: Annotated[bool | None, typer.Option(help="Show answers in the report.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a stopped run.")] = False,
    more: Set = None,
    as_json: AsJson = False,
) -> None:
    """Teach a skill, prove what moved, measure what was lost, and decide."""
    flags = {
        "model": model,
        "recipe": recipe.value if recipe else None,
        "skill.path": skill,
        "keep": keep,
        "mix": mix,
        "anchor": anchor,
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
        "seed": seed,
        "gallery": gallery,
    }
    settings = _settings(config, flags, more)
    from narrowtune.pipeline.teach import teach as run_teach

    console = _console(as_json)
    given = config.read_text(encoding="utf-8") if config else None
    record = run_teach(settings, given=given, resume=resume, console=console)
    if record is not None:
        _finish(record, settings.output_dir, as_json, console)


@app.command()
def evaluate(
    model: Model,
    tasks: Annotated[list[str], typer.Option(help="Rows with answers; may be repeated.")],
    delta: Annotated[Path | None, typer.Option(help="Apply this delta first, in memory.")] = None,
    metric: Annotated[str, typer.Option(help="How answers are scored.")] = "exact_match",
    mode: Annotated[str, typer.Option(help="generate, or options (log-likelihood).")] = "generate",
    max_new_tokens: Annotated[int, typer.Option()] = 32,
    batch_size: Annotated[int, typer.Option()] = 32,
    limit: Annotated[int | None, typer.Option(help="Use only this many rows.")] = None,
    output: Annotated[Path, typer.Option(help="Gets one file of answers per task.")] = Path(
        "evaluation"
    ),
    dtype: Dtype = None,
    revision: Revision = None,
    more: SetModel = None,
    as_json: AsJson = False,
) -> None:
    """Score a model on rows with answers, with or without a delta."""
    from narrowtune.pipeline.single import evaluate as score
    from narrowtune.report.terminal import task_table

    fields = {"metric": metric, "mode": mode, "max_new_tokens": max_new_tokens, "limit": limit}
    results = score(
        _model_settings(model, dtype, revision, more),
        [{"path": path, **fields} for path in tasks],
        delta,
        batch_size=batch_size,
        output=output,
    )
    if as_json:
        typer.echo(json.dumps([r.model_dump(exclude={"items"}) for r in results], indent=2))
    else:
        _console(False).print(task_table(results))


@app.command()
def probe(
    model: Model,
    delta: Annotated[Path, typer.Option(help="The delta whose drift is measured.")],
    prompts: Annotated[
        str | None, typer.Option(help="File of prompts; those of the package unless given.")
    ] = None,
    max_prompts: Annotated[int, typer.Option(min=1)] = 200,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 32,
    dtype: Dtype = None,
    revision: Revision = None,
    more: SetModel = None,
    as_json: AsJson = False,
) -> None:
    """Measure how far a delta moves the output distribution."""
    from narrowtune.pipeline.single import probe as measure
    from narrowtune.report.terminal import drift_table

    settings = _model_settings(model, dtype, revision, more)
    result = measure(
        settings, delta, prompts, max_prompts=max_prompts, max_new_tokens=max_new_tokens
    )
    if as_json:
        typer.echo(result.model_dump_json(indent=2))
    else:
        _console(False).print(drift_table(result))


@app.command()
def report(
    run: Annotated[list[Path], typer.Argument(help="A run's folder; several to compare.")],
    gallery: Annotated[bool, typer.Option(help="Show the answers that changed.")] = True,
    output: Annotated[Path | None, typer.Option(help="Folder of a comparison.")] = None,
) -> None:
    """Build the report again from a run's folder; compare several runs."""
    from narrowtune.report.build import build_report
    from narrowtune.report.comparison import build_comparison

    if len(run) == 1:
        path = build_report(run[0], gallery=gallery)
    else:
        path = build_comparison(run, output or run[0].parent)
    _console(False).print(f"Report: {path}")


@app.command()
def demo(
    output_dir: Annotated[Path, typer.Option(help="Where the runs go.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option()] = 42,
    quick: Annotated[
        bool, typer.Option("--quick", help="A tenth of the work; shows the flow.")
    ] = False,
) -> None:
    """Teach counting to a real model, plainly and with the anchor, and show what each broke."""
    from narrowtune.demo.run import run_demo

    run_demo(output_dir, seed=seed, quick=quick, console=_console(False))


@delta_app.command("info")
def delta_info(
    path: Annotated[Path, typer.Argument(help="A delta file.")], as_json: AsJson = False
) -> None:
    """Describe a delta: base, recipe, size, share of weights that changed."""
    from narrowtune.delta.store import info
    from narrowtune.report.terminal import delta_table

    result = info(path)
    if as_json:
        typer.echo(result.model_dump_json(indent=2))
    else:
        _console(False).print(delta_table(result))


@delta_app.command("apply")
def delta_apply(model: Model, path: Path, output: Annotated[Path, typer.Option()]) -> None:
    """Write the tuned model: the base's folder with the delta's bits flipped, exactly."""
    from narrowtune.delta.folder import apply_to_folder

    _say_written("Applied", apply_to_folder(Path(model), path, output))


@delta_app.command("undo")
def delta_undo(model: Model, path: Path, output: Annotated[Path, typer.Option()]) -> None:
    """Write the base again from a tuned folder, bit for bit."""
    from narrowtune.delta.folder import undo_folder

    _say_written("Undone", undo_folder(Path(model), path, output))


@delta_app.command("merge")
def delta_merge(
    model: Model,
    path: Path,
    output: Annotated[Path, typer.Option()],
    max_shard_size: Annotated[str, typer.Option(help="Such as 5GB.")] = "5GB",
) -> None:
    """Write a plain folder that `from_pretrained` and inference servers load."""
    from narrowtune.delta.folder import merge

    _say_written("Merged", merge(Path(model), path, output, max_shard_size))
