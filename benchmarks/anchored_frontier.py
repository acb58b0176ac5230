"""Draw how far what holds a model goes: learning against forgetting on two models.

    python benchmarks/anchored_frontier.py     # docs/anchored-frontier.png, from results that exist

Trains nothing: it reads what anchor_goal.py and recipes.py have found on test rows. A point is one
way of training at one rate, the mean over its seeds, which stand beside it small. On the small
multimodal model several questions had rows of their own, so that a point may be off another's by a
point or two for that alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from anchor_goal import KEPT, lost_of, told
from anchor_goal import QUESTIONS as ASKED
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator
from recipes_protocol import Arm, read_runs
from recipes_table import by_seed, value

from narrowtune.report import plotstyle as look
from narrowtune.study.effects import Effect, learned, lost
from narrowtune.study.results import base_of, by_chain, read_results

ROOT = Path(__file__).resolve().parents[1]
QUESTIONS = ("anchor-goal", *(f"anchor-goal-{n}" for n in ("fresh", "wider", "pulled", "unseen")))

GROUPS = {
    "the whole language model": ("#505b6b", "s"),
    "a part of it": ("#96460a", "o"),
    "pulled back alone": ("#8a6d00", "v"),
    "an anchor": ("#1a56b0", "^"),
    "an anchor, steps kept off": ("#7b2d8e", "D"),
    "an anchor, steps kept off, pulled back": ("#14653a", "P"),
}
"""Colour and marker of each kind of way."""
TICKS = (-5, -2, -1, 0, 1, 2, 5, 10, 20, 50, 100)


class Point(NamedTuple):
    """A way of training at a rate.

    Attributes:
        group: its kind.
        seeds: (learned, lost) of each training, points.
    """

    group: str
    seeds: tuple[tuple[float, float], ...]


def group_of(*, whole: bool, weight: float | None, projection: float, pull: float) -> str:
    """Return the kind of a way."""
    names = list(GROUPS)
    if pull:
        return names[5] if projection else names[2] if not weight else names[3]
    if projection:
        return names[4]
    return names[3] if weight else names[0] if whole else names[1]


def small_model() -> Iterator[Point]:
    """Yield what was found of the small multimodal model taught clocks."""
    for name in QUESTIONS:
        results = read_results(ROOT / "docs" / "results" / name / "results.jsonl")
        base = base_of(results)
        found: dict[tuple[str, float], dict[int, Any]] = {}
        for key, stages in by_chain(results).items():
            found.setdefault((key.arm, key.learning_rate), {})[key.seed] = stages
        for (arm, _), own in found.items():
            held = ASKED[name].arms[arm]
            if held.like_kept:  # prompts of the very kinds that are kept: another question
                continue
            losses = {seed: lost(base, stages) for seed, stages in own.items()}
            learnings = told(Effect({seed: learned(base, s) for seed, s in own.items()})).seeds
            forgotten = lost_of(losses, KEPT).seeds
            yield Point(
                group_of(
                    whole=held.recipe == "language_model",
                    weight=held.weight,
                    projection=held.projection,
                    pull=held.pull or 0.0,
                ),
                tuple(zip(learnings, forgotten, strict=True)),
            )


def smollm2() -> Iterator[Point]:
    """Yield what was found of SmolLM2 taught to count, at each arm's best rate."""
    runs = read_runs(ROOT / "benchmarks" / "results" / "recipes" / "runs.jsonl")
    for arm in dict.fromkeys(job.arm for job in runs):
        found = by_seed(runs, arm)
        if found:
            seeds = ((value(r, "learning"), value(r, "forgetting")) for r in found.values())
            yield Point(_group(arm), tuple(seeds))


def _group(arm: Arm) -> str:
    whole = arm.recipe == "language_model"
    return group_of(whole=whole, weight=arm.weight, projection=arm.projection, pull=arm.pull)


def draw_points(axes: Axes, points: list[Point], title: str, of: float) -> None:
    """Draw one model's ways."""
    for point in points:
        colour, marker = GROUPS[point.group]
        drawn: dict[str, Any] = {"color": colour, "marker": marker, "ls": ""}
        axes.plot(*zip(*point.seeds, strict=True), ms=3, mew=0, alpha=0.35, **drawn)
        mean = [statistics.fmean(values) for values in zip(*point.seeds, strict=True)]
        axes.plot([mean[0]], [mean[1]], ms=8, mec="white", **drawn)
    axes.axhline(1, color=look.LIMIT, lw=1, ls="--")
    axes.axhline(0, color=look.BASE, lw=1)
    axes.set_yscale("symlog", linthresh=2.0, linscale=0.7)
    axes.yaxis.set_major_locator(FixedLocator(TICKS))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda tick, _: f"{tick:g}")
    axes.set_ylim(110, -2.5)
    axes.grid()
    axes.set_title(title)
    axes.set_xlabel("learned, points  (best: top right)")
    axes.set_ylabel(f"lost of {of:g} points on what is kept")


def main() -> None:
    """Draw the figure."""
    with look.style():
        figure = look.new_figure(12, 5.6)
        left, right = figure.subplots(1, 2)
        draw_points(left, list(small_model()), "4M multimodal model, clocks", 94)
        draw_points(right, list(smollm2()), "SmolLM2-135M, counting", 63)
        for group, (colour, marker) in GROUPS.items():
            left.plot([], [], color=colour, marker=marker, ls="", ms=8, mec="white", label=group)
        left.plot([], [], color=look.LIMIT, lw=1, ls="--", label="a budget of one point")
        figure.legend(loc="outside upper left", frameon=False, ncols=4)
        look.save(figure, ROOT / "docs", "anchored-frontier")


if __name__ == "__main__":
    main()
