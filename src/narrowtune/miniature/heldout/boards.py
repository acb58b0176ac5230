"""Drawings for puzzles: pairs, crowds, rows of shapes.

Owns: how they look; what is asked about them is in `puzzles`.
"""

from __future__ import annotations

from random import Random

from narrowtune.miniature.canvas import SIZE, Canvas
from narrowtune.miniature.ground import plain_canvas
from narrowtune.miniature.layout import scatter
from narrowtune.miniature.marks import SHAPES
from narrowtune.miniature.palette import BRIGHT, ink_on, mix
from narrowtune.miniature.shapes import draw_shape

Coloured = tuple[str, str]
"""A colour and a shape."""

STEPS = {"above": (0, 1), "below": (0, -1), "left of": (1, 0), "right of": (-1, 0)}
"""Which way it is from the first of two shapes to the second, by where the first one is."""


def draw_pair(pair: tuple[Coloured, Coloured], relation: str, draw: Random) -> Canvas:
    """Draw two shapes, the first `above`, `below`, `left of` or `right of` the second."""
    inks = [mix(draw, colour) for colour, _ in pair]
    canvas = plain_canvas(draw, inks)
    dx, dy = STEPS[relation]
    apart, slip = draw.uniform(20, 26), draw.uniform(-12, 12)
    x, y = SIZE / 2 + draw.uniform(-8, 8), SIZE / 2 + draw.uniform(-8, 8)
    for side, (ink, (_, shape)) in zip((-1, 1), zip(inks, pair, strict=True), strict=True):
        at = (
            x + side * (dx * apart + (1 - abs(dx)) * slip),
            y + side * (dy * apart + (1 - abs(dy)) * slip),
        )
        draw_shape(canvas, draw, shape, at, draw.uniform(12, 17), ink)
    return canvas


def draw_corners(looks: tuple[Coloured, ...], draw: Random) -> Canvas:
    """Draw four shapes, one in each corner, row by row."""
    inks = [mix(draw, colour) for colour, _ in looks]
    canvas = plain_canvas(draw, inks)
    apart = draw.uniform(28, 34)
    for place, (ink, (_, shape)) in enumerate(zip(inks, looks, strict=True)):
        at = [SIZE / 2 + side * apart + draw.uniform(-4, 4) for side in _sides(place)]
        draw_shape(canvas, draw, shape, (at[0], at[1]), draw.uniform(10, 15), ink)
    return canvas


def _sides(place: int) -> tuple[int, int]:
    return 2 * (place % 2) - 1, 2 * (place // 2) - 1


def draw_crowd(colours: tuple[str, ...], draw: Random) -> Canvas:
    """Draw a shape in each of `colours`, anywhere."""
    inks = [mix(draw, colour) for colour in colours]
    canvas = plain_canvas(draw, inks)
    places = scatter(draw, len(colours), 4, 4, loose=2.5)
    same = draw.choice(SHAPES) if draw.random() < 0.5 else ""
    for ink, at in zip(inks, places, strict=True):
        draw_shape(canvas, draw, same or draw.choice(SHAPES), at, draw.uniform(8, 10.5), ink)
    return canvas


def draw_row(shapes: tuple[str, ...], draw: Random) -> Canvas:
    """Draw shapes from left to right in two rows of three, and a question mark at the end."""
    inks = {shape: mix(draw, draw.choice(BRIGHT)) for shape in dict.fromkeys(shapes)}
    canvas = plain_canvas(draw, list(inks.values()))
    rows, radius = (draw.uniform(30, 36), draw.uniform(74, 82)), draw.uniform(11, 14)
    for place in range(6):
        at = (20 + place % 3 * 36, rows[place // 3])
        if place < len(shapes):
            draw_shape(canvas, draw, shapes[place], at, radius, inks[shapes[place]])
        else:
            canvas.text(at, "?", ink_on(canvas.ground, draw), 18)
    return canvas


def draw_sizes(shapes: tuple[str, ...], draw: Random) -> Canvas:
    """Draw shapes anywhere, the first of them clearly the largest."""
    inks = [mix(draw, draw.choice(BRIGHT)) for _ in shapes]
    canvas = plain_canvas(draw, inks)
    radii = [draw.uniform(21, 24)] + [draw.uniform(9, 14) for _ in shapes[1:]]
    places = scatter(draw, len(shapes), 2, 2, loose=3)
    for shape, ink, radius, at in zip(shapes, inks, radii, places, strict=True):
        draw_shape(canvas, draw, shape, at, radius, ink)
    return canvas
