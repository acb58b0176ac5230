"""Dials and hands, for clocks and for what prepares for them.

Owns: their drawing.
"""

from __future__ import annotations

import math
from random import Random

from narrowtune.miniature.canvas import SIZE, Canvas, Point, around
from narrowtune.miniature.ground import plain_canvas
from narrowtune.miniature.palette import BRIGHT, Ink, mix, reads_well, shade


def draw_dial(draw: Random) -> tuple[Canvas, Point, float, Ink, Ink]:
    """Draw a dial without hands.

    Returns:
        The canvas, the dial's middle and radius, the colour for hands, and the dial's own.
    """
    radius = draw.uniform(42, 50)
    room = SIZE / 2 - radius - 3
    centre = (SIZE / 2 + draw.uniform(-room, room), SIZE / 2 + draw.uniform(-room, room))
    rim = mix(draw, draw.choice((*BRIGHT, "black", "grey", "white")))
    face, hands = _colours(draw)
    canvas = plain_canvas(draw, [rim])
    _dial(canvas, draw, centre, radius, rim, face)
    _numbers(canvas, draw, centre, radius, hands)
    return canvas, centre, radius, hands, face


def _colours(draw: Random) -> tuple[Ink, Ink]:
    """The dial's colour and one that stands out on it."""
    while True:
        face = mix(draw, draw.choice(("white", "white", "black", "yellow", "pink", "blue")))
        hands = mix(draw, draw.choice(("black", "white", "blue", "red", "brown")))
        if face.name == "black" and hands.name == "blue":
            continue  # bright enough by the numbers, but thin lines vanish
        if reads_well(hands, face):
            return face, hands


def _dial(canvas: Canvas, draw: Random, centre: Point, radius: float, rim: Ink, face: Ink) -> None:
    inner = 2 * radius - draw.uniform(4, 10)
    if draw.random() < 0.75:
        canvas.ellipse(around(centre, 2 * radius), rim, "dial")
        canvas.ellipse(around(centre, inner), face, "dial")
    else:
        canvas.rounded(around(centre, 2 * radius), 8, rim, "dial")
        canvas.rounded(around(centre, inner), 6, face, "dial", edge=shade(face, 0.8))


def _numbers(canvas: Canvas, draw: Random, centre: Point, radius: float, ink: Ink) -> None:
    style = draw.choice(("all", "four", "ticks", "dots"))
    for hour in range(1, 13):
        if style == "all" or (style == "four" and hour % 3 == 0):
            height = 6.5 if style == "all" else 8
            canvas.text(_polar(centre, hour / 12, radius * 0.76), str(hour), ink, height)
        elif style == "dots":
            size = 5 if hour % 3 == 0 else 3
            canvas.ellipse(around(_polar(centre, hour / 12, radius * 0.8), size), ink, None)
        else:
            start = _polar(centre, hour / 12, radius * (0.72 if hour % 3 == 0 else 0.8))
            canvas.line([start, _polar(centre, hour / 12, radius * 0.88)], ink, None, 2)


def draw_hand(
    canvas: Canvas, centre: Point, turn: float, length: float, ink: Ink, width: float
) -> None:
    """Draw a hand, `turn` of a full turn clockwise from the top."""
    tail = _polar(centre, turn + 0.5, length * 0.15)
    canvas.line([tail, _polar(centre, turn, length)], ink, "hand", width)


def _polar(centre: Point, turn: float, radius: float) -> Point:
    """The point `radius` from the centre, `turn` of a full turn clockwise from the top."""
    angle = math.tau * turn
    return centre[0] + radius * math.sin(angle), centre[1] - radius * math.cos(angle)
