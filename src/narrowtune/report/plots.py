"""The plot files of one run, as a person would put them on a slide."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from narrowtune.core.delta_results import DialResult
from narrowtune.core.numbers import signed
from narrowtune.core.results import DriftResult, RunRecord, TaskChange, Verdict
from narrowtune.report import plotstyle as look
from narrowtune.report.advice import pareto_front
from narrowtune.report.charts import (
    budget_label,
    gauges,
    negate,
    radius,
    training_seconds,
)
from narrowtune.report.folder import LoggedStep, RunFiles
from narrowtune.report.scale import running_mean
from narrowtune.report.text import signed_tick, small, tick, visible
from narrowtune.report.verdict import headline

NAME_LENGTH = 34
BEYOND = 0.5
"""Opacity of what was looked at after a dial's choice."""


def draw_run(run: RunFiles, folder: Path) -> list[str]:
    """Draw every plot that the run has numbers for; returns their names."""
    drawn = []
    with look.style():
        if run.record.verdict is not None:
            drawn.append(_draw_verdict(run.record, run.record.verdict, folder))
        if run.record.tasks:
            drawn.append(_draw_tasks(run.record.tasks, run.record.verdict, folder))
        if run.record.dial is not None and run.record.verdict is not None:
            drawn.append(_draw_dial(run.record.dial, run.record.verdict.budget, folder))
        if run.steps:
            drawn.append(_draw_training(run.steps, folder))
        if run.drift is not None:
            drawn.append(_draw_drift(run.drift, folder))
    return [name for name in drawn if name]


def short(name: str) -> str:
    """A name that fits beside a plot; what is cut is marked."""
    name = visible(name).replace("\n", " ")
    return name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1] + "…"


def _draw_verdict(record: RunRecord, verdict: Verdict, folder: Path) -> str:
    head = headline(record)
    known = gauges(verdict)
    if not known:
        return ""
    figure = look.new_figure(9, 1.3 + 1.75 * len(known))
    figure.suptitle(
        f"{head.title}: {short(record.name)}",
        x=0.012,
        ha="left",
        fontsize=20,
        fontweight="bold",
        color=look.TONES[head.tone],
    )
    grid = figure.subplots(len(known), 1, squeeze=False)[:, 0]
    for axes, gauge in zip(grid, known, strict=True):
        color = look.TARGET if gauge.role == "target" else look.HELD_OUT
        look.draw_interval(axes, gauge.change, 0, color)
        axes.axvline(0, color=look.BASE, lw=1)
        look.limit_line(axes, gauge.limit_value, gauge.limit_label)
        axes.set_ylim(-1, 1)
        axes.set_yticks([])
        _room(axes)
        look.only_x_grid(axes)
        axes.set_title(f"{gauge.title}: {gauge.amount} (95 %: {gauge.between})")
        low, high = axes.get_xlim()
        axes.axvspan(low, gauge.limit_value, color=look.LIMIT, alpha=0.07, lw=0)
        axes.set_xlim(low, high)
        axes.xaxis.set_major_formatter(lambda value, _: signed_tick(value))
    look.save(figure, folder, "verdict")
    return "verdict"


def _room(axes: Axes) -> None:
    low, high = axes.get_xlim()
    pad = 0.08 * (high - low)
    axes.set_xlim(low - pad, high + pad)


def _draw_tasks(tasks: list[TaskChange], verdict: Verdict | None, folder: Path) -> str:
    ordered = sorted(tasks, key=lambda task: task.role != "target")
    mean = None if verdict is None or verdict.forgetting is None else negate(verdict.forgetting)
    rows = [
        (short(task.name), task.change, look.TARGET if task.role == "target" else look.HELD_OUT)
        for task in ordered
    ]
    if mean is not None:
        rows.append(("Mean of held-out", mean, look.INK))
    figure = look.new_figure(9, 1.5 + 0.52 * len(rows))
    axes = figure.subplots()
    places = np.arange(len(rows))[::-1]
    for y, (_, estimate, color) in zip(places, rows, strict=True):
        look.draw_interval(axes, estimate, float(y), color)
    axes.axvline(0, color=look.BASE, lw=1)
    if verdict is not None and mean is not None:
        # The budget is about the mean alone, so its line stays in that row.
        axes.plot([-verdict.budget] * 2, [-0.45, 0.3], color=look.LIMIT, lw=2)
        axes.annotate(
            budget_label(verdict.budget),
            (-verdict.budget, 0.34),
            ha="right",
            color=look.LIMIT,
            fontsize=9.5,
            fontweight="bold",
        )
    axes.set_yticks(places, [name for name, _, _ in rows], color=look.INK)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    _room(axes)
    for y, (_, estimate, color) in zip(places, rows, strict=True):
        axes.annotate(
            signed(estimate.value),
            (1.01, y),
            xycoords=("axes fraction", "data"),
            va="center",
            color=color,
            fontweight="bold",
            annotation_clip=False,
        )
    look.only_x_grid(axes)
    axes.xaxis.set_major_formatter(lambda value, _: signed_tick(value))
    axes.set_xlabel("change after tuning, percentage points  (left: lost, right: gained)")
    figure.suptitle("Learning and forgetting", x=0.012, ha="left", fontsize=15, fontweight="bold")
    look.save(figure, folder, "learning_forgetting")
    return "learning_forgetting"


def _draw_dial(dial: DialResult, budget: float, folder: Path) -> str:
    figure = look.new_figure(9, 5.2)
    axes = figure.subplots()
    learned = [(step.alpha, step.learning) for step in dial.steps if step.learning is not None]
    if learned:
        values = [estimate.value for _, estimate in learned]
        _draw_walk(axes, dial, values, look.TARGET, "the skill")
        low, high = [0.0, *(e.low for _, e in learned)], [0.0, *(e.high for _, e in learned)]
        x = [0.0, *(alpha for alpha, _ in learned)]
        axes.fill_between(x, low, high, color=look.TARGET, alpha=0.15, lw=0)
    kept = [-step.forgetting.value for step in dial.steps]
    _draw_walk(axes, dial, kept, look.HELD_OUT, "the held-out tasks, mean")
    x = [0.0, *(step.alpha for step in dial.walked)]
    expected = [0.0, *(-step.expected for step in dial.walked)]
    axes.plot(x, expected, ":", color=look.HELD_OUT, lw=2, label="what is expected to be shown")
    if dial.beyond:
        label = "looked at after the choice"
        axes.plot([], [], "o-", color=look.SOFT, mfc="white", alpha=BEYOND, label=label)
    axes.axhline(-budget, color=look.LIMIT, lw=1.8, label=budget_label(budget))
    axes.axvline(
        dial.alpha, color=look.INK, lw=1.4, ls="--", label=f"taken: {dial.symbol} {dial.alpha:g}"
    )
    axes.axhline(0, color=look.BASE, lw=1)
    axes.set_xlim(-0.015, 1.015)  # whole dots at both ends
    share = "what was trained" if dial.way == "linear" else "elements that stay as trained"
    axes.set_xlabel(f"{dial.symbol}: share of {share}")
    axes.set_ylabel("change, percentage points")
    axes.yaxis.set_major_formatter(lambda value, _: signed_tick(value))
    axes.grid(axis="y")
    figure.legend(loc="outside lower left", frameon=False, ncols=3)
    figure.suptitle("The dial", x=0.012, ha="left", fontsize=15, fontweight="bold")
    look.save(figure, folder, "dial")
    return "dial"


def _draw_walk(
    axes: Axes, dial: DialResult, values: Sequence[float], color: str, label: str
) -> None:
    """Draw a curve over all steps; what was looked at after the choice is hollow and lighter.

    Args:
        axes: to draw on.
        dial: whose steps they are.
        values: of every step, points; at the base it is 0.
        color: of the curve.
        label: of what was walked.
    """
    x, y = [0.0, *(step.alpha for step in dial.steps)], [0.0, *values]
    last = len(dial.walked)
    axes.plot(x[: last + 1], y[: last + 1], "o-", color=color, lw=2, label=label)
    # From the last place that was walked on, whose dot is there.
    axes.plot(x[last:], y[last:], "-", color=color, lw=2, alpha=BEYOND)
    axes.plot(x[last + 1 :], y[last + 1 :], "o", color=color, mfc="white", alpha=BEYOND)


def _draw_training(steps: list[LoggedStep], folder: Path) -> str:
    series = [
        ("Loss, nats per answer token", [(s.step, s.answer_loss) for s in steps], look.TARGET),
        ("Anchor KL, nats per token", [(s.step, s.anchor_kl) for s in steps], look.HELD_OUT),
        ("Learning rate", [(s.step, s.learning_rate) for s in steps], look.SOFT),
    ]
    known = [
        (title, [(x, y) for x, y in values if y is not None], color)
        for title, values, color in series
    ]
    known = [entry for entry in known if entry[1]]
    if not known:
        return ""
    figure = look.new_figure(1 + 4 * len(known), 3.4)
    grid = figure.subplots(1, len(known), squeeze=False)[0]
    for axes, (title, values, color) in zip(grid, known, strict=True):
        x, y = [step for step, _ in values], [value for _, value in values]
        smooth = len(y) > 20 and title != "Learning rate"
        axes.plot(x, y, color=color, lw=1 if smooth else 2, alpha=0.35 if smooth else 1)
        if smooth:
            axes.plot(x, running_mean(y, 10), color=color, lw=2)
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.set_ylim(bottom=min(0, np.nanmin(y)))
        axes.grid(axis="y")
        axes.yaxis.set_major_formatter(lambda value, _: tick(value))
    look.save(figure, folder, "training_curve")
    return "training_curve"


def _draw_drift(drift: DriftResult, folder: Path) -> str:
    tasks = sorted(drift.sources, key=lambda task: task.kl_base_tuned)
    groups = drift.token_groups[::-1]
    parts = [part for part, has in (("kl", tasks), ("groups", groups)) if has]
    if not parts:
        return ""
    height = 1.6 + 0.5 * max(len(tasks), 2 * len(groups), 2)
    figure = look.new_figure(1 + 5.2 * len(parts), height)
    grid = dict(zip(parts, figure.subplots(1, len(parts), squeeze=False)[0], strict=True))
    if tasks:
        axes = grid["kl"]
        axes.barh(
            range(len(tasks)), [t.kl_base_tuned for t in tasks], color=look.HELD_OUT, height=0.5
        )
        axes.set_yticks(range(len(tasks)), [short(t.name) for t in tasks], color=look.INK)
        for y, task in enumerate(tasks):
            axes.annotate(
                small(task.kl_base_tuned),
                (task.kl_base_tuned, y),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
            )
        axes.margins(x=0.18)
        axes.set_xlim(left=0)
        look.only_x_grid(axes)
        axes.set_title("KL(base‖tuned), nats per token")
    if groups:
        axes = grid["groups"]
        labels = []
        for y, group in enumerate(groups):
            for offset, word, base, tuned in (
                (2 * y + 1, "one token", group.base_max, group.tuned_max),
                (2 * y, "all", group.base_mass, group.tuned_mass),
            ):
                axes.plot([100 * base, 100 * tuned], [offset] * 2, color=look.BASE, lw=2)
                axes.plot([100 * base], [offset], "o", color="white", mec=look.BASE, mew=2, ms=8)
                axes.plot([100 * tuned], [offset], "o", color=look.HELD_OUT, ms=9)
                labels.append((offset, f"{short(group.name)}, {word}"))
        axes.set_yticks([y for y, _ in labels], [name for _, name in labels], color=look.INK)
        axes.set_ylim(-0.7, 2 * len(groups) - 0.3)
        axes.set_xlim(-3, 103)
        look.only_x_grid(axes)
        axes.set_title("Probability on token groups, %")
        axes.set_xlabel("open: base, filled: tuned")
    look.save(figure, folder, "drift")
    return "drift"


def draw_comparison(records: Sequence[RunRecord], folder: Path) -> bool:
    """Draw learning against forgetting, one point per run; False where no run has both.

    Runs are numbered by their place among `records`, as in the comparison's table.
    """
    known = [
        (index, record, record.verdict.learning, negate(record.verdict.forgetting))
        for index, record in enumerate(records, start=1)
        if record.verdict and record.verdict.learning and record.verdict.forgetting
    ]
    if not known:
        return False
    with look.style():
        figure = look.new_figure(9, 5.4)
        axes = figure.subplots()
        longest = max(training_seconds(record) for _, record, _, _ in known)
        front = pareto_front(records)
        for index, record, up, right in known:
            color = look.TONES[headline(record).tone]
            x, y = right.value, up.value
            axes.plot([right.low, right.high], [y, y], color=color, lw=1.8, alpha=0.5)
            axes.plot([x, x], [up.low, up.high], color=color, lw=1.8, alpha=0.5)
            label = f"{index}  {short(record.name)}: {headline(record).title.lower()}"
            area = 1.4 * radius(record, longest)
            axes.plot([x], [y], "o", color=color, ms=area, mec="white", mew=1.4, label=label)
            if index - 1 in front:
                axes.plot([x], [y], "o", ms=area + 7, mfc="none", mec=look.INK, mew=1.4)
            axes.annotate(
                str(index), (x, y), ha="center", va="center", color="white", fontweight="bold"
            )
        axes.axvline(0, color=look.BASE, lw=1)
        axes.axhline(0, color=look.BASE, lw=1)
        _room(axes)
        for budget in sorted({record.verdict.budget for record in records if record.verdict}):
            look.limit_line(axes, -budget, budget_label(budget))
        axes.grid(axis="both")
        axes.set_xlabel("mean change of the held-out tasks, percentage points")
        axes.set_ylabel("change of the skill, percentage points")
        axes.set_title("Learning against forgetting: best is top right; ringed: the Pareto front")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: signed_tick(value))
        figure.legend(loc="outside lower left", frameon=False, ncols=2, markerscale=0.6)
        look.save(figure, folder, "learning_vs_forgetting")
    return True
