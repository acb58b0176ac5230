"""How many there are, as a sentence: mirrors PixmoCount.

Owns: what is counted and what stands beside it. One to eight things are asked about equally
often. The number of other things is drawn on its own, so that how full a picture is does not give
the answer away.
"""

from __future__ import annotations

from functools import partial
from random import Random
from typing import NamedTuple

from narrowtune.miniature import shapes, things
from narrowtune.miniature.canvas import Canvas
from narrowtune.miniature.ground import plain_canvas
from narrowtune.miniature.item import Item
from narrowtune.miniature.layout import scatter
from narrowtune.miniature.marks import SHAPES, THINGS
from narrowtune.miniature.palette import OBJECT_COLOURS, mix

MOST = 8
MOST_OTHERS = 5

WORDINGS = ("How many {label} are in this image?", "How many {label} are there?")

PLURALS = shapes.PLURALS | things.PLURALS


class Thing(NamedTuple):
    """Something in the picture: its kind and its colour."""

    name: str
    colour: str


def make(draw: Random) -> Item:
    """Return one picture to count in."""
    kind = draw.choice(("shape", "colour", "both", "thing"))
    names = THINGS if kind == "thing" else SHAPES
    name, colour = draw.choice(names), draw.choice(OBJECT_COLOURS)
    number = draw.randint(1, MOST)
    other_names = [other for other in names if other != name]
    other_colours = [other for other in OBJECT_COLOURS if other != colour]
    counted, others = [], []
    for _ in range(number):
        counted.append(
            Thing(
                draw.choice(names) if kind == "colour" else name,
                colour if kind in ("colour", "both") else draw.choice(OBJECT_COLOURS),
            )
        )
    for _ in range(draw.randint(0, MOST_OTHERS)):
        # Where both are asked for, what shares one of them with the counted is the hard case.
        keep = draw.choice(("shape", "colour", "none")) if kind == "both" else kind
        same_name = kind == "both" and keep == "shape"
        any_name = kind == "colour"
        same_colour = kind == "both" and keep == "colour"
        any_colour = kind in ("shape", "thing")
        others.append(
            Thing(
                name if same_name else draw.choice(names if any_name else other_names),
                colour
                if same_colour
                else draw.choice(OBJECT_COLOURS if any_colour else other_colours),
            )
        )
    one, many = _labels(kind, name, colour)
    verb, label = ("is", one) if number == 1 else ("are", many)
    answer = f"There {verb} {number} {label} in this image."
    question = draw.choice(WORDINGS).format(label=many)
    return Item(kind, question, (answer, str(number)), partial(_paint, tuple(counted + others)))


def _labels(kind: str, name: str, colour: str) -> tuple[str, str]:
    if kind == "colour":
        return f"{colour} shape", f"{colour} shapes"
    if kind == "both":
        return f"{colour} {name}", f"{colour} {PLURALS[name]}"
    return name, PLURALS[name]


def _paint(objects: tuple[Thing, ...], draw: Random) -> Canvas:
    inks = [mix(draw, item.colour) for item in objects]
    canvas = plain_canvas(draw, inks)
    side = 3 if len(objects) <= 7 and draw.random() < 0.6 else 4
    largest = 13.5 if side == 3 else 10.5
    places = scatter(draw, len(objects), side, side, loose=2.5)
    for item, ink, place in zip(objects, inks, places, strict=True):
        radius = draw.uniform(0.78, 1) * largest
        if item.name in THINGS:
            foot = (place[0], place[1] + radius)
            right = draw.random() < 0.5
            things.draw_thing(canvas, draw, item.name, foot, 2 * radius, ink, right=right)
        else:
            shapes.draw_shape(canvas, draw, item.name, place, radius, ink)
    return canvas
