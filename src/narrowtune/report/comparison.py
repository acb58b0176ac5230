"""Several runs side by side: one chart of learning against forgetting, one table, one per task."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from narrowtune.core.errors import ReportError
from narrowtune.core.numbers import interval, signed
from narrowtune.core.results import Estimate, RunRecord, TaskChange
from narrowtune.core.run_folder import write_text
from narrowtune.report.advice import Advice, advise, pareto_front
from narrowtune.report.charts import (
    Tick,
    budget_label,
    negate,
    radius,
    ticks,
    training_seconds,
)
from narrowtune.report.folder import read_record
from narrowtune.report.plots import draw_comparison
from narrowtune.report.render import render_html, render_json, render_markdown
from narrowtune.report.scale import make_scale, mark, span
from narrowtune.report.text import anchor, duration, percent, pulled, size, small, tick
from narrowtune.report.verdict import Headline, headline

COMPARISON_SCHEMA = 1
"""Version of comparison.json."""


@dataclass(frozen=True)
class Row:
    """One run of the comparison, as shown. `link` is None where the run has no report."""

    index: int
    record: RunRecord
    head: Headline
    link: str | None
    facts: list[tuple[str, str]]
    on_front: bool


@dataclass(frozen=True)
class Point:
    """One run in the chart, in percent of width and height."""

    row: Row
    x: float
    x_low: float
    x_high: float
    y: float
    y_low: float
    y_high: float
    radius: float


@dataclass(frozen=True)
class Scatter:
    """Learning (up) against the mean held-out change (to the right)."""

    points: list[Point]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    x_zero: float
    y_zero: float
    budgets: list[Tick]


def build_comparison(
    run_folders: Sequence[Path], out: Path, *, failed: Mapping[str, str] | None = None
) -> Path:
    """Write comparison.html, .md and .json and plots/ for several runs into `out`.

    Args:
        run_folders: of finished runs.
        out: gets the files.
        failed: runs that were to be compared and could not be trained, with what was found.

    Returns:
        The path of comparison.html. It links to each run's report.html where there is one.

    Raises:
        ReportError: no folder was given, or one has no record that can be read.
    """
    if not run_folders:
        raise ReportError(
            asked="a comparison of runs", found="no run folder", do="name at least one"
        )
    out.mkdir(parents=True, exist_ok=True)
    records = [read_record(Path(folder)) for folder in run_folders]
    front = pareto_front(records)
    rows = [
        _row(place + 1, record, Path(folder), out, place in front)
        for place, (record, folder) in enumerate(zip(records, run_folders, strict=True))
    ]
    values: dict[str, Any] = {
        "rows": rows,
        "names": [name for name, _ in rows[0].facts],
        "scatter": _scatter(rows),
        "tasks": _tasks(rows),
        "differences": _differences([row.record for row in rows]),
        "advice": advise([row.record for row in rows]),
        "failed": dict(failed or {}),
    }
    page = out / "comparison.html"
    with_chart = draw_comparison([row.record for row in rows], out / "plots")
    write_text(page, render_html("comparison.html.j2", values))
    markdown = render_markdown("comparison.md.j2", {**values, "with_chart": with_chart})
    write_text(out / "comparison.md", markdown)
    write_text(out / "comparison.json", render_json(_machine(rows, values)))
    return page


def _row(index: int, record: RunRecord, folder: Path, out: Path, on_front: bool) -> Row:
    report = folder / "report.html"
    relative = Path(os.path.relpath(report.resolve(), out.resolve())).as_posix()
    link = quote(relative) if report.exists() else None
    facts = [*_facts(record), ("On the Pareto front", "yes" if on_front else "no")]
    return Row(index, record, headline(record), link, facts, on_front)


def _facts(record: RunRecord) -> list[tuple[str, str]]:
    verdict, drift, training = record.verdict, record.drift, record.training
    learning = None if verdict is None else verdict.learning
    loss = None if verdict is None else verdict.forgetting
    none = "–"
    near = None if drift is None else drift.about_skill
    held = None if training is None else anchor(training)
    pull = None if training is None else pulled(training)
    memory = None if training is None else training.peak_memory_bytes
    return [
        ("Skill, change in points", none if learning is None else _with_interval(learning)),
        ("Held-out, change in points", none if loss is None else _with_interval(negate(loss))),
        ("Budget, points lost", none if verdict is None else tick(verdict.budget)),
        ("KL(base‖tuned)", none if drift is None else small(drift.kl_base_tuned)),
        ("Same top-1", none if drift is None else percent(drift.top1_agreement)),
        ("KL about the skill's pictures", none if near is None else small(near.kl_base_tuned)),
        ("Recipe", record.recipe),
        ("Anchor", held or none),
        ("Pulled back to the base", pull or none),
        ("Learning rate", none if training is None else tick(training.learning_rate)),
        ("Steps", none if training is None else f"{training.num_steps:,}"),
        ("Training time", none if training is None else duration(training.seconds)),
        ("Whole run", duration(sum(record.seconds.values())) if record.seconds else none),
        ("Peak memory", none if memory is None else size(memory)),
    ]


def _with_interval(change: Estimate) -> str:
    return f"{signed(change.value)} ({interval(change)})"


def _scatter(rows: Sequence[Row]) -> Scatter | None:
    placed = [
        (row, row.record.verdict.learning, row.record.verdict.forgetting)
        for row in rows
        if row.record.verdict is not None
    ]
    known = [
        (row, up, negate(loss)) for row, up, loss in placed if up is not None and loss is not None
    ]
    if not known:
        return None
    limits = sorted({row.record.verdict.budget for row, _, _ in known if row.record.verdict})
    x_scale = make_scale(
        [0.0, *(-limit for limit in limits), *(value for _, _, e in known for value in span(e))]
    )
    y_scale = make_scale([0.0, *(value for _, e, _ in known for value in span(e))])
    points = []
    longest = max(training_seconds(row.record) for row, _, _ in known)
    for row, up, right in known:
        x, y = mark(x_scale, right), mark(y_scale, up)
        ends = (100 - y.at, 100 - y.low, 100 - y.high)
        points.append(Point(row, x.at, x.low, x.high, *ends, radius(row.record, longest)))
    return Scatter(
        points=points,
        x_ticks=ticks(x_scale, sign=True),
        y_ticks=[Tick(100 - t.at, t.label) for t in ticks(y_scale, sign=True)],
        x_zero=x_scale.at(0.0),
        y_zero=100 - y_scale.at(0.0),
        budgets=[Tick(x_scale.at(-limit), budget_label(limit)) for limit in limits],
    )


def _tasks(rows: Sequence[Row]) -> list[tuple[str, str, list[TaskChange | None]]]:
    """Name, role, and what became of it in every run; targets first."""
    roles = {task.name: task.role for row in rows for task in row.record.tasks}
    by_run = [{task.name: task for task in row.record.tasks} for row in rows]
    ordered = sorted(roles, key=lambda name: roles[name] != "target")
    return [(name, roles[name], [run.get(name) for run in by_run]) for name in ordered]


def _differences(records: Sequence[RunRecord]) -> list[str]:
    """What makes runs less comparable: anything but recipe, anchor and learning rate."""
    settings: dict[str, list[Any]] = {
        "model": [record.model for record in records],
        "seed": [record.seed for record in records],
        "steps": [record.training and record.training.num_steps for record in records],
        "samples": [record.training and record.training.num_samples for record in records],
        "batch size": [record.training and record.training.global_batch_size for record in records],
        "compute dtype": [record.training and record.training.compute_dtype for record in records],
        "budget": [record.verdict and record.verdict.budget for record in records],
        "versions": [record.versions for record in records],
        # An anchor is a way to teach, and its prompts are a part of it.
        "data": [
            sorted((data.name, data.sha256) for data in record.data if data.role != "anchor")
            for record in records
        ],
        # A dial leaves a part of the keep items for the verdict.
        "numbers of items": [
            sorted((task.name, task.num_items) for task in record.tasks) for record in records
        ],
        "base scores": [
            sorted((task.name, task.before.mean) for task in record.tasks) for record in records
        ],
    }
    return [
        name for name, values in settings.items() if any(value != values[0] for value in values)
    ]


def _machine(rows: Sequence[Row], values: dict[str, Any]) -> dict[str, Any]:
    advice: Advice = values["advice"]
    chosen = None if advice.chosen is None else rows[advice.chosen].record.name
    return {
        "schema_version": COMPARISON_SCHEMA,
        "differences": list(values["differences"]),
        "recommended": chosen,
        "reason": advice.reason,
        "failed": [{"name": name, "found": found} for name, found in values["failed"].items()],
        "runs": [
            {
                "name": row.record.name,
                "title": row.head.title,
                "report": row.link,
                "recipe": row.record.recipe,
                "on_front": row.on_front,
                "verdict": row.record.verdict and row.record.verdict.model_dump(),
                "drift": row.record.drift and row.record.drift.model_dump(),
                "training": row.record.training and row.record.training.model_dump(),
                "tasks": [task.model_dump() for task in row.record.tasks],
            }
            for row in rows
        ],
    }
