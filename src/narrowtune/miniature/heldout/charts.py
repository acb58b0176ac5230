"""Values of bar charts, as numbers or words: mirrors ChartQA.

Owns: upright and lying bars, with values written beside them or read off lines. Values are whole
and from 1 to 9.
"""

from __future__ import annotations

from functools import partial
from random import Random
from typing import NamedTuple

from narrowtune.miniature.canvas import SIZE, Box, Canvas, Point
from narrowtune.miniature.ground import plain_canvas
from narrowtune.miniature.item import Item, told
from narrowtune.miniature.palette import BRIGHT, Ink, ink_on, mix, shade
from narrowtune.miniature.words import MONTHS

HIGHEST = 9
MOST_BARS = 4

WORDINGS = {
    "colour_value": ("What is the value of the {a} bar?", "What value does the {a} bar have?"),
    "label_value": ("What is the value in {a}?", "What is the value of the bar for {a}?"),
    "highest": ("What colour is the longest bar?", "Which colour has the highest value?"),
    "lowest": ("What colour is the shortest bar?", "Which colour has the lowest value?"),
    "compare": ("Is the {a} bar longer than the {b} bar?", "Is {a} higher than {b}?"),
}
SUFFIX = "Answer with a single word."


class Bar(NamedTuple):
    """A bar: what is written under it, its colour and its value."""

    label: str
    colour: str
    value: int


def make(draw: Random) -> Item:
    """Return one chart to read."""
    kind = draw.choice(list(WORDINGS))
    number = draw.randint(3, MOST_BARS)
    first = draw.randrange(len(MONTHS))
    labels = [MONTHS[(first + place) % len(MONTHS)] for place in range(number)]
    colours = draw.sample(BRIGHT, number)
    values = draw.sample(range(1, HIGHEST + 1), number)
    a, b = draw.sample(range(number), 2)
    bars = tuple(Bar(*fields) for fields in zip(labels, colours, values, strict=True))
    return _ask(bars, kind, a, b, draw)


def _again(bars: tuple[Bar, ...], draw: Random) -> Item:
    """Ask something else about the chart."""
    a, b = draw.sample(range(len(bars)), 2)
    return _ask(bars, draw.choice(list(WORDINGS)), a, b, draw)


def _ask(bars: tuple[Bar, ...], kind: str, a: int, b: int, draw: Random) -> Item:
    order = sorted(bars, key=lambda bar: bar.value)
    answer = {
        "colour_value": str(bars[a].value),
        "label_value": str(bars[a].value),
        "highest": order[-1].colour,
        "lowest": order[0].colour,
        "compare": "yes" if bars[a].value > bars[b].value else "no",
    }[kind]
    names = [bar.label if kind == "label_value" else bar.colour for bar in bars]
    wording = draw.choice(WORDINGS[kind]).format(a=names[a], b=names[b])
    paint, again = partial(_paint, bars), partial(_again, bars)
    tell = partial(told, [f"{bar.label} {bar.colour} {bar.value}" for bar in bars])
    return Item(kind, f"{wording}\n{SUFFIX}", (answer,), paint, again=again, tell=tell)


def _paint(bars: tuple[Bar, ...], draw: Random) -> Canvas:
    inks = [mix(draw, bar.colour) for bar in bars]
    canvas = plain_canvas(draw, inks, tones=("pale", "pale", "pale", "dark"))
    upright, written = draw.random() < 0.65, draw.random() < 0.5
    left = 18 if upright else 23
    frame = (left, 8 + draw.uniform(0, 6), SIZE - 4 - draw.uniform(0, 6), SIZE - 16)
    # Under four bars, larger names of months would touch.
    tall = 6.5 if upright and len(bars) == MOST_BARS else 7.5
    axis = ink_on(canvas.ground, draw)
    _axes(canvas, frame, axis, upright=upright, written=written)
    thick = draw.uniform(0.6, 0.85)
    for place, (bar, ink) in enumerate(zip(bars, inks, strict=True)):
        box, label, value = _place(frame, place, len(bars), bar.value, thick, upright=upright)
        canvas.rectangle(box, ink, "bar")
        canvas.text(label, bar.label, axis, tall)
        if written:
            canvas.text(value, str(bar.value), axis, 8)
    return canvas


def _place(
    frame: Box, place: int, number: int, value: int, thick: float, *, upright: bool
) -> tuple[Box, Point, Point]:
    """Where a bar stands, where its label and where its value."""
    left, top, right, bottom = frame
    if upright:
        slot = (right - left) / number
        x, height = left + (place + 0.5) * slot, (bottom - top) * value / (HIGHEST + 1)
        half = slot * thick / 2
        box = (x - half, bottom - height, x + half, bottom)
        return box, (x, bottom + 8), (x, bottom - height - 5.5)
    slot = (bottom - top) / number
    y, width = top + (place + 0.5) * slot, (right - left) * value / (HIGHEST + 1)
    half = slot * thick / 2
    box = (left, y - half, left + width, y + half)
    return box, (left - 11, y), (left + width + 6, y)


def _axes(canvas: Canvas, frame: Box, ink: Ink, *, upright: bool, written: bool) -> None:
    left, top, right, bottom = frame
    if not written:
        faint = shade(canvas.ground, 0.8) if ink.name == "black" else shade(canvas.ground, 1.4)
        for value in range(1, HIGHEST + 1):
            share = value / (HIGHEST + 1)
            x, y = left + share * (right - left), bottom - share * (bottom - top)
            ends = [(left, y), (right, y)] if upright else [(x, top), (x, bottom)]
            canvas.line(ends, faint, None, 1 if value % 2 else 1.5)
            # Every second number: all of them would be too small to read.
            if value % 2 == 0:
                canvas.text((left - 6, y) if upright else (x, bottom + 6), str(value), ink, 6)
    canvas.line([(left, top), (left, bottom), (right, bottom)], ink, None, 1)
