"""`narrowtune delta`: look at a delta; apply, undo, merge, pack, blend or export it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from narrowtune.cli.flags import (
    METRIC_HELP,
    MODES,
    AsJson,
    Columns,
    Defaults,
    Overwrite,
    SetModel,
    option,
)
from narrowtune.cli.printing import open_console, say_written
from narrowtune.cli.settings import column_names, model_settings, row_defaults

app = typer.Typer(
    help="Look at a delta; apply, undo, merge, pack, blend or export it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

File = Annotated[Path, typer.Argument(metavar="DELTA", help="A delta file.")]
Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of the base.")]
Tuned = Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of the tuned model.")]
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
def delta_apply(base: Folder, path: File, output: Output) -> None:
    """Write the tuned model: the base's folder with the delta's bits flipped, exactly."""
    from narrowtune.delta.folder import apply_to_folder

    say_written("Applied", apply_to_folder(base, path, output))


@app.command("undo")
def delta_undo(tuned: Tuned, path: File, output: Output) -> None:
    """Write the base again from a tuned folder, bit for bit."""
    from narrowtune.delta.folder import undo_folder

    say_written("Undone", undo_folder(tuned, path, output))


@app.command("merge", short_help="Write a plain folder that inference servers load.")
def delta_merge(
    base: Folder,
    path: File,
    output: Output,
    max_shard_size: Annotated[
        str, typer.Option(metavar="SIZE", help="Of one weights file.")
    ] = "5GB",
) -> None:
    """Write a plain folder that `from_pretrained` and inference servers load."""
    from narrowtune.delta.folder import merge

    say_written("Merged", merge(base, path, output, max_shard_size))


@app.command("pack", short_help="Compress a delta without loss, or the reverse.")
def delta_pack(
    path: File,
    output: Annotated[Path, typer.Option(metavar="FILE", help="The new delta file.")],
    plain: Annotated[
        bool, typer.Option("--plain", help="Write the bits as they are: version 1 of the file.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Write a delta again with its bits compressed, without loss."""
    from narrowtune.delta.store import Delta, check_new_file, info
    from narrowtune.report.terminal import delta_table

    check_new_file(output, path, overwrite=overwrite)
    Delta.load(path).save(output, packed=not plain)
    open_console().print(delta_table(info(output)))


@app.command("blend", short_help="Make one delta of several, or a weaker one of one.")
def delta_blend(
    folder: Folder,
    paths: Annotated[list[Path], typer.Argument(metavar="DELTA...", help="Deltas of that base.")],
    output: Annotated[Path, typer.Option(metavar="FILE", help="The new delta file.")],
    rule: Annotated[
        str,
        option(
            "NAME",
            "linear: weighted sum; ties: trim, elect signs, average; dare_linear, dare_ties: drop "
            "at random first.",
        ),
    ] = "linear",
    weight: Annotated[
        list[float] | None,
        typer.Option(
            metavar="X", help="Of each delta, in their order; 1 unless given.", show_default=False
        ),
    ] = None,
    density: Annotated[
        float | None,
        option("X", "Share of each delta's elements kept before merging; for all but linear."),
    ] = None,
    seed: Annotated[int, option("N", "Of what is dropped at random.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Make one delta of several deltas of one base, or a weaker one of one (--weight 0.5).

    What comes out is a delta of that base like any other: it can be scored with `narrowtune
    evaluate FOLDER --delta FILE`, applied and undone.
    """
    from narrowtune.delta.blend import Blending, blend, parse_rule
    from narrowtune.delta.store import Delta, check_new_file, info
    from narrowtune.report.terminal import delta_table

    for path in paths:
        check_new_file(output, path, overwrite=overwrite)
    how = Blending(parse_rule(rule), tuple(weight or ()), density, seed)
    blend(folder, [Delta.load(path) for path in paths], how).save(output, packed=True)
    open_console().print(delta_table(info(output)))


@app.command("export", short_help="Write a LoRA adapter that is near a delta.")
def delta_export(
    folder: Folder,
    path: File,
    output: Output,
    rank: Annotated[int, option("R", "Of the adapter.")] = 16,
    base_name: Annotated[
        str | None, option("NAME", "What the adapter says its base is; FOLDER unless given.")
    ] = None,
    tasks: Annotated[
        list[str] | None,
        option("PATH", "Rows with answers, to measure what the cut costs; may be repeated."),
    ] = None,
    metric: Annotated[str, option("METRIC", METRIC_HELP)] = "exact_match",
    mode: Annotated[str, option("MODE", f"How rows are answered: {' or '.join(MODES)}.")] = MODES[
        0
    ],
    max_new_tokens: Annotated[int, option("N", "Length of an answer.")] = 32,
    limit: Annotated[int | None, option("N", "Use only this many rows.")] = None,
    split: Annotated[str | None, option("NAME", "Of a data set with several.")] = None,
    image_root: Annotated[str | None, option("FOLDER", "That pictures' paths start from.")] = None,
    columns: Columns = None,
    defaults: Defaults = None,
    max_refused: Annotated[int, option("N", "Rows that may be refused.")] = 0,
    more: SetModel = None,
    as_json: AsJson = False,
) -> None:
    """Write a LoRA adapter that peft loads, near the delta but not equal.

    Each matrix keeps its largest singular values. What that keeps of the delta is said, and with
    --tasks what it costs in score, adapter against delta on the same rows.
    """
    from narrowtune.pipeline.export import export_lora
    from narrowtune.report.terminal import change_table, fact_table, kept_facts

    fields = {"metric": metric, "mode": mode, "max_new_tokens": max_new_tokens, "limit": limit}
    fields |= {"split": split, "image_root": image_root, "max_refused": max_refused}
    fields |= {"columns": column_names(columns), "defaults": row_defaults(defaults)}
    found = export_lora(
        folder,
        path,
        output,
        rank=rank,
        base_name=base_name,
        tasks=[{"path": each, **fields} for each in tasks or []],
        model=model_settings({"model": str(folder)}, more),
    )
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
        return
    console = open_console()
    console.print(f"Adapter: {output}", markup=False, soft_wrap=True)
    console.print(fact_table(kept_facts(found.kept)))
    if found.changes:
        console.print("From the delta to the adapter:")
        console.print(change_table(found.changes))
