"""How tissue looks: fields of stripes, rings, grains, fibres, meshes and blots.

Owns: the six textures and the colours of stains.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from random import Random

from narrowtune.miniature.canvas import SIZE, Canvas, Point, around
from narrowtune.miniature.palette import Ink, mix, shade

_STAINS = {"eosin": "pink", "toluidine": "purple", "trichrome": "green", "silver": "brown"}

_MIDDLE = SIZE / 2


def draw_tissue(
    draw: Random, tissue: str, stain: str, *, dense: bool, cyst: Sequence[str]
) -> Canvas:
    """Draw a slide.

    Args:
        draw: decides everything else.
        tissue: its texture.
        stain: its colour.
        dense: whether there are many nuclei.
        cyst: `upper` or `lower` and `left` or `right`, or nothing.
    """
    ink = mix(draw, _STAINS[stain])
    canvas = Canvas(Ink(ink.name, shade(ink, draw.uniform(2.6, 3.6)).rgb))
    _TEXTURES[tissue](canvas, draw, shade(ink, draw.uniform(0.85, 1.15)))
    nucleus = shade(ink, 0.3)
    number = draw.randint(26, 36) if dense else draw.randint(3, 7)
    for _ in range(number):
        x, y = draw.uniform(3, SIZE - 3), draw.uniform(3, SIZE - 3)
        box = around((x, y), draw.uniform(4, 5.5), draw.uniform(4, 5.5))
        canvas.ellipse(box, nucleus, None)
    if cyst:
        _cyst(canvas, draw, ink, cyst)
    return canvas


def _cyst(canvas: Canvas, draw: Random, ink: Ink, place: Sequence[str]) -> None:
    x = _MIDDLE + draw.uniform(19, 31) * (-1 if "left" in place else 1)
    y = _MIDDLE + draw.uniform(19, 31) * (-1 if "upper" in place else 1)
    wide, high = draw.uniform(24, 34), draw.uniform(24, 34)
    canvas.ellipse(around((x, y), wide + 7, high + 7), shade(ink, 0.45), "cell")
    canvas.ellipse(around((x, y), wide, high), Ink("white", (250, 246, 238)), "cell")


def _lamina(canvas: Canvas, draw: Random, ink: Ink) -> None:
    """Layers: wavy parallel bands in some direction."""
    angle, step = draw.uniform(0, math.pi), draw.uniform(9, 14)
    along, across = (math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))
    swing, bend = draw.uniform(1.5, 4), draw.uniform(0.06, 0.12)
    offset = -80 + draw.uniform(0, step)
    while offset < 80:
        points: list[Point] = []
        for t in range(-80, 81, 10):
            shift = offset + swing * math.sin(bend * t + offset / 40)
            points.append(
                (
                    _MIDDLE + t * along[0] + shift * across[0],
                    _MIDDLE + t * along[1] + shift * across[1],
                )
            )
        canvas.line(points, ink, "cell", step * draw.uniform(0.4, 0.5))
        offset += step


def _follicle(canvas: Canvas, draw: Random, ink: Ink) -> None:
    """Follicles: rings with a clear middle."""
    for x, y in _field(draw, 24):
        size = draw.uniform(16, 22)
        canvas.loop(around((x, y), size, size * draw.uniform(0.85, 1.1)), ink, "cell", 4.2)


def _granule(canvas: Canvas, draw: Random, ink: Ink) -> None:
    """Granules: full round grains."""
    for x, y in _field(draw, 15):
        canvas.ellipse(around((x, y), draw.uniform(8, 11)), ink, "cell")


def _stroma(canvas: Canvas, draw: Random, ink: Ink) -> None:
    """Fibres: short strokes in all directions."""
    for x, y in _field(draw, 13):
        angle, length = draw.uniform(0, math.pi), draw.uniform(7, 11)
        dx, dy = length * math.cos(angle), length * math.sin(angle)
        bow = (x - dy * 0.3, y + dx * 0.3)
        canvas.line([(x - dx, y - dy), bow, (x + dx, y + dy)], ink, "cell", 2.4)


def _lattice(canvas: Canvas, draw: Random, ink: Ink) -> None:
    """A mesh: two sets of thin straight lines."""
    first, step = draw.uniform(0, math.pi), draw.uniform(12, 17)
    for angle in (first, first + draw.uniform(1.2, 1.9)):
        dx, dy = 90 * math.cos(angle), 90 * math.sin(angle)
        offset = -80 + draw.uniform(0, step)
        while offset < 80:
            x, y = _MIDDLE - offset * dy / 90, _MIDDLE + offset * dx / 90
            canvas.line([(x - dx, y - dy), (x + dx, y + dy)], ink, "cell", 2.6)
            offset += step


def _plaque(canvas: Canvas, draw: Random, ink: Ink) -> None:
    """Blots: large, uneven, with bays."""
    for x, y in _field(draw, 38):
        size, points = draw.uniform(15, 19), []
        for step in range(14):
            angle, radius = step * math.tau / 14, size * draw.uniform(0.55, 1.15)
            points.append((x + radius * math.cos(angle), y + radius * math.sin(angle)))
        canvas.polygon(points, ink, "cell")


def _field(draw: Random, step: float) -> list[Point]:
    """Places all over the slide, about `step` apart."""
    places = []
    rows = int(SIZE / step) + 2
    for row in range(rows):
        for column in range(rows):
            x = (column + (row % 2) / 2 - 0.5) * step + draw.uniform(-0.2, 0.2) * step
            y = (row - 0.5) * step + draw.uniform(-0.2, 0.2) * step
            places.append((x, y))
    return places


_TEXTURES: dict[str, Callable[[Canvas, Random, Ink], None]] = {
    "lamina": _lamina,
    "follicle": _follicle,
    "granule": _granule,
    "stroma": _stroma,
    "lattice": _lattice,
    "plaque": _plaque,
}
