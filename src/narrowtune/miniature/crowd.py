"""Many small things to be counted, and what stands among them.

Owns: which things are counted by a question's form, what is left out of the count, and their
drawing. Each thing is as small as a visual token and stands in a cell of its own.
"""

from __future__ import annotations

from random import Random
from typing import Literal, NamedTuple

from narrowtune.miniature import shapes, things
from narrowtune.miniature.canvas import Canvas
from narrowtune.miniature.ground import plain_canvas
from narrowtune.miniature.layout import scatter
from narrowtune.miniature.marks import SHAPES, THINGS
from narrowtune.miniature.palette import OBJECT_COLOURS, mix

CELLS = 7
"""Columns and rows of the grid that things stand in."""

PLURALS = shapes.PLURALS | things.PLURALS

Form = Literal["shape", "colour", "both", "thing"]
"""By what is counted: a shape, a colour, a shape of a colour, or a thing such as a house."""

FORMS: tuple[Form, ...] = ("shape", "colour", "both", "thing")


class Counted(NamedTuple):
    """One thing in the picture."""

    name: str
    colour: str


class Crowd(NamedTuple):
    """What there is, and what of it is asked about.

    Attributes:
        one, many: what is counted is called, for one and for several.
        things: all of them, the counted ones first.
    """

    one: str
    many: str
    things: tuple[Counted, ...]


def draw_crowd(draw: Random, form: Form, number: int, others: int) -> Crowd:
    """Return `number` things that are counted among `others` that are not."""
    names = THINGS if form == "thing" else SHAPES
    name, colour = draw.choice(names), draw.choice(OBJECT_COLOURS)
    other_names = [other for other in names if other != name]
    other_colours = [other for other in OBJECT_COLOURS if other != colour]
    found = [
        Counted(
            draw.choice(names) if form == "colour" else name,
            colour if form in ("colour", "both") else draw.choice(OBJECT_COLOURS),
        )
        for _ in range(number)
    ]
    for _ in range(others):
        # Where both are asked for, what shares one of them with the counted is the hard case.
        kept = draw.choice(("shape", "colour", "none")) if form == "both" else ""
        found.append(
            Counted(
                name
                if kept == "shape"
                else draw.choice(names if form == "colour" else other_names),
                colour
                if kept == "colour"
                else draw.choice(OBJECT_COLOURS if form in ("shape", "thing") else other_colours),
            )
        )
    return Crowd(*called(form, Counted(name, colour)), tuple(found))


def called(form: str, item: Counted) -> tuple[str, str]:
    """Return what is counted where things like `item` are, for one and for several."""
    several = PLURALS[item.name]
    return {
        "colour": (f"{item.colour} shape", f"{item.colour} shapes"),
        "both": (f"{item.colour} {item.name}", f"{item.colour} {several}"),
    }.get(form, (item.name, several))


def paint_crowd(crowd: tuple[Counted, ...], draw: Random) -> Canvas:
    """Draw the things, each in a cell of its own."""
    inks = [mix(draw, item.colour) for item in crowd]
    canvas = plain_canvas(draw, inks)
    places = scatter(draw, len(crowd), CELLS, CELLS, loose=1.0)
    for item, ink, place in zip(crowd, inks, places, strict=True):
        radius = draw.uniform(5.2, 6.2)
        if item.name in THINGS:
            foot = (place[0], place[1] + radius)
            right = draw.random() < 0.5
            things.draw_thing(canvas, draw, item.name, foot, 2 * radius, ink, right=right)
        else:
            shapes.draw_shape(canvas, draw, item.name, place, radius, ink)
    return canvas
