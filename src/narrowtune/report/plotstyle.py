"""The look of every plot file: one place, so that plots of one report belong together.

Plots use matplotlib's own font and no clock, so that equal numbers give equal files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from narrowtune.core.results import Estimate

INK = "#12161c"
SOFT = "#505b6b"
RULE = "#d8dee6"
GRID = "#e7ebf0"
TARGET = "#1a56b0"
HELD_OUT = "#96460a"
LIMIT = "#a8231a"
BASE = "#8a95a4"
TONES = {"good": "#14653a", "bad": "#a8231a", "unsure": "#7a4d00"}

_RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.edgecolor": RULE,
    "axes.labelcolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlepad": 10,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "text.color": INK,
    "text.parse_math": False,  # a "$" in a task's name is a dollar
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "svg.hashsalt": "narrowtune",
    "savefig.dpi": 200,
}


@contextmanager
def style() -> Iterator[None]:
    """Use the look inside a `with` block, and leave matplotlib as it was."""
    with mpl.rc_context(_RC):
        yield


def new_figure(width: float, height: float) -> Figure:
    """A figure of `width` × `height` inches that draws without a screen."""
    padded = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    figure = Figure(figsize=(width, height), layout=padded)
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write `name`.png (200 dots per inch) and `name`.svg, without dates."""
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png", metadata={"Software": None})
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": "narrowtune"})


def draw_interval(axes: Axes, estimate: Estimate, y: float, color: str) -> None:
    """Draw an estimate: thin two-sided interval, thick one-sided bounds, dot."""
    axes.plot([estimate.low, estimate.high], [y, y], color=color, lw=1.8, solid_capstyle="butt")
    axes.plot(
        [estimate.lower_bound, estimate.upper_bound],
        [y, y],
        color=color,
        lw=7,
        alpha=0.35,
        solid_capstyle="butt",
    )
    axes.plot([estimate.value], [y], "o", color=color, ms=9, mec="white", mew=1.4, zorder=3)


def limit_line(axes: Axes, x: float, label: str) -> None:
    """Draw a limit as a vertical line that names itself beside its upper end."""
    axes.axvline(x, color=LIMIT, lw=1.8)
    axes.annotate(
        label,
        (x, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(6, -4),
        textcoords="offset points",
        va="top",
        color=LIMIT,
        fontsize=10,
        fontweight="bold",
    )


def only_x_grid(axes: Axes) -> None:
    """Vertical grid lines, no frame but the bottom."""
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
