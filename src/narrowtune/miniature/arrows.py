"""Nodes with words, and arrows between nodes.

Owns: their drawing, for diagrams and for what prepares for them.
"""

from __future__ import annotations

import math
from random import Random

from narrowtune.miniature.canvas import Canvas, Point, around
from narrowtune.miniature.glyphs import Face
from narrowtune.miniature.palette import BRIGHT, Ink, ink_on, mix, shade

HEAD = 9.0
"""Length of an arrow's head, in pixels: it must be seen which way it points."""


def word_box(word: str) -> tuple[float, float]:
    """Return width and height of the box around a word."""
    return 9 + 5.8 * len(word), 14.5


def draw_word_node(
    canvas: Canvas, draw: Random, word: str, at: Point, box: tuple[float, float], face: Face
) -> None:
    """Draw a box around `at` with a word in it."""
    ground = shade(mix(draw, draw.choice(BRIGHT)), draw.uniform(1, 2.5))
    canvas.rounded(around(at, *box), draw.choice((1, 4, 7)), ground, "panel")
    canvas.text(at, word, ink_on(ground, draw), 7.5, face=face)


def arrow_in_words(start: str, end: str) -> str:
    """Say where an arrow goes."""
    return f"arrow from {start} to {end}"


def draw_arrow(
    canvas: Canvas,
    tail: Point,
    tip: Point,
    tail_box: tuple[float, float],
    tip_box: tuple[float, float],
    ink: Ink,
) -> None:
    """Draw an arrow between two boxes, from edge to edge."""
    dx, dy = tip[0] - tail[0], tip[1] - tail[1]
    length = math.hypot(dx, dy)
    dx, dy = dx / length, dy / length
    gap, end = _reach(tail_box, dx, dy), _reach(tip_box, dx, dy) + 1
    start = (tail[0] + gap * dx, tail[1] + gap * dy)
    point = (tip[0] - end * dx, tip[1] - end * dy)
    neck = (point[0] - HEAD * dx, point[1] - HEAD * dy)
    canvas.line([start, neck], ink, "arrow", 2)
    wings = [
        (neck[0] + side * 0.6 * HEAD * dy, neck[1] - side * 0.6 * HEAD * dx) for side in (-1, 1)
    ]
    canvas.polygon([point, *wings], ink, "tip")


def _reach(box: tuple[float, float], dx: float, dy: float) -> float:
    """How far a box extends from its middle in a direction."""
    sides = [half / 2 / abs(part) for half, part in zip(box, (dx, dy), strict=True) if part]
    return min(sides)
