"""Where things lie in a drawing: scales, ticks and lines, in percent of the width.

Charts in the page are drawn in percent so that they follow the width of the screen while their
text keeps its size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from narrowtune.core.results import Estimate

STEPS = (1.0, 2.0, 5.0, 10.0)


@dataclass(frozen=True)
class Scale:
    """A linear axis from `low` to `high`, with the ticks that fall on it."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        """Position of `value`, 0 to 100; what lies outside (∞ too) is put on the edge."""
        if math.isnan(value):
            return 0.0
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(1.0, max(0.0, share)), 3)


def nice_step(span: float, most: int) -> float:
    """The smallest 1, 2 or 5 × 10^k that cuts `span` into at most `most` pieces."""
    magnitude: float = 10.0 ** math.floor(math.log10(span / most))
    return next(step * magnitude for step in STEPS if span / (step * magnitude) <= most + 1e-9)


def make_scale(values: Iterable[float], *, most_ticks: int = 6, margin: float = 0.06) -> Scale:
    """A scale over the finite `values` with a margin on both sides.

    A span below 1e-9 is widened to 1 around its middle, so that a single value lies inside.
    """
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    pad = (high - low) * margin
    low, high = low - pad, high + pad
    step = nice_step(high - low, most_ticks)
    first, last = math.ceil(low / step), math.floor(high / step)
    # Rounded to the step's own digits: 3 × 0.1 must read 0.3.
    digits = max(0, -math.floor(math.log10(step)))
    ticks = tuple(round(index * step, digits) + 0.0 for index in range(first, last + 1))
    return Scale(low, high, ticks)


def tick_label(scale: Scale, tick: float, *, sign: bool = False) -> str:
    """A tick with as many digits as the scale's step needs."""
    gaps = [b - a for a, b in zip(scale.ticks, scale.ticks[1:], strict=False)]
    digits = max(0, -math.floor(math.log10(min(gaps)) + 1e-9)) if gaps else 1
    text = f"{abs(tick):,.{digits}f}"
    if tick < 0:
        return f"\u2212{text}"
    return f"+{text}" if sign and tick > 0 else text


@dataclass(frozen=True)
class Mark:
    """An interval on a scale: two-sided ends (thin), deciding one-sided bounds (thick), a dot."""

    at: float
    low: float
    high: float
    inner_low: float
    inner_high: float


def mark(scale: Scale, estimate: Estimate) -> Mark:
    """Place `estimate` on `scale`."""
    return Mark(
        scale.at(estimate.value),
        scale.at(estimate.low),
        scale.at(estimate.high),
        scale.at(estimate.lower_bound),
        scale.at(estimate.upper_bound),
    )


def span(estimate: Estimate) -> tuple[float, ...]:
    """All numbers of an estimate that a scale must show."""
    return (
        estimate.value,
        estimate.low,
        estimate.high,
        estimate.lower_bound,
        estimate.upper_bound,
    )


MAX_POINTS = 1000
"""A line in the page has at most this many points; above, neighbours are averaged."""


@dataclass(frozen=True)
class Thinned:
    """A line with neighbours averaged, `every` by `every`."""

    x: list[float]
    y: list[float]
    every: int


def thin(x: Sequence[float], y: Sequence[float]) -> Thinned:
    """Average neighbours so that at most `MAX_POINTS` remain; short lines are left as they are."""
    every = max(1, math.ceil(len(x) / MAX_POINTS))
    if every == 1:
        return Thinned(list(x), list(y), 1)
    starts = range(0, len(x), every)
    return Thinned(
        [_mean(x[start : start + every]) for start in starts],
        [_mean(y[start : start + every]) for start in starts],
        every,
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of the last `window` values at each point (of those there are, at the start)."""
    return [_mean(values[max(0, end - window) : end]) for end in range(1, len(values) + 1)]


def path(points: Iterable[tuple[float, float]]) -> str:
    """An SVG path through `points`; a point that is not finite breaks the line."""
    parts: list[str] = []
    pen = "M"
    for x, y in points:
        if not (math.isfinite(x) and math.isfinite(y)):
            pen = "M"
            continue
        parts.append(f"{pen}{x:.2f} {y:.2f}")
        pen = "L"
    return "".join(parts)
