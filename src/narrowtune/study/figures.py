"""A study's figures: learning against forgetting, skill after skill, drift, and layers.

Owns: what is drawn. Every seed is shown; lines are the mean over seeds. With some twenty arms, what
differs by a point and what differs by ninety must both be seen: losses stand on a scale that is
even up to two points and logarithmic beyond.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, groupby
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, TypeAlias

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from narrowtune.core.layers import LayerContributions
from narrowtune.report import plotstyle as look
from narrowtune.report.plots import short
from narrowtune.report.text import signed_tick
from narrowtune.study.correlations import MEASURES
from narrowtune.study.formulas import rank_correlation
from narrowtune.study.presets import REFERENCE
from narrowtune.study.results import ChainKey, StageResult, by_chain
from narrowtune.study.tables import SHARES, Point, best_point, frontier, matched, sequences

_COLOURS = ("#1a56b0", "#96460a", "#14653a", "#7b2d8e", "#a8231a", "#0f7f86", "#8a6d00", "#505b6b")
_DASHES = ("-", "--", ":", "-.")  # an arm's rates
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LOSS = "change on the held-out tasks, points"
_SCALE: dict[str, Any] = {"linthresh": 2.0, "linscale": 0.6}
_TICKS = (-100, -50, -20, -10, -5, -2, -1, 0, 1, 2, 5, 10, 20, 50, 100)


_Looks: TypeAlias = Mapping[str, Mapping[str, Any]]
"""Colour and marker of each arm."""


def draw_study(
    results: Sequence[StageResult], orders: Mapping[str, Sequence[str]], folder: Path
) -> list[str]:
    """Draw what the results have numbers for.

    Args:
        results: of the study, the base's among them.
        orders: the skills of each order, by its name.
        folder: gets a PNG and an SVG of each figure.

    Returns:
        The figures' names.
    """
    drawn = []
    arms = sorted({r.chain.arm for r in results if r.stage})
    looks = dict(zip(arms, _looks(), strict=False))
    with look.style():
        for order, skills in orders.items():
            seeds = sorted({r.chain.seed for r in results if r.stage and r.chain.order == order})
            points = [frontier(results, order, seed) for seed in seeds]
            if not points:
                continue
            suffix = f"-{order}" if len(orders) > 1 else ""
            drawn.append(_draw_frontier(points, skills[0], looks, folder, f"frontier{suffix}"))
            if all(_can_be_matched(arms_of) for arms_of in points):
                drawn.append(_draw_matched(points, looks, folder, f"matched{suffix}"))
            every = [p for arms_of in points for found in arms_of.values() for p in found]
            for measure in _DRIFT:
                if any(not math.isnan(measure.of(point)) for point in every):
                    drawn.append(_draw_drift(measure, every, looks, folder, suffix))
            first = [stages[0] for k, stages in by_chain(results).items() if k.order == order]
            if any(stage.layers is not None for stage in first):
                best = [best_point(found) for arms in points[:1] for found in arms.values()]
                drawn.append(_draw_layers(first, best, looks, folder, f"layers{suffix}"))
            chains = sequences(results, order, len(skills))
            if len(skills) > 1 and chains:
                lost = {key: scores.held_out for key, scores in chains.items()}
                drawn.append(_draw_stages(lost, skills, looks, folder, f"stages{suffix}"))
    return drawn


def _looks() -> Iterator[dict[str, Any]]:
    """Yield a colour and a marker for each arm; more arms than colours differ by marker."""
    markers = cycle(_MARKERS)
    while True:
        for colour in _COLOURS:
            yield {"color": colour, "marker": next(markers)}


def _draw_frontier(
    seeds: Sequence[Mapping[str, Sequence[Point]]],
    skill: str,
    looks: _Looks,
    folder: Path,
    name: str,
) -> str:
    """Draw each arm's way over its rising rates, the mean over seeds, and every seed small."""
    figure = look.new_figure(11, 7)
    axes = figure.subplots()
    for arm in dict.fromkeys(arm for arms in seeds for arm in arms):
        every = [point for arms in seeds for point in arms.get(arm, ())]
        every.sort(key=lambda point: point.chain.learning_rate)
        if len(seeds) > 1:
            small = {**looks[arm], "ls": "", "ms": 3.5, "mew": 0, "alpha": 0.55}
            axes.plot([p.learning for p in every], [-p.forgetting for p in every], **small)
        rates = [list(of) for _, of in groupby(every, key=lambda p: p.chain.learning_rate)]
        axes.plot(
            [fmean(point.learning for point in points) for points in rates],
            [-fmean(point.forgetting for point in points) for points in rates],
            lw=1.4,
            ms=7,
            mec="white",
            label=short(arm),
            **looks[arm],
        )
    _frame(axes)
    axes.set_xlabel(f"{short(skill)} learned, points  (best: top right)")
    axes.xaxis.set_major_formatter(lambda value, _: signed_tick(value))
    told = ", mean over seeds (small: each)" if len(seeds) > 1 else ""
    _title(axes, f"Learning against forgetting, by rate{told}")
    look.save(figure, folder, name)
    return name


def _can_be_matched(arms: Mapping[str, Sequence[Point]]) -> bool:
    """Whether there is an arm to compare with, whose best rate validation rows tell."""
    points = arms.get(REFERENCE, ())
    return len(arms) > 1 and bool(points) and not math.isnan(points[0].validation)


def _draw_matched(
    seeds: Sequence[Mapping[str, Sequence[Point]]],
    looks: _Looks,
    folder: Path,
    name: str,
) -> str:
    """Draw what arms lose where they have learned as much: every seed, and the seeds' mean."""
    lost = [matched(arms, REFERENCE) for arms in seeds]
    arms = sorted(
        dict.fromkeys(arm for of_seed in lost for arm in of_seed),
        key=lambda arm: _rank_lost([of_seed[arm] for of_seed in lost if arm in of_seed]),
        reverse=True,
    )
    figure = look.new_figure(12, 1.6 + 0.32 * len(arms))
    panels = figure.subplots(1, len(SHARES), sharex=True, sharey=True)
    for axes, share in zip(panels, SHARES, strict=True):
        for row, arm in enumerate(arms):
            values = [of_seed[arm][share] for of_seed in lost if arm in of_seed]
            reached = [-value for value in values if value is not None]
            style = {**looks[arm], "ls": "", "ms": 7, "mec": "white"}
            axes.plot(reached, [row] * len(reached), **style)
            # A mean over those that reach it would flatter an arm that often does not.
            if 1 < len(reached) == len(values):
                mean, bar = fmean(reached), [row - 0.36, row + 0.36]
                axes.plot([mean] * 2, bar, lw=2.2, color=looks[arm]["color"])
            if len(reached) < len(values):
                axes.annotate(
                    f"not reached: {len(values) - len(reached)} of {len(values)}",
                    (1.0, row),
                    xycoords=("axes fraction", "data"),
                    size=8,
                    ha="right",
                    va="center",
                    color=look.SOFT,
                )
        axes.set_xscale("symlog", **_SCALE)
        _loss_ticks(axes.xaxis)
        axes.axvline(0, color=look.BASE, lw=1)
        axes.grid()
        axes.set_title(f"at {share:.0%}", fontsize=11)
    panels[0].set_yticks(range(len(arms)), [short(arm) for arm in arms])
    panels[0].set_ylim(-0.7, len(arms) - 0.3)
    panels[len(SHARES) // 2].set_xlabel(_LOSS)
    _headline(
        figure, f"At a share of what {REFERENCE} learns at its best rate (bars: means of seeds)"
    )
    look.save(figure, folder, name)
    return name


def _rank_lost(seeds: Sequence[Mapping[float, float | None]]) -> tuple[float, ...]:
    """Sort an arm by how often it does not get to a share, then by what it loses there."""
    ranked: list[float] = []
    for share in SHARES:
        values = [of_seed[share] for of_seed in seeds]
        reached = [value for value in values if value is not None]
        ranked += [values.count(None), fmean(reached) if reached else math.inf]
    return tuple(ranked)


def _draw_stages(
    lost: Mapping[ChainKey, Sequence[float]],
    skills: Sequence[str],
    looks: _Looks,
    folder: Path,
    name: str,
) -> str:
    figure = look.new_figure(9, 6)
    axes = figure.subplots()
    places = list(range(len(skills) + 1))
    runs: dict[tuple[str, float], list[Sequence[float]]] = {}
    for key, values in lost.items():
        runs.setdefault((key.arm, key.learning_rate), []).append(values)
    for (arm, rate), found in runs.items():
        label, dashes = _told_apart(arm, rate, list(runs))
        for values in found:
            held = [0.0, *(-value for value in values)]
            axes.plot(places, held, lw=0.8, alpha=0.35, color=looks[arm]["color"])
        mean = [0.0, *(-math.fsum(stage) / len(stage) for stage in zip(*found, strict=True))]
        axes.plot(places, mean, lw=2.2, ls=dashes, ms=7, mec="white", label=label, **looks[arm])
    axes.set_xticks(places, ["base", *map(short, skills)])
    _frame(axes)
    _title(axes, "After each skill (thick: mean over seeds)")
    look.save(figure, folder, name)
    return name


class _Drift(NamedTuple):
    """A measure of how far the output distribution has moved.

    Attributes:
        name: of the figure.
        measure: one of `correlations.MEASURES`.
        title: what it is called.
        axis: what stands below the figure.
        is_wide: whether values lie decades apart.
    """

    name: str
    measure: str
    title: str
    axis: str
    is_wide: bool

    def of(self, point: Point) -> float:
        """Return a stage's value."""
        return MEASURES[self.measure](point)


_DRIFT = (
    _Drift(
        "number_bias",
        "number-token bias",
        "Number-token bias",
        "change of the number-token bias on free prompts",
        is_wide=False,
    ),
    _Drift(
        "kl",
        "KL",
        "KL(base‖tuned)",
        "KL(base‖tuned) on free prompts, nats per token",
        is_wide=True,
    ),
)
"""What is drawn against the loss."""


def _draw_drift(
    measure: _Drift,
    points: Sequence[Point],
    looks: _Looks,
    folder: Path,
    suffix: str,
) -> str:
    figure = look.new_figure(11, 7)
    axes = figure.subplots()
    shown = [point for point in points if not math.isnan(measure.of(point))]
    for arm in dict.fromkeys(point.chain.arm for point in shown):
        of_arm = [point for point in shown if point.chain.arm == arm]
        axes.plot(
            [measure.of(point) for point in of_arm],
            [-point.forgetting for point in of_arm],
            ls="",
            ms=7,
            mec="white",
            label=short(arm),
            **looks[arm],
        )
    rho = rank_correlation([measure.of(p) for p in shown], [p.forgetting for p in shown])
    told = "" if rho is None else f": rank correlation with the loss {rho:.2f}, {len(shown)} runs"
    if measure.is_wide:
        axes.set_xscale("symlog", linthresh=1e-3)
        axes.xaxis.set_major_formatter("{x:g}")
    _frame(axes)
    axes.set_xlabel(measure.axis)
    _title(axes, f"{measure.title}{told}")
    name = f"{measure.name}{suffix}"
    look.save(figure, folder, name)
    return name


def _draw_layers(
    stages: Sequence[StageResult],
    best: Sequence[Point],
    looks: _Looks,
    folder: Path,
    name: str,
) -> str:
    """Draw the change of attention's and MLPs' writes by layer, the mean over seeds.

    At each arm's best rate where validation rows tell it, else at all.
    """
    figure = look.new_figure(12, 7)
    told = {p.chain.arm: p.chain.learning_rate for p in best if not math.isnan(p.validation)}
    runs: dict[tuple[str, float], list[LayerContributions]] = {}
    for stage in stages:
        arm, rate = stage.chain.arm, stage.chain.learning_rate
        if stage.layers is not None and told.get(arm, rate) == rate:
            runs.setdefault((arm, rate), []).append(stage.layers)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, part in zip(panels, ("attention", "mlp"), strict=True):
        for (arm, rate), found in runs.items():
            curves = [getattr(layers, part) for layers in found]
            mean = [fmean(values) for values in zip(*curves, strict=True)]
            label, dashes = _told_apart(arm, rate, list(runs))
            style = {**looks[arm], "ls": dashes, "ms": 6, "mec": "white", "lw": 1.6}
            axes.plot(mean, label=label if axes is panels[0] else None, **style)
        axes.grid()
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("layer")
        axes.set_yscale("symlog", linthresh=0.1)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_title("attention" if part == "attention" else "MLPs", fontsize=11)
    panels[0].set_ylabel("change of what is written, in logits")
    _headline(figure, "What layers write, after the first skill (mean over seeds)")
    figure.legend(loc="outside right upper", frameon=False)
    look.save(figure, folder, name)
    return name


def _told_apart(arm: str, rate: float, runs: Sequence[tuple[str, float]]) -> tuple[str, str]:
    """Return an arm's label and dashes at a rate; the rate is named where the arm has several."""
    rates = [other for name, other in runs if name == arm]
    label = short(arm) if len(rates) == 1 else f"{short(arm)}, {rate:g}"
    return label, _DASHES[rates.index(rate) % len(_DASHES)]


def _frame(axes: Axes) -> None:
    axes.axhline(0, color=look.BASE, lw=1)
    axes.grid()
    axes.set_ylabel(_LOSS)
    lowest, highest = axes.dataLim.intervaly
    axes.set_yscale("symlog", **_SCALE)
    axes.set_ylim(min(1.2 * lowest, -1.0), max(1.5 * highest, 0.5))
    _loss_ticks(axes.yaxis)


def _loss_ticks(axis: Axis) -> None:
    axis.set_major_locator(FixedLocator(_TICKS))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: signed_tick(value))


def _headline(figure: Figure, text: str) -> None:
    figure.suptitle(text, x=0.01, ha="left", weight="bold", size=12)


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text)
    axes.figure.legend(loc="outside right upper", frameon=False)
