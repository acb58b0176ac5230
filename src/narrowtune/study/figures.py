"""A study's figures: learning against forgetting, skill after skill, drift, and layers.

Owns: what is drawn. Every seed is shown; lines between points are an arm's rising rates, or its
seeds' mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from narrowtune.core.layers import LayerContributions
from narrowtune.report import plotstyle as look
from narrowtune.report.plots import short
from narrowtune.report.text import signed_tick
from narrowtune.study.formulas import rank_correlation
from narrowtune.study.presets import REFERENCE
from narrowtune.study.results import ChainKey, StageResult, by_chain
from narrowtune.study.tables import SHARES, Point, frontier, matched, sequences

_COLOURS = ("#1a56b0", "#96460a", "#14653a", "#7b2d8e", "#a8231a", "#0f7f86", "#8a6d00", "#505b6b")
_DASHES = ("-", "--", ":", "-.")  # an arm's rates
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


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
    arms = list(dict.fromkeys(r.chain.arm for r in results if r.stage))
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
            if any(not math.isnan(point.number_bias[1]) for point in every):
                drawn.append(_draw_bias(every, looks, folder, f"number_bias{suffix}"))
            first = [stages[0] for k, stages in by_chain(results).items() if k.order == order]
            if any(stage.layers is not None for stage in first):
                drawn.append(_draw_layers(first, looks, folder, f"layers{suffix}"))
            chains = sequences(results, order, len(skills))
            if len(skills) > 1 and chains:
                lost = {key: scores.held_out for key, scores in chains.items()}
                drawn.append(_draw_stages(lost, skills, looks, folder, f"stages{suffix}"))
    return drawn


def _looks() -> Iterator[dict[str, str]]:
    """Yield a colour and a marker for each arm; more arms than colours differ by marker."""
    markers = cycle(_MARKERS)
    while True:
        for colour in _COLOURS:
            yield {"color": colour, "marker": next(markers)}


def _draw_frontier(
    seeds: Sequence[Mapping[str, Sequence[Point]]],
    skill: str,
    looks: Mapping[str, Mapping[str, str]],
    folder: Path,
    name: str,
) -> str:
    figure = look.new_figure(9, 6)
    axes = figure.subplots()
    named = set()
    for arms in seeds:
        for arm, points in arms.items():
            axes.plot(
                [point.learning for point in points],
                [-point.forgetting for point in points],
                lw=1.4,
                ms=7,
                mec="white",
                label=None if arm in named else short(arm),
                **looks[arm],
            )
            named.add(arm)
    _frame(axes, "change on the held-out tasks, points")
    axes.set_xlabel(f"{short(skill)} learned, points  (best: top right)")
    axes.xaxis.set_major_formatter(lambda value, _: signed_tick(value))
    _title(axes, "Learning against forgetting, by learning rate and seed")
    look.save(figure, folder, name)
    return name


def _can_be_matched(arms: Mapping[str, Sequence[Point]]) -> bool:
    """Whether there is an arm to compare with, whose best rate validation rows tell."""
    points = arms.get(REFERENCE, ())
    return len(arms) > 1 and bool(points) and not math.isnan(points[0].validation)


def _draw_matched(
    seeds: Sequence[Mapping[str, Sequence[Point]]],
    looks: Mapping[str, Mapping[str, str]],
    folder: Path,
    name: str,
) -> str:
    """Draw what arms lose where they have learned as much: every seed, and the seeds' mean."""
    figure = look.new_figure(10, 6)
    axes = figure.subplots()
    lost = [matched(arms, REFERENCE) for arms in seeds]
    arms = list(dict.fromkeys(arm for of_seed in lost for arm in of_seed))
    for number, arm in enumerate(arms):
        for place, share in enumerate(SHARES):
            x = place + 0.8 * ((number + 0.5) / len(arms) - 0.5)
            values = [of_seed[arm][share] for of_seed in lost if arm in of_seed]
            reached = [-value for value in values if value is not None]
            style = {**looks[arm], "ls": "", "ms": 7, "mec": "white"}
            label = None if place else short(arm)
            axes.plot([x] * len(reached), reached, label=label, **style)
            # A mean over those that reach it would flatter an arm that often does not.
            if 1 < len(reached) == len(values):
                mean = math.fsum(reached) / len(reached)
                axes.plot([x - 0.03, x + 0.03], [mean] * 2, lw=2.2, color=looks[arm]["color"])
            if len(reached) < len(values):
                missed = f"{len(values) - len(reached)} of {len(values)}"
                axes.annotate(
                    f"not reached: {missed}",
                    (x, 0.01),
                    xycoords=("data", "axes fraction"),
                    rotation=90,
                    size=7,
                    ha="center",
                    va="bottom",
                    color=looks[arm]["color"],
                )
    _frame(axes, "change on the held-out tasks, points")
    axes.set_xticks(range(len(SHARES)), [f"{share:.0%}" for share in SHARES])
    axes.set_xlabel(f"of what {REFERENCE} learns at its best rate")
    _title(axes, "At equal learning (bars: means of seeds)")
    look.save(figure, folder, name)
    return name


def _draw_stages(
    lost: Mapping[ChainKey, Sequence[float]],
    skills: Sequence[str],
    looks: Mapping[str, Mapping[str, str]],
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
    _frame(axes, "change on the held-out tasks, points")
    _title(axes, "After each skill (thick: mean over seeds)")
    look.save(figure, folder, name)
    return name


def _draw_bias(
    points: Sequence[Point], looks: Mapping[str, Mapping[str, str]], folder: Path, name: str
) -> str:
    figure = look.new_figure(9, 6)
    axes = figure.subplots()
    shown = [point for point in points if not math.isnan(point.number_bias[1])]
    named = set()
    for point in shown:
        arm = point.chain.arm
        axes.plot(
            [point.number_bias[1] - point.number_bias[0]],
            [-point.forgetting],
            ls="",
            ms=8,
            mec="white",
            label=None if arm in named else short(arm),
            **looks[arm],
        )
        named.add(arm)
    rho = rank_correlation(
        [point.number_bias[1] - point.number_bias[0] for point in shown],
        [point.forgetting for point in shown],
    )
    told = "" if rho is None else f" (rank correlation with the loss {rho:.2f}, {len(shown)} runs)"
    _frame(axes, "change on the held-out tasks, points")
    axes.set_xlabel("change of the number-token bias on free prompts")
    _title(axes, f"Number-token bias{told}")
    look.save(figure, folder, name)
    return name


def _draw_layers(
    stages: Sequence[StageResult],
    looks: Mapping[str, Mapping[str, str]],
    folder: Path,
    name: str,
) -> str:
    """Draw the change of attention's and MLPs' writes by layer, the mean over seeds."""
    figure = look.new_figure(12, 6)
    runs: dict[tuple[str, float], list[LayerContributions]] = {}
    for stage in stages:
        if stage.layers is not None:
            key = stage.chain.arm, stage.chain.learning_rate
            runs.setdefault(key, []).append(stage.layers)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, part in zip(panels, ("attention", "mlp"), strict=True):
        for (arm, rate), found in runs.items():
            curves = [getattr(layers, part) for layers in found]
            mean = [math.fsum(values) / len(values) for values in zip(*curves, strict=True)]
            label, dashes = _told_apart(arm, rate, list(runs))
            style = {**looks[arm], "ls": dashes, "ms": 6, "mec": "white", "lw": 1.6}
            axes.plot(mean, label=label if axes is panels[0] else None, **style)
        axes.grid()
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("layer")
    panels[0].set_ylabel("change of what is written, in logits")
    panels[1].set_title("MLPs")
    _title(panels[0], "Attention, after the first skill (mean over seeds)")
    look.save(figure, folder, name)
    return name


def _told_apart(arm: str, rate: float, runs: Sequence[tuple[str, float]]) -> tuple[str, str]:
    """Return an arm's label and dashes at a rate; the rate is named where the arm has several."""
    rates = [other for name, other in runs if name == arm]
    label = short(arm) if len(rates) == 1 else f"{short(arm)}, {rate:g}"
    return label, _DASHES[rates.index(rate) % len(_DASHES)]


def _frame(axes: Axes, y: str) -> None:
    axes.axhline(0, color=look.BASE, lw=1)
    axes.grid()
    axes.set_ylabel(y)
    axes.yaxis.set_major_formatter(lambda value, _: signed_tick(value))


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text)
    axes.figure.legend(loc="outside right upper", frameon=False)
