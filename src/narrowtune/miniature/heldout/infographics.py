"""Panels with an icon, a number and a word: mirrors InfoVQA.

Owns: panels in a square or in rows, and questions that go from one of their parts to another.
"""

from __future__ import annotations

from functools import partial
from random import Random
from typing import NamedTuple

from narrowtune.miniature.canvas import SIZE, Box, Canvas, fitting_height
from narrowtune.miniature.glyphs import PRINTED, Face
from narrowtune.miniature.ground import plain_canvas
from narrowtune.miniature.item import Item, told
from narrowtune.miniature.marks import SHAPES
from narrowtune.miniature.palette import BRIGHT, Ink, ink_on, mix, reads_well, shade
from narrowtune.miniature.shapes import draw_shape
from narrowtune.miniature.words import TOPICS

WORDINGS = {
    "topic_number": ("What number is given for {topic}?", "How many percent is {topic}?"),
    "icon_number": ("What number is beside the {icon}?", "Which number goes with the {icon}?"),
    "icon_topic": ("What word is beside the {icon}?", "Which word goes with the {icon}?"),
    "highest": ("Which has the highest number?", "What has the most percent?"),
    "lowest": ("Which has the lowest number?", "What has the least percent?"),
}
SUFFIX = "Answer with a word or phrase."

CLEAR = 2
"""How far the highest or lowest number is from the next where it is asked for."""


class Panel(NamedTuple):
    """One field of an infographic."""

    topic: str
    icon: str
    number: int


def make(draw: Random) -> Item:
    """Return one infographic to search."""
    count, kind = draw.choice((3, 4)), draw.choice(list(WORDINGS))
    topics, icons = draw.sample(TOPICS, count), draw.sample(SHAPES, count)
    numbers = _numbers(draw, count, kind)
    panels = tuple(Panel(*fields) for fields in zip(topics, icons, numbers, strict=True))
    return _ask(tuple(draw.sample(panels, count)), kind, panels[0], draw)


def _again(panels: tuple[Panel, ...], draw: Random) -> Item:
    """Ask something else; what is highest or lowest only where that is clear."""
    numbers = sorted(panel.number for panel in panels)
    fits = {
        "highest": numbers[-1] - numbers[-2] >= CLEAR,
        "lowest": numbers[1] - numbers[0] >= CLEAR,
    }
    kind = draw.choice([kind for kind in WORDINGS if fits.get(kind, True)])
    return _ask(panels, kind, draw.choice(panels), draw)


def _ask(panels: tuple[Panel, ...], kind: str, asked: Panel, draw: Random) -> Item:
    order = sorted(panels, key=lambda panel: panel.number)
    answer = {
        "topic_number": str(asked.number),
        "icon_number": str(asked.number),
        "icon_topic": asked.topic,
        "highest": order[-1].topic,
        "lowest": order[0].topic,
    }[kind]
    wording = draw.choice(WORDINGS[kind]).format(topic=asked.topic, icon=asked.icon)
    paint, again = partial(_paint, panels), partial(_again, panels)
    tell = partial(told, [f"{panel.icon} {panel.number} {panel.topic}" for panel in panels])
    return Item(kind, f"{wording}\n{SUFFIX}", (answer,), paint, again=again, tell=tell)


def _numbers(draw: Random, count: int, kind: str) -> list[int]:
    """Return different numbers; one asked for as highest or lowest is clear of the rest.

    The question is to compare what is read, not numbers next to each other.
    """
    while True:
        numbers = draw.sample(range(1, 10), count)
        order = sorted(numbers)
        gap = order[-1] - order[-2] if kind == "highest" else order[1] - order[0]
        if kind not in ("highest", "lowest") or gap >= CLEAR:
            return numbers


def _paint(panels: tuple[Panel, ...], draw: Random) -> Canvas:
    canvas = plain_canvas(draw)
    rows = len(panels) == 3
    face, percent = draw.choice(PRINTED), draw.random() < 0.5
    half, third = SIZE / 2, SIZE / 3
    for place, panel in enumerate(panels):
        if rows:
            box: Box = (2, place * third + 2, SIZE - 2, (place + 1) * third - 1)
        else:
            x, y = place % 2 * half, place // 2 * half
            box = (x + 2, y + 2, x + half - 1, y + half - 1)
        ground, ink = _inks(draw)
        canvas.rounded(box, draw.choice((1, 5)), ground, "panel")
        number = f"{panel.number}%" if percent else str(panel.number)
        text = ink_on(ground, draw)
        if rows:
            _row(canvas, draw, box, panel, number, ink, text, face)
        else:
            _square(canvas, draw, box, panel, number, ink, text, face)
    return canvas


def _inks(draw: Random) -> tuple[Ink, Ink]:
    """A panel's colour, and one for its icon that stands out on it."""
    while True:
        ground = mix(draw, draw.choice((*BRIGHT, "black")))
        ground = shade(ground, draw.choice((1.0, 2.5, 4.0)))
        ink = mix(draw, draw.choice((*BRIGHT, "white", "black")))
        if reads_well(ink, ground):
            return ground, ink


def _row(
    canvas: Canvas,
    draw: Random,
    box: Box,
    panel: Panel,
    number: str,
    ink: Ink,
    text: Ink,
    face: Face,
) -> None:
    y = (box[1] + box[3]) / 2
    draw_shape(canvas, draw, panel.icon, (17, y), 11, ink)
    height = fitting_height(face, number, 30, 13, 9)
    canvas.text((47, y), number, text, height, face=face)
    height = fitting_height(face, panel.topic, 42, 10.5, 8)
    canvas.text((86, y), panel.topic, text, height, face=face)


def _square(
    canvas: Canvas,
    draw: Random,
    box: Box,
    panel: Panel,
    number: str,
    ink: Ink,
    text: Ink,
    face: Face,
) -> None:
    left, top, right, bottom = box
    draw_shape(canvas, draw, panel.icon, (left + 12, top + 15), 9, ink)
    height = fitting_height(face, number, 28, 12.5, 8.5)
    canvas.text((left + 37, top + 15), number, text, height, face=face)
    height = fitting_height(face, panel.topic, right - left - 6, 11, 8)
    canvas.text(((left + right) / 2, bottom - 13), panel.topic, text, height, face=face)
