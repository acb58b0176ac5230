"""The demo: one skill, taught in several ways to one model, and what each way broke.

The same rows, the same order, the same number of steps; then the same questions before and after,
and all runs side by side.
"""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console

from narrowtune.core.config import RunConfig
from narrowtune.core.errors import UsageError
from narrowtune.core.extras import require
from narrowtune.core.results import RunRecord
from narrowtune.demo import pictures, text, weights
from narrowtune.demo.closing import sentence
from narrowtune.demo.folder import clear
from narrowtune.miniature.reference.shipped import reference_folder
from narrowtune.pipeline.compare import teach_alike
from narrowtune.pipeline.shared import Shared
from narrowtune.report.comparison import build_comparison
from narrowtune.report.terminal import summary_lines
from narrowtune.report.text import duration

REFERENCE = "qwen2_5_vl"
"""The reference model that is taught unless another is asked for."""

SMOLLM2 = "smollm2"
"""Asks for the demo on text."""


def run_demo(
    folder: Path, *, model: str = REFERENCE, seed: int, quick: bool, console: Console
) -> list[RunRecord]:
    """Teach a skill in several ways, print the verdicts, and write a comparison.

    An earlier demo in `folder` is replaced.

    Args:
        folder: gets data/, a folder for each run, and comparison.html.
        model: a reference model, by its name or its folder; or "smollm2" for the demo on text.
        seed: of the data and the runs.
        quick: a tenth of the work, to see the flow.
        console: where to say what happens.

    Raises:
        UsageError: there is no such model, or the folder holds something that is not a demo's.
    """
    started = time.perf_counter()
    console.print("[bold]narrowtune demo[/]: teach a skill, keep the rest.")
    base, note = _find(model)  # before an earlier demo goes
    console.print(note, markup=False, highlight=False)
    clear(folder, [*pictures.RUNS, *text.RUNS])
    prepare = text.prepare if model == SMOLLM2 else pictures.prepare
    configs = prepare(folder, base, seed=seed, quick=quick)
    records: list[RunRecord] = []
    shared = Shared(several=True)
    for config in configs:
        records.append(_teach(config, configs[0] if records else None, console, shared))
    runs = [Path(config.output_dir) for config in configs]
    page = build_comparison(runs, folder)
    console.rule("what each learned and broke")
    for record in records:
        console.print(sentence(record))
    for run in runs:
        console.print(f"Report: {run / 'report.html'}", markup=False, soft_wrap=True)
    console.print(f"Side by side: {page}", markup=False, soft_wrap=True)
    console.print(f"Took {duration(time.perf_counter() - started)}.", highlight=False)
    return records


def _find(model: str) -> tuple[Path, str]:
    """Return the base model's folder, and what must be said of it.

    Raises:
        UsageError: there is no such model, or what it needs is not installed.
    """
    if model == SMOLLM2:
        require("demo", *text.PACKAGES, asked=f"the demo on {SMOLLM2}")
        return weights.smollm2_folder(), weights.NOTE
    if Path(model).is_dir():
        return Path(model), pictures.NOTE.format(model)
    try:
        return reference_folder(model), pictures.NOTE.format(model)
    except UsageError as error:
        do = f"{error.do}; or {SMOLLM2}, which learns from text; or give a model's folder"
        raise UsageError(asked=error.asked, found=error.found, do=do) from None


def _teach(
    config: RunConfig, first: RunConfig | None, console: Console, shared: Shared
) -> RunRecord:
    """Run one way of teaching; `first` is the run before all others, None for that one."""
    anchored = ", with the anchor" if config.anchor else ""
    console.rule(f"{config.skill.label}, {config.recipe}{anchored}")
    record = teach_alike(config, Path(first.output_dir) if first else None, console, shared)
    for line in summary_lines(record):
        console.print(line)
    return record
