"""Named colours: what each may look like, and which can be told from a background.

Owns: `COLOURS`, `Ink`, the spread of every colour. A colour is never the same twice, and never so
far off that a person would call it by another of these names.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterable
from random import Random
from typing import NamedTuple

RGB = tuple[int, int, int]

_SPREAD: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "red": ((-0.015, 0.01), (0.8, 0.95), (0.78, 0.95)),
    "orange": ((0.075, 0.095), (0.88, 1.0), (0.93, 1.0)),
    "yellow": ((0.145, 0.165), (0.75, 0.95), (0.92, 1.0)),
    "green": ((0.32, 0.4), (0.65, 0.95), (0.42, 0.66)),
    "blue": ((0.59, 0.645), (0.75, 0.95), (0.65, 0.95)),
    "purple": ((0.755, 0.79), (0.6, 0.85), (0.45, 0.65)),
    "pink": ((0.91, 0.945), (0.36, 0.5), (0.95, 1.0)),
    "brown": ((0.06, 0.08), (0.65, 0.8), (0.36, 0.46)),
    "black": ((0.0, 1.0), (0.0, 0.15), (0.04, 0.13)),
    "white": ((0.0, 1.0), (0.0, 0.03), (0.95, 1.0)),
    "grey": ((0.0, 1.0), (0.0, 0.05), (0.5, 0.62)),
}

COLOURS = tuple(_SPREAD)
"""Every named colour."""

BRIGHT = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
"""Colours that are told from black, white and grey, whatever lies behind."""

OBJECT_COLOURS = (*BRIGHT, "black", "white")
"""Colours that things have; grey is for what stands around."""

_CONTRAST = 100
_DISTINCT = 150


class Ink(NamedTuple):
    """A colour as drawn: its name ("none" where it has none) and its value."""

    name: str
    rgb: RGB


def mix(draw: Random, name: str) -> Ink:
    """Return one of the colours that `name` may stand for."""
    hue, saturation, value = (draw.uniform(*span) for span in _SPREAD[name])
    return Ink(name, _rgb(hue, saturation, value))


def tint(draw: Random, tone: str) -> Ink:
    """Return an unnamed background colour.

    Args:
        draw: source of chance.
        tone: `pale`, `middle` or `dark`.
    """
    value, saturation = {
        "pale": ((0.84, 0.98), (0.02, 0.18)),
        "middle": ((0.58, 0.72), (0.05, 0.2)),
        "dark": ((0.12, 0.26), (0.1, 0.4)),
    }[tone]
    return Ink("none", _rgb(draw.random(), draw.uniform(*saturation), draw.uniform(*value)))


def shade(ink: Ink, factor: float) -> Ink:
    """Return `ink` darker (below 1) or lighter (above), under the same name."""
    if factor <= 1:
        return Ink(ink.name, _bytes(channel * factor for channel in ink.rgb))
    return Ink(ink.name, _bytes(255 - (255 - channel) / factor for channel in ink.rgb))


def ink_on(ground: Ink, draw: Random) -> Ink:
    """Return black or white ink, whichever is easier to read on `ground`."""
    return mix(draw, "black" if _luma(ground.rgb) > 120 else "white")


def distance(left: RGB, right: RGB) -> float:
    """Return how far two colours are apart; differences in lightness count most."""
    squares = sum((a - b) ** 2 for a, b in zip(left, right, strict=True))
    return abs(_luma(left) - _luma(right)) + squares**0.5 / 2


def stands_out(ink: Ink, ground: Ink) -> bool:
    """Whether a person tells `ink` from `ground` at a glance."""
    return distance(ink.rgb, ground.rgb) >= _CONTRAST


def reads_well(ink: Ink, ground: Ink) -> bool:
    """Whether small text in `ink` is legible on `ground`."""
    return distance(ink.rgb, ground.rgb) >= _DISTINCT


def _luma(rgb: RGB) -> float:
    return 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]


def _rgb(hue: float, saturation: float, value: float) -> RGB:
    return _bytes(255 * channel for channel in colorsys.hsv_to_rgb(hue % 1, saturation, value))


def _bytes(channels: Iterable[float]) -> RGB:
    red, green, blue = (round(channel) for channel in channels)
    return red, green, blue
