"""A few coloured shapes or things: what most of the curriculum shows.

Owns: their placing and their drawing.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from narrowtune.miniature.canvas import SIZE, Canvas
from narrowtune.miniature.ground import plain_canvas
from narrowtune.miniature.item import told
from narrowtune.miniature.marks import SHAPES, THINGS
from narrowtune.miniature.palette import OBJECT_COLOURS, mix
from narrowtune.miniature.shapes import draw_shape
from narrowtune.miniature.things import draw_thing


class Placed(NamedTuple):
    """A shape or thing: its name, its colour, and its column and row in a grid."""

    name: str
    colour: str
    column: int
    row: int

    @property
    def text(self) -> str:
        """What it is called: "red circle"."""
        return f"{self.colour} {self.name}"


SIDE = 3
"""Columns and rows of the grid."""

_COLUMNS = ("left", "middle", "right")
_ROWS = ("upper", "middle", "lower")
PLACES = tuple(f"{row} {column}" for row in _ROWS for column in _COLUMNS)
"""Of the grid that objects stand in, row by row."""


def draw_objects(draw: Random, number: int, *, things: bool = True) -> tuple[Placed, ...]:
    """Return objects whose names and colours all differ, no two in one column or row."""
    names = draw.sample((*SHAPES, *THINGS) if things else SHAPES, number)
    colours = draw.sample(OBJECT_COLOURS, number)
    columns, rows = draw.sample(range(SIDE), number), draw.sample(range(SIDE), number)
    return tuple(Placed(*fields) for fields in zip(names, colours, columns, rows, strict=True))


def tell_objects(objects: Sequence[Placed], draw: Random) -> str:
    """Say what stands where."""
    places = [f"{item.text} {PLACES[item.row * SIDE + item.column]}" for item in objects]
    return told(places, draw)


def paint_objects(objects: Sequence[Placed], draw: Random) -> Canvas:
    """Draw the objects, a single one larger and anywhere."""
    inks = [mix(draw, item.colour) for item in objects]
    canvas = plain_canvas(draw, inks)
    step = SIZE / SIDE
    for item, ink in zip(objects, inks, strict=True):
        alone = len(objects) == 1
        radius = draw.uniform(13, 30) if alone else draw.uniform(11, 16)
        loose = (SIZE / 2 - 1.15 * radius) if alone else 3.0
        middle = (SIZE / 2, SIZE / 2)
        if not alone:
            middle = ((item.column + 0.5) * step, (item.row + 0.5) * step)
        x = middle[0] + draw.uniform(-loose, loose)
        y = middle[1] + draw.uniform(-loose, loose)
        if item.name in THINGS:
            right = draw.random() < 0.5
            draw_thing(canvas, draw, item.name, (x, y + radius), 2 * radius, ink, right=right)
        else:
            draw_shape(canvas, draw, item.name, (x, y), radius, ink)
    return canvas
