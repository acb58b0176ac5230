"""A landscape with things in it: what street scenes, scene questions and captions share.

Owns: sky and land, and where things stand in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from narrowtune.miniature.canvas import SIZE, Canvas, around
from narrowtune.miniature.item import told
from narrowtune.miniature.palette import Ink, mix, stands_out
from narrowtune.miniature.things import draw_thing

WEATHERS = ("sunny", "cloudy", "rainy", "snowy")

_SKIES = {
    "sunny": ((168, 212, 246), (196, 226, 248)),
    "cloudy": ((186, 196, 208), (206, 212, 220)),
    "rainy": ((128, 138, 152), (148, 158, 172)),
    "snowy": ((196, 206, 220), (214, 222, 232)),
}
_LANDS = {
    "sunny": ((184, 218, 158), (226, 214, 186)),
    "cloudy": ((170, 200, 150), (208, 200, 182)),
    "rainy": ((150, 174, 138), (186, 178, 162)),
    "snowy": ((232, 236, 242), (222, 228, 238)),
}

_HALF_WIDTH = 0.62  # of the height: that of the widest thing, so that nothing leaves the picture


class Standing(NamedTuple):
    """A thing in a landscape.

    Attributes:
        name: one of `marks.THINGS`.
        colour: of its main part.
        x: of its middle, in pixels.
        depth: 0 at the horizon, 1 in front; what is nearer is lower and larger.
        right: whether it looks to the right.
    """

    name: str
    colour: str
    x: float
    depth: float
    right: bool = True


def side_of(item: Standing) -> str:
    """Return the third of the picture that a thing stands in: left, middle or right."""
    return ("left", "middle", "right")[min(2, int(3 * item.x / SIZE))]


def tell_landscape(weather: str, standing: Sequence[Standing], draw: Random) -> str:
    """Say what stands there: on which side, and how near, from 0 to 9.

    Weather is left out where it is an empty text.
    """
    facts = [
        f"{item.colour} {item.name} {side_of(item)} {round(9 * item.depth)}" for item in standing
    ]
    return told([weather, *facts] if weather else facts, draw)


def draw_landscape(
    draw: Random, weather: str, standing: Sequence[Standing], *, horizon: float = 44, tall: float
) -> Canvas:
    """Draw sky, land and what stands there, the farthest first.

    Args:
        draw: decides colours in their range.
        weather: one of `WEATHERS`.
        standing: the things.
        horizon: where land begins, in pixels from the top.
        tall: height of a thing in front, in pixels; at the horizon it is half of that.
    """
    sky, inks = _between(draw, *_SKIES[weather]), [mix(draw, item.colour) for item in standing]
    land = _land(draw, weather, inks)
    canvas = Canvas(land)
    canvas.rectangle((0, 0, SIZE, horizon), sky, "sky")
    _weather(canvas, draw, weather, horizon)
    pairs = zip(standing, inks, strict=True)
    for item, ink in sorted(pairs, key=lambda pair: pair[0].depth):
        height = tall * (0.5 + 0.5 * item.depth) * draw.uniform(0.95, 1.05)
        half = _HALF_WIDTH * height
        x = min(max(item.x, half), SIZE - half)
        foot = (x, horizon + 6 + item.depth * (SIZE - horizon - 10))
        draw_thing(canvas, draw, item.name, foot, height, ink, right=item.right)
    if weather in ("rainy", "snowy"):
        _fall(canvas, draw, weather)
    return canvas


def _weather(canvas: Canvas, draw: Random, weather: str, horizon: float) -> None:
    if weather == "sunny":
        at = (draw.uniform(12, SIZE - 12), draw.uniform(10, horizon * 0.4))
        canvas.ellipse(around(at, draw.uniform(14, 18)), mix(draw, "yellow"), "sky")
        return
    cloud = Ink("none", (244, 246, 248) if weather != "rainy" else (88, 96, 110))
    for _ in range(draw.randint(2, 3)):
        x, y = draw.uniform(10, SIZE - 10), draw.uniform(8, horizon * 0.5)
        for dx, dy, size in ((-8, 1, 11), (0, -2, 15), (8, 1, 11)):
            canvas.ellipse(around((x + dx, y + dy), size * 1.2, size * 0.9), cloud, "sky")


def _fall(canvas: Canvas, draw: Random, weather: str) -> None:
    """Rain or snow, before everything else."""
    for _ in range(30):
        x, y = draw.uniform(0, SIZE), draw.uniform(0, SIZE)
        if weather == "rainy":
            ink = Ink("none", (92, 122, 190))
            canvas.line([(x, y), (x - 2, y + 6)], ink, None, 1)
        else:
            canvas.ellipse(around((x, y), 3), Ink("white", (255, 255, 255)), None)


def _between(draw: Random, low: tuple[int, ...], high: tuple[int, ...]) -> Ink:
    red, green, blue = (round(draw.uniform(a, b)) for a, b in zip(low, high, strict=True))
    return Ink("none", (red, green, blue))


def _land(draw: Random, weather: str, inks: Sequence[Ink]) -> Ink:
    """The land on which most things stand out, of several tried."""
    lands = [_between(draw, *_LANDS[weather]) for _ in range(6)]
    return max(lands, key=lambda land: sum(stands_out(ink, land) for ink in inks))
