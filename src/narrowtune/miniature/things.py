"""Things that stand in landscapes: a house, a tree, a car, drawn from a few primitives each.

Owns: what each thing looks like. The ink is what its colour is asked for by: a house's walls, a
tree's crown, a person's clothes.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from narrowtune.miniature.canvas import Canvas, Point, around
from narrowtune.miniature.marks import THINGS
from narrowtune.miniature.palette import Ink, mix, shade

PLURALS = {name: f"{name}s" for name in THINGS}
"""How a thing is called where there are several."""

PLURALS["person"] = "people"


class _Frame:
    """Unit coordinates: x from -1 to 1, y from -1 (top) to 1 (what it stands on)."""

    def __init__(self, canvas: Canvas, foot: Point, height: float, right: bool) -> None:
        self.canvas, self.half = canvas, height / 2
        self.x, self.y = foot[0], foot[1] - height / 2
        self.sign = 1 if right else -1

    def at(self, x: float, y: float) -> Point:
        return self.x + self.sign * x * self.half, self.y + y * self.half

    def polygon(self, points: list[Point], ink: Ink, what: str | None) -> None:
        self.canvas.polygon([self.at(x, y) for x, y in points], ink, what)

    def box(self, left: float, top: float, right: float, bottom: float) -> tuple[float, ...]:
        (x0, y0), (x1, y1) = self.at(left, top), self.at(right, bottom)
        return min(x0, x1), y0, max(x0, x1), y1

    def rectangle(self, box: tuple[float, ...], ink: Ink, what: str | None) -> None:
        left, top, right, bottom = self.box(*box)
        self.canvas.rectangle((left, top, right, bottom), ink, what)

    def disc(self, x: float, y: float, radius: float, ink: Ink, what: str | None) -> None:
        self.canvas.ellipse(around(self.at(x, y), 2 * radius * self.half), ink, what)


def draw_thing(
    canvas: Canvas,
    draw: Random,
    name: str,
    foot: Point,
    height: float,
    ink: Ink,
    *,
    right: bool = True,
) -> None:
    """Draw the thing `name`, `height` pixels high, standing on `foot`.

    Args:
        canvas: to draw on.
        draw: decides its proportions.
        name: one of `marks.THINGS`.
        foot: middle of its lower edge.
        height: in pixels.
        ink: of its main part.
        right: whether it looks to the right, where it can.
    """
    frame = _Frame(canvas, foot, height, right)
    _THINGS[name](frame, draw, ink)


def _house(frame: _Frame, draw: Random, ink: Ink) -> None:
    eaves = draw.uniform(-0.25, 0)
    frame.rectangle((-0.8, eaves, 0.8, 1), ink, "house")
    roof = mix(draw, "grey") if ink.name != "grey" else mix(draw, "brown")
    roof = shade(roof, draw.uniform(0.6, 1.1))
    frame.polygon([(-1, eaves), (0, -1), (1, eaves)], roof, None)
    dark = shade(mix(draw, "black"), 1.3)
    frame.rectangle((-0.2, 0.35, 0.15, 1), dark, None)
    frame.rectangle((0.35, 0.2, 0.65, 0.5), shade(mix(draw, "white"), 0.9), None)


def _tree(frame: _Frame, draw: Random, ink: Ink) -> None:
    trunk = mix(draw, "brown" if ink.name != "brown" else "black")
    frame.rectangle((-0.14, 0.1, 0.14, 1), trunk, None)
    if draw.random() < 0.5:
        frame.disc(0, -0.35, draw.uniform(0.58, 0.66), ink, "tree")
    else:
        frame.polygon([(-0.62, 0.4), (0, -1), (0.62, 0.4)], ink, "tree")


def _car(frame: _Frame, draw: Random, ink: Ink) -> None:
    roof = draw.uniform(-0.45, -0.3)
    frame.polygon([(-0.85, 0.15), (-0.6, roof), (0.2, roof), (0.55, 0.15)], ink, "car")
    frame.rectangle((-1.15, 0.1, 1.15, 0.75), ink, "car")
    glass = shade(mix(draw, "white"), 0.85)
    frame.polygon([(0.0, 0.1), (0.0, roof + 0.12), (0.15, roof + 0.12), (0.4, 0.1)], glass, None)
    dark = mix(draw, "black")
    for x in (-0.65, 0.65):
        frame.disc(x, 0.72, 0.28, dark, None)
    frame.disc(1.08, 0.32, 0.12, mix(draw, "yellow"), None)


def _boat(frame: _Frame, draw: Random, ink: Ink) -> None:
    frame.polygon([(-0.9, 0.45), (1.1, 0.35), (0.65, 1), (-0.65, 1)], ink, "boat")
    frame.canvas.line([frame.at(0, 0.45), frame.at(0, -1)], mix(draw, "brown"), None, 1.5)
    sail = shade(mix(draw, "white"), draw.uniform(0.85, 1))
    frame.polygon([(0.08, -0.95), (0.08, 0.25), (0.8, 0.25)], sail, None)


def _flower(frame: _Frame, draw: Random, ink: Ink) -> None:
    stem = mix(draw, "green")
    frame.canvas.line([frame.at(0, -0.3), frame.at(0, 1)], stem, None, 2)
    frame.polygon([(0, 0.8), (0.5, 0.3), (0.15, 0.9)], stem, None)
    for x, y in ((0, -0.72), (0.4, -0.42), (0.25, 0), (-0.25, 0), (-0.4, -0.42)):
        frame.disc(x, y, 0.29, ink, "flower")
    middle = mix(draw, "yellow" if ink.name not in ("yellow", "white", "orange") else "brown")
    frame.disc(0, -0.32, 0.2, middle, None)


def _person(frame: _Frame, draw: Random, ink: Ink) -> None:
    skin = shade(Ink("none", (222, 172, 132)), draw.uniform(0.5, 1.1))
    frame.polygon([(-0.3, -0.4), (0.3, -0.4), (0.36, 0.35), (-0.36, 0.35)], ink, "person")
    dark = shade(mix(draw, "grey"), 0.5)
    for x in (-0.2, 0.2):
        frame.canvas.line([frame.at(x, 0.35), frame.at(x, 1)], dark, None, 2.4)
    for x in (-0.3, 0.3):
        frame.canvas.line([frame.at(x, -0.3), frame.at(x * 1.9, 0.3)], ink, "person", 2)
    frame.disc(0, -0.7, 0.28, skin, None)


def _dog(frame: _Frame, draw: Random, ink: Ink) -> None:
    frame.rectangle((-0.85, -0.1, 0.6, 0.45), ink, "dog")
    for x in (-0.75, -0.4, 0.25, 0.5):
        frame.canvas.line([frame.at(x, 0.4), frame.at(x, 1)], ink, "dog", 2)
    frame.disc(0.75, -0.3, 0.38, ink, "dog")
    frame.rectangle((0.8, -0.32, 1.3, -0.02), ink, "dog")
    frame.polygon([(0.45, -0.5), (0.55, -1), (0.8, -0.6)], shade(ink, 0.7), None)
    frame.canvas.line([frame.at(-0.8, 0), frame.at(-1.2, -0.6)], ink, "dog", 2)


def _cup(frame: _Frame, draw: Random, ink: Ink) -> None:
    left, top, right, bottom = frame.box(0.3, -0.45, 1.05, 0.45)
    frame.canvas.loop((left, top, right, bottom), ink, "cup", max(1.5, frame.half * 0.16))
    narrow = draw.uniform(0.5, 0.65)
    frame.polygon([(-0.75, -0.8), (0.75, -0.8), (narrow, 1), (-narrow, 1)], ink, "cup")
    left, top, right, bottom = frame.box(-0.75, -1, 0.75, -0.6)
    frame.canvas.ellipse((left, top, right, bottom), shade(ink, 0.6), None)


_THINGS: dict[str, Callable[[_Frame, Random, Ink], None]] = {
    "house": _house,
    "tree": _tree,
    "car": _car,
    "boat": _boat,
    "flower": _flower,
    "person": _person,
    "dog": _dog,
    "cup": _cup,
}
