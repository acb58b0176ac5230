"""What lies behind and over a scene: backgrounds, light and noise.

Owns: how no two pictures have the same pixels, even where the same things are in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from random import Random

from PIL import Image, ImageChops

from narrowtune.miniature.canvas import SIZE, Canvas
from narrowtune.miniature.palette import Ink, shade, stands_out, tint

_TILE = 256
_TONES = ("pale", "pale", "pale", "middle", "dark")
_NOISE = (0, 8, 16, 28)
_TRIES = 12


def choose_ground(draw: Random, inks: Sequence[Ink] = (), tones: Sequence[str] = _TONES) -> Ink:
    """Return a background on which all `inks` stand out, or the best of several tried."""
    best, fewest = tint(draw, tones[0]), len(inks) + 1
    for _ in range(_TRIES):
        ground = tint(draw, draw.choice(tones))
        lost = sum(not stands_out(ink, ground) for ink in inks)
        if lost < fewest:
            best, fewest = ground, lost
        if not lost:
            break
    return best


def plain_canvas(draw: Random, inks: Sequence[Ink] = (), tones: Sequence[str] = _TONES) -> Canvas:
    """Return a canvas with a background for `inks`: flat, striped, chequered or dotted, faintly."""
    canvas = Canvas(choose_ground(draw, inks, tones))
    _PATTERNS[draw.randrange(len(_PATTERNS))](canvas, draw)
    return canvas


def _flat(canvas: Canvas, draw: Random) -> None:
    pass


def _stripes(canvas: Canvas, draw: Random) -> None:
    ink, step, lean = _faint(canvas, draw), draw.randint(7, 18), draw.uniform(-60, 60)
    for x in range(-SIZE, 2 * SIZE, step):
        canvas.line([(x, 0), (x + lean, SIZE)], ink, None, step / 3)


def _checks(canvas: Canvas, draw: Random) -> None:
    ink, step = _faint(canvas, draw), draw.randint(9, 20)
    for row in range(SIZE // step + 1):
        for column in range(row % 2, SIZE // step + 1, 2):
            x, y = column * step, row * step
            canvas.rectangle((x, y, x + step, y + step), ink, None)


def _dots(canvas: Canvas, draw: Random) -> None:
    ink, step = _faint(canvas, draw), draw.randint(10, 18)
    for x in range(draw.randrange(step), SIZE, step):
        for y in range(draw.randrange(step), SIZE, step):
            canvas.ellipse((x - 2, y - 2, x + 2, y + 2), ink, None)


_PATTERNS = (_flat, _flat, _stripes, _checks, _dots)


def _faint(canvas: Canvas, draw: Random) -> Ink:
    return shade(canvas.ground, draw.uniform(0.93, 0.97) if draw.random() < 0.7 else 1.08)


def develop(canvas: Canvas, draw: Random) -> Image.Image:
    """Return the finished picture of `canvas`, lit from some side and with some noise."""
    picture = canvas.finished()
    if draw.random() < 0.6:
        light = _light(draw.randrange(4), draw.choice((12, 24)))
        picture = ImageChops.add(picture, light, 1, -draw.choice((6, 12)))
    strength = draw.choice(_NOISE)
    if strength:
        x, y = draw.randrange(_TILE - SIZE), draw.randrange(_TILE - SIZE)
        noise = _noise(strength).crop((x, y, x + SIZE, y + SIZE))
        picture = ImageChops.add(picture, noise, 1, -strength // 2)
    return picture


@lru_cache(maxsize=8)
def _noise(strength: int) -> Image.Image:
    """A tile of even noise from 0 to `strength`; pictures take different cuts of it."""
    grain = Random("grain").randbytes(_TILE * _TILE * 3)
    levels = [value * (strength + 1) // 256 for value in range(256)]
    return Image.frombytes("RGB", (_TILE, _TILE), grain).point(levels * 3)


@lru_cache(maxsize=16)
def _light(side: int, strength: int) -> Image.Image:
    """Light that grows evenly from one side to the other, up to `strength`."""
    ramp = Image.linear_gradient("L").resize((SIZE, SIZE)).rotate(90 * side)
    ramp = ramp.point([value * strength // 255 for value in range(256)])
    return Image.merge("RGB", (ramp, ramp, ramp))
