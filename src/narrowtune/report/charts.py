"""View models of the charts that are drawn inside the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from narrowtune.core.delta_results import DialResult, DialStep
from narrowtune.core.numbers import best_case, digits_beside, loss_range, moved, worst_case
from narrowtune.core.results import DriftResult, Estimate, RunRecord, TaskChange, Verdict
from narrowtune.report.folder import LoggedStep
from narrowtune.report.scale import (
    Mark,
    Scale,
    make_scale,
    mark,
    path,
    running_mean,
    span,
    thin,
    tick_label,
)
from narrowtune.report.text import percent, signed_tick, small
from narrowtune.report.text import tick as tick_text

CURVE_HEIGHT = 150
CURVE_WIDTH = 1000
SMOOTHING = 10

SMALLEST_DOT, LARGEST_DOT = 8.0, 16.0
"""Radius in pixels of a run that did not train, and of the one that trained longest."""


@dataclass(frozen=True)
class Tick:
    """A tick: where, and what it says."""

    at: float
    label: str


@dataclass(frozen=True)
class Gauge:
    """One change, after − before, against one limit; what lies left of the limit is not allowed.

    Attributes:
        limit: where the limit lies in the chart, and `limit_value` in points.
        change: what is drawn; its sign is that of the axis.
        amount: the change in words, "lost 4.2 points".
        bound: the end that was held against the limit, in words.
        between: the two-sided interval, in words.
    """

    title: str
    change: Estimate
    mark: Mark
    ticks: list[Tick]
    zero: float
    limit: float
    limit_value: float
    limit_label: str
    role: str
    amount: str
    bound: str
    between: str


def gauges(verdict: Verdict) -> list[Gauge]:
    """The held-out tasks against the budget, and learning against what it must exceed."""
    drawn = []
    loss, learning = verdict.forgetting, verdict.learning
    if loss is not None:
        limit = (-verdict.budget, budget_label(verdict.budget))
        # The lower bound shows that a budget is broken; the upper one, that it is kept.
        over = loss.lower_bound > verdict.budget
        held = loss.lower_bound if over else loss.upper_bound
        digits = digits_beside(verdict.budget, held)
        bound = best_case(held, digits) if over else worst_case(held, digits)
        drawn.append(_gauge("Held-out tasks, mean", "held_out", negate(loss), limit, bound))
    if learning is not None:
        limit = (verdict.min_learning, f"must exceed {signed_tick(verdict.min_learning)}")
        digits = digits_beside(verdict.min_learning, learning.lower_bound)
        bound = worst_case(-learning.lower_bound, digits)
        drawn.append(_gauge("Skill", "target", learning, limit, bound))
    return drawn


def budget_label(budget: float) -> str:
    """A budget where its line is drawn, at minus the points that may be lost."""
    return f"budget: {tick_text(budget)} lost"


def _gauge(title: str, role: str, change: Estimate, limit: tuple[float, str], bound: str) -> Gauge:
    scale = make_scale([*span(change), limit[0], 0.0], most_ticks=6, margin=0.1)
    loss = negate(change)
    return Gauge(
        title=title,
        role=role,
        change=change,
        mark=mark(scale, change),
        ticks=ticks(scale, sign=True),
        zero=scale.at(0.0),
        limit=scale.at(limit[0]),
        limit_value=limit[0],
        limit_label=limit[1],
        amount=moved(loss.value),
        bound=bound,
        between=loss_range(loss.value, loss.low, loss.high),
    )


def ticks(scale: Scale, *, sign: bool = False) -> list[Tick]:
    """The ticks of a scale, placed and labelled."""
    return [Tick(scale.at(tick), tick_label(scale, tick, sign=sign)) for tick in scale.ticks]


@dataclass(frozen=True)
class Forest:
    """Changes per task on one axis, after − before."""

    rows: list[tuple[TaskChange, Mark]]
    mean: Mark | None
    mean_estimate: Estimate | None
    ticks: list[Tick]
    zero: float
    budget: float | None
    budget_task: float | None


def negate(estimate: Estimate) -> Estimate:
    """The same estimate seen from the other side: a loss as a change."""
    return Estimate(
        value=-estimate.value,
        low=-estimate.high,
        high=-estimate.low,
        lower_bound=-estimate.upper_bound,
        upper_bound=-estimate.lower_bound,
        method=estimate.method,
    )


def forest(tasks: Sequence[TaskChange], verdict: Verdict | None) -> Forest:
    """Place every task, targets first, and the mean of the held-out ones."""
    ordered = sorted(tasks, key=lambda task: task.role != "target")
    numbers = [0.0, *(value for task in ordered for value in span(task.change))]
    mean = None
    if verdict is not None:
        numbers.append(-verdict.budget)
        numbers.extend([] if verdict.budget_task is None else [-verdict.budget_task])
        mean = None if verdict.forgetting is None else negate(verdict.forgetting)
        numbers.extend([] if mean is None else span(mean))
    scale = make_scale(numbers, most_ticks=5)
    return Forest(
        rows=[(task, mark(scale, task.change)) for task in ordered],
        mean=None if mean is None else mark(scale, mean),
        mean_estimate=mean,
        ticks=ticks(scale, sign=True),
        zero=scale.at(0.0),
        budget=None if verdict is None else scale.at(-verdict.budget),
        budget_task=(
            None
            if verdict is None or verdict.budget_task is None
            else scale.at(-verdict.budget_task)
        ),
    )


@dataclass(frozen=True)
class Turned:
    """The steps of a dial on one axis, as changes of the held-out mean, after − before."""

    rows: list[tuple[DialStep, Mark]]
    ticks: list[Tick]
    zero: float
    budget: float


def turned(dial: DialResult, budget: float) -> Turned:
    """Place every step that was tried."""
    losses = [negate(step.forgetting) for step in dial.steps]
    scale = make_scale([0.0, -budget, *(x for loss in losses for x in span(loss))], most_ticks=5)
    return Turned(
        rows=[(s, mark(scale, loss)) for s, loss in zip(dial.steps, losses, strict=True)],
        ticks=ticks(scale, sign=True),
        zero=scale.at(0.0),
        budget=scale.at(-budget),
    )


@dataclass(frozen=True)
class Curve:
    """One line of the training log over steps."""

    title: str
    unit: str
    raw: str
    smooth: str
    y_ticks: list[Tick]
    x_ticks: list[Tick]
    every: int
    num_not_finite: int
    first: str
    last: str
    width: int = CURVE_WIDTH
    height: int = CURVE_HEIGHT


def curves(steps: Sequence[LoggedStep]) -> list[Curve]:
    """Loss, and where they were logged the anchor's KL, rates, gradient norms and drift."""
    base = next((s.base_number_bias for s in steps if s.base_number_bias is not None), None)
    number = "largest probability" + ("" if base is None else f"; the base's {small(base)}")
    wanted = (
        ("Loss", "nats per answer token", [(s.step, s.answer_loss) for s in steps], True),
        ("Validation loss", "nats per answer token", [(s.step, s.eval_loss) for s in steps], False),
        ("Anchor KL", "nats per token", [(s.step, s.anchor_kl) for s in steps], True),
        ("Learning rate", "", [(s.step, s.learning_rate) for s in steps], False),
        ("Gradient norm", "before clipping", [(s.step, s.grad_norm) for s in steps], True),
        ("Drift", "KL(base‖tuned), nats per token", [(s.step, s.drift) for s in steps], False),
        ("Number-token bias", number, [(s.step, s.number_bias) for s in steps], False),
        (
            "Format valid",
            "share in the base's form",
            [(s.step, s.format_valid) for s in steps],
            False,
        ),
    )
    drawn = []
    for title, unit, values, smooth in wanted:
        known = [(step, value) for step, value in values if value is not None]
        if known:
            drawn.append(_curve(title, unit, known, smooth))
    return drawn


def _curve(title: str, unit: str, values: Sequence[tuple[int, float]], smooth: bool) -> Curve:
    finite = [(float(step), value) for step, value in values if math.isfinite(value)]
    line = thin([x for x, _ in finite], [y for _, y in finite])
    lowest = [0.0] if line.y and min(line.y) >= 0 else []
    y_scale = make_scale([*line.y, *lowest], most_ticks=4, margin=0.02)
    x_scale = make_scale([float(step) for step, _ in values], most_ticks=5, margin=0.0)

    def place(y: Sequence[float]) -> str:
        return path(
            (x_scale.at(a) / 100 * CURVE_WIDTH, (1 - y_scale.at(b) / 100) * CURVE_HEIGHT)
            for a, b in zip(line.x, y, strict=True)
        )

    smoothed = smooth and len(line.y) > 2 * SMOOTHING
    return Curve(
        title=title,
        unit=unit,
        raw=place(line.y),
        smooth=place(running_mean(line.y, SMOOTHING)) if smoothed else "",
        y_ticks=[
            Tick((1 - y_scale.at(tick) / 100) * CURVE_HEIGHT, tick_text(tick))
            for tick in y_scale.ticks
        ],
        x_ticks=[Tick(x_scale.at(t), tick_label(x_scale, t)) for t in x_scale.ticks],
        every=line.every,
        num_not_finite=len(values) - len(finite),
        first=small(values[0][1]),
        last=small(values[-1][1]),
    )


@dataclass(frozen=True)
class Dumbbell:
    """A share that went from the base's value to the tuned model's."""

    name: str
    base: float
    tuned: float
    base_label: str
    tuned_label: str
    detail: str


def token_groups(drift: DriftResult) -> list[Dumbbell]:
    """Per group of tokens: the largest single probability, and the summed one."""
    rows = []
    for group in drift.token_groups:
        name = group.name.replace("_", " ")
        for detail, base, tuned in (
            ("largest single token", group.base_max, group.tuned_max),
            ("whole group", group.base_mass, group.tuned_mass),
        ):
            ends = (percent(base), percent(tuned))
            rows.append(Dumbbell(name, 100 * base, 100 * tuned, *ends, detail))
    return rows


def drift_bars(drift: DriftResult) -> list[tuple[str, float, str, str, str]]:
    """Per task: name, bar length in percent of the largest, KL, agreement, prompts and tokens."""
    most = max((task.kl_base_tuned for task in drift.sources), default=0.0) or 1.0
    return [
        (
            task.name,
            100 * task.kl_base_tuned / most,
            small(task.kl_base_tuned),
            percent(task.top1_agreement),
            f"{task.num_prompts:,} / {task.num_tokens:,}",
        )
        for task in sorted(drift.sources, key=lambda task: -task.kl_base_tuned)
    ]


def training_seconds(record: RunRecord) -> float:
    """Return how long a run trained; 0 where it did not."""
    return 0.0 if record.training is None else record.training.seconds


def radius(record: RunRecord, longest: float) -> float:
    """Return a dot's radius in pixels: its area beyond the smallest grows with training time."""
    share = training_seconds(record) / longest if longest else 1.0
    return round(SMALLEST_DOT + (LARGEST_DOT - SMALLEST_DOT) * math.sqrt(share), 1)
