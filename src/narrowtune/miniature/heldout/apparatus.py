"""Drawings for school science: magnets, cups with thermometers, a scale, a map.

Owns: how they look; what is asked about them is in `science`.
"""

from __future__ import annotations

from random import Random

from narrowtune.miniature.canvas import SIZE, Canvas, around
from narrowtune.miniature.glyphs import FACES
from narrowtune.miniature.ground import plain_canvas
from narrowtune.miniature.palette import BRIGHT, Ink, ink_on, mix, shade
from narrowtune.miniature.shapes import draw_shape

_PALE = ("pale", "pale", "middle")
_SIDES = {"north": (0, -1), "south": (0, 1), "west": (-1, 0), "east": (1, 0)}


def draw_magnets(left: str, right: str, draw: Random) -> Canvas:
    """Draw two bar magnets side by side; each is named by its poles, from left to right."""
    canvas = plain_canvas(draw, tones=_PALE)
    y, high, wide = draw.uniform(36, 76), draw.uniform(20, 28), draw.uniform(20, 22)
    gap = draw.uniform(9, 15)
    first = (SIZE - 4 * wide - gap) / 2
    # Colours of poles are the same throughout a picture and say nothing by themselves.
    inks = dict(zip("NS", (mix(draw, name) for name in draw.sample(BRIGHT, 2)), strict=True))
    face = draw.choice(FACES[:2])
    for start, poles in ((first, left), (first + 2 * wide + gap, right)):
        for place, pole in enumerate(poles):
            x = start + place * wide
            canvas.rectangle((x, y - high / 2, x + wide, y + high / 2), inks[pole], "bar")
            canvas.text((x + wide / 2, y), pole, ink_on(inks[pole], draw), 11, face=face)
    return canvas


def draw_cups(levels: tuple[int, int], draw: Random) -> Canvas:
    """Draw two cups of water, each with a thermometer; levels go from 1 to 6."""
    canvas = plain_canvas(draw, tones=_PALE)
    water, glass = Ink("blue", (150, 196, 236)), Ink("grey", (120, 126, 134))
    red, base, step = mix(draw, "red"), SIZE - draw.uniform(12, 22), draw.uniform(9, 10)
    for x, level in zip((SIZE * 0.28, SIZE * 0.72), levels, strict=True):
        x += draw.uniform(-3, 3)
        canvas.rectangle((x - 19, base - 34, x + 19, base), water, "cup")
        for ends in ([(x - 19, base - 42), (x - 19, base)], [(x + 19, base - 42), (x + 19, base)]):
            canvas.line(ends, glass, None, 2)
        canvas.line([(x - 19, base), (x + 19, base)], glass, None, 2)
        tube = (x - 4, base - 78, x + 4, base - 8)
        canvas.rounded(tube, 4, Ink("white", (252, 252, 252)), None, edge=glass)
        canvas.ellipse(around((x, base - 8), 13), red, "bar")
        top = base - 12 - level * step
        canvas.rectangle((x - 2, top, x + 2, base - 8), red, "bar")
    return canvas


def draw_scale(loads: tuple[tuple[str, str], ...], heavy: int, draw: Random) -> Canvas:
    """Draw a beam scale with a coloured shape on either side; side `heavy` hangs lower."""
    inks = [mix(draw, colour) for colour, _ in loads]
    canvas = plain_canvas(draw, inks)
    metal = ink_on(canvas.ground, draw)
    swap = draw.random() < 0.5
    x, y, tilt = SIZE / 2, draw.uniform(28, 36), draw.uniform(9, 14)
    canvas.line([(x, y), (x, SIZE - 8)], metal, None, 3)
    canvas.line([(x - 16, SIZE - 8), (x + 16, SIZE - 8)], metal, None, 3)
    ends = []
    for place in range(2):
        side = (1 if place else -1) * (-1 if swap else 1)
        ends.append((x + side * 34, y + (tilt if place == heavy else -tilt)))
    canvas.line(ends, metal, None, 3)
    for (colour_shape, ink), (px, py) in zip(zip(loads, inks, strict=True), ends, strict=True):
        pan = py + 36
        for side in (-1, 1):
            canvas.line([(px, py), (px + side * 15, pan)], metal, None, 1)
        canvas.line([(px - 17, pan), (px + 17, pan)], metal, None, 2.5)
        draw_shape(canvas, draw, colour_shape[1], (px, pan - 11), 9, ink)
    return canvas


def draw_map(colours: tuple[str, ...], place: str, draw: Random) -> Canvas:
    """Draw four areas that meet in a point; a star stands at the edge `place`, such as "north"."""
    inks = [mix(draw, colour) for colour in colours]
    canvas = Canvas(inks[0])
    cut = (draw.uniform(46, 66), draw.uniform(46, 66))
    # Areas run from a point on the edge to the middle; their order round the map is free.
    lean = [draw.uniform(-14, 14) for _ in range(4)]
    corners = [(0.0, 0.0), (SIZE, 0.0), (SIZE, SIZE), (0.0, SIZE)]
    sides = [(cut[0] + lean[0], 0.0), (SIZE, cut[1] + lean[1])]
    sides += [(cut[0] + lean[2], SIZE), (0.0, cut[1] + lean[3])]
    for area, quarter in enumerate(draw.sample(range(4), 4)):
        points = [sides[quarter - 1], corners[quarter], sides[quarter], cut]
        canvas.polygon(points, inks[area], "panel", edge=shade(inks[area], 0.6))
    dx, dy = _SIDES[place]
    apart = draw.uniform(36, 42)
    at = tuple(SIZE / 2 + apart * step + draw.uniform(-8, 8) * (not step) for step in (dx, dy))
    disc = Ink("white", (252, 252, 252))
    canvas.ellipse(around((at[0], at[1]), 24), disc, "panel")
    draw_shape(canvas, draw, "star", (at[0], at[1]), 9, mix(draw, "black"))
    return canvas
