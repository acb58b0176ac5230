"""How birds are drawn: four builds, three wings, three heads.

Owns: what a bird may be told by, and its geometry. Unit coordinates lie between -1 and 1; the bird
looks to the right and may be mirrored.
"""

from __future__ import annotations

import math
from random import Random
from typing import NamedTuple

from narrowtune.miniature.canvas import SIZE, Canvas, Point
from narrowtune.miniature.ground import plain_canvas
from narrowtune.miniature.palette import Ink, mix, shade, stands_out

FAMILIES = ("finch", "heron", "duck", "owl")
WINGS = ("plain", "bar", "spots")
HEADS = ("smooth", "crest", "mask")

_WING_SHADE = 0.62  # of the coat


class _Build(NamedTuple):
    """Ellipses as (x, y, half width, half height); the beak and tail as outlines."""

    body: tuple[float, float, float, float]
    head: tuple[float, float, float]
    beak: tuple[Point, ...]
    tail: tuple[Point, ...]
    leg: float
    neck: tuple[Point, ...] = ()


_BUILDS = {
    "finch": _Build(
        body=(-0.05, 0.1, 0.52, 0.42),
        head=(0.38, -0.35, 0.3),
        beak=((0.62, -0.48), (0.92, -0.3), (0.62, -0.2)),
        tail=((-0.45, 0.0), (-1.05, -0.1), (-1.0, 0.2), (-0.4, 0.3)),
        leg=0.9,
    ),
    "heron": _Build(
        body=(-0.2, 0.08, 0.56, 0.4),
        head=(0.42, -0.78, 0.2),
        beak=((0.58, -0.86), (1.15, -0.68), (0.58, -0.66)),
        tail=((-0.6, -0.05), (-1.02, 0.3), (-0.55, 0.3)),
        leg=1.15,
        neck=((0.1, 0.0), (0.45, -0.3), (0.4, -0.7)),
    ),
    "duck": _Build(
        body=(-0.1, 0.3, 0.75, 0.38),
        head=(0.55, -0.3, 0.27),
        beak=((0.75, -0.34), (1.15, -0.24), (1.15, -0.12), (0.75, -0.12)),
        tail=((-0.7, 0.2), (-1.08, -0.1), (-0.6, 0.45)),
        leg=0.0,
        neck=((0.45, 0.2), (0.52, -0.1), (0.55, -0.3)),
    ),
    "owl": _Build(
        body=(0.0, 0.3, 0.48, 0.6),
        head=(0.0, -0.42, 0.44),
        beak=((-0.1, -0.38), (0.1, -0.38), (0.0, -0.15)),
        tail=((-0.22, 0.8), (0.22, 0.8), (0.12, 1.1), (-0.12, 1.1)),
        leg=0.0,
    ),
}


class _Pose:
    """Where unit coordinates lie in the picture."""

    def __init__(self, draw: Random) -> None:
        self.scale = draw.uniform(33, 41)
        self.x = SIZE / 2 + draw.uniform(-7, 7)
        self.y = SIZE / 2 + draw.uniform(-4, 4)
        self.sign = draw.choice((-1, 1))
        self.turn = math.radians(draw.uniform(-8, 8))

    def at(self, x: float, y: float) -> Point:
        sine, cosine = math.sin(self.turn), math.cos(self.turn)
        x, y = x * cosine - y * sine, x * sine + y * cosine
        return self.x + self.sign * self.scale * x, self.y + self.scale * y

    def oval(self, x: float, y: float, wide: float, high: float) -> list[Point]:
        steps = [math.tau * step / 24 for step in range(24)]
        return [self.at(x + wide * math.cos(t), y + high * math.sin(t)) for t in steps]


def draw_coat(draw: Random) -> str:
    """Return the colour of one bird."""
    return draw.choice(("red", "orange", "yellow", "green", "blue", "purple", "brown"))


def paint_bird(family: str, wing: str, head: str, colour: str, draw: Random) -> Canvas:
    """Draw one bird.

    Args:
        family: one of `FAMILIES`, its build.
        wing: one of `WINGS`.
        head: one of `HEADS`.
        colour: name of its body's colour.
        draw: decides pose and proportions.
    """
    coat, mark = mix(draw, colour), mix(draw, draw.choice(("black", "white")))
    if not stands_out(mark, shade(coat, _WING_SHADE)):
        mark = mix(draw, "white")
    canvas = plain_canvas(draw, [coat], tones=("pale", "pale", "middle"))
    _draw_bird(canvas, draw, family, wing, head, coat, mark)
    return canvas


def _draw_bird(
    canvas: Canvas, draw: Random, family: str, wing: str, head: str, coat: Ink, sign: Ink
) -> None:
    """Draw one bird whose coat has one colour, and what it is told by another."""
    pose, build = _Pose(draw), _BUILDS[family]
    bill = mix(draw, "orange" if coat.name not in ("orange", "yellow") else "grey")
    x, y, wide, high = build.body
    _legs(canvas, pose, build, shade(bill, 0.8))
    canvas.polygon([pose.at(*point) for point in build.tail], shade(coat, 0.75), "bird")
    if build.neck:
        neck = [pose.at(*point) for point in build.neck]
        canvas.line(neck, coat, "bird", 0.24 * pose.scale)
    canvas.polygon(pose.oval(x, y, wide, high), coat, "bird")
    _wing(canvas, pose, build, wing, shade(coat, _WING_SHADE), sign)
    _crest(canvas, pose, build, head, sign)
    canvas.polygon(pose.oval(*build.head[:2], build.head[2], build.head[2]), coat, "bird")
    if head == "mask":
        _mask(canvas, pose, build, family, sign)
    canvas.polygon([pose.at(*point) for point in build.beak], bill, "beak")
    _eyes(canvas, pose, build, family, masked=head == "mask" and sign.name == "black")


def _legs(canvas: Canvas, pose: _Pose, build: _Build, ink: Ink) -> None:
    if build.leg:
        for x in (-0.12, 0.14):
            foot = pose.at(x + 0.05, build.leg)
            canvas.line([pose.at(x, 0.2), foot], ink, None, 1.8)


def _wing(canvas: Canvas, pose: _Pose, build: _Build, wing: str, ink: Ink, sign: Ink) -> None:
    x, y, wide, high = build.body
    x, wide, high = x - 0.08 * wide, 0.68 * wide, 0.62 * high
    canvas.polygon(pose.oval(x, y, wide, high), ink, "bird")
    if wing == "bar":
        ends = [pose.at(x + side * 0.12, y + side * 0.8 * high) for side in (-1, 1)]
        canvas.line(ends, sign, "feather", 0.17 * pose.scale)
    elif wing == "spots":
        for dx, dy in ((-0.58, 0.0), (0.0, -0.5), (0.0, 0.5), (0.58, 0.0)):
            spot = pose.oval(x + dx * wide, y + dy * high, 0.08, 0.08)
            canvas.polygon(spot, sign, "feather")


def _crest(canvas: Canvas, pose: _Pose, build: _Build, head: str, sign: Ink) -> None:
    if head == "crest":
        x, y, radius = build.head
        for lean in (-0.3, -0.12, 0.06):
            tip = pose.at(x + 2.2 * lean, y - radius - 0.28 + abs(lean) * 0.4)
            foot = (pose.at(x + lean - 0.1, y - 0.6 * radius), pose.at(x + lean + 0.14, y - radius))
            canvas.polygon([tip, *foot], sign, "feather")


def _mask(canvas: Canvas, pose: _Pose, build: _Build, family: str, sign: Ink) -> None:
    x, y, radius = build.head
    if family == "owl":
        band = ((-0.95, -0.38), (0.95, -0.38), (0.95, 0.22), (-0.95, 0.22))
    else:
        band = ((-0.9, -0.4), (1.0, -0.4), (1.0, 0.3), (-0.9, 0.3))
    canvas.polygon([pose.at(x + dx * radius, y + dy * radius) for dx, dy in band], sign, "feather")


def _eyes(canvas: Canvas, pose: _Pose, build: _Build, family: str, *, masked: bool) -> None:
    x, y, radius = build.head
    dark, light = Ink("black", (15, 15, 15)), Ink("white", (250, 250, 245))
    if family == "owl":
        for side in (-1, 1):
            canvas.polygon(pose.oval(x + side * 0.2, y - 0.06, 0.15, 0.15), light, None)
            canvas.polygon(pose.oval(x + side * 0.2, y - 0.06, 0.07, 0.07), dark, None)
    else:
        at = pose.oval(x + 0.3 * radius, y - 0.1 * radius, 0.07, 0.07)
        canvas.polygon(at, light if masked else dark, None)
