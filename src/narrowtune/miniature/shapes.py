"""Plain shapes: nine outlines, any size, colour and slight turn.

Owns: what each shape looks like and how it is named, once and many times.
"""

from __future__ import annotations

import math
from random import Random

from narrowtune.miniature.canvas import Canvas, Point, around
from narrowtune.miniature.marks import SHAPES
from narrowtune.miniature.palette import Ink, shade

PLURALS = {name: f"{name}s" for name in SHAPES} | {"cross": "crosses"}
"""How a shape is called where there are several."""

_TURN = 12  # degrees: a square must not become a diamond, nor a cross an X


def _star() -> list[Point]:
    return [
        (radius * math.sin(step * math.pi / 5), -radius * math.cos(step * math.pi / 5))
        for step in range(10)
        for radius in ((1.1 if step % 2 == 0 else 0.46),)
    ]


def _heart() -> list[Point]:
    points = []
    for step in range(28):
        t = step * math.tau / 28
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((math.sin(t) ** 3 * 1.05, -y / 15.5))
    return points


def _moon() -> list[Point]:
    """A circle from which a circle shifted to the right is cut."""
    outer = [_on_circle(angle) for angle in range(45, 316, 15)]
    inner = [(0.45 + 0.8 * x, 0.8 * y) for x, y in map(_on_circle, range(290, 69, -20))]
    return [(x + 0.2, y) for x, y in outer + inner]


def _on_circle(degrees: float) -> Point:
    return math.cos(math.radians(degrees)), math.sin(math.radians(degrees))


_OUTLINES: dict[str, list[Point]] = {
    "square": [(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)],
    "triangle": [(0, -1), (0.98, 0.8), (-0.98, 0.8)],
    "diamond": [(0, -1.1), (0.8, 0), (0, 1.1), (-0.8, 0)],
    "cross": [
        *((-0.32, -1), (0.32, -1), (0.32, -0.32), (1, -0.32), (1, 0.32), (0.32, 0.32)),
        *((0.32, 1), (-0.32, 1), (-0.32, 0.32), (-1, 0.32), (-1, -0.32), (-0.32, -0.32)),
    ],
    "star": _star(),
    "heart": _heart(),
    "moon": _moon(),
}


def draw_shape(
    canvas: Canvas, draw: Random, name: str, centre: Point, radius: float, ink: Ink
) -> None:
    """Draw the shape `name`, turned a little, now and then with a darker or lighter edge."""
    edge = None
    if draw.random() < 0.4:
        edge = shade(ink, 0.55 if max(ink.rgb) > 80 else 1.7)
    if name == "circle":
        canvas.ellipse(around(centre, 2 * radius), ink, name, edge=edge)
    elif name == "ring":
        width = radius * draw.uniform(0.32, 0.42)
        canvas.loop(around(centre, 2.1 * radius), ink, name, width)
    else:
        angle = math.radians(draw.uniform(-_TURN, _TURN))
        sine, cosine = radius * math.sin(angle), radius * math.cos(angle)
        points = [
            (centre[0] + x * cosine - y * sine, centre[1] + x * sine + y * cosine)
            for x, y in _OUTLINES[name]
        ]
        canvas.polygon(points, ink, name, edge=edge)
