"""Panels with an icon, a word and a number: mirrors InfoVQA.

Owns: panels below each other, and questions that go from one of their parts to the next.
"""

from __future__ import annotations

from functools import partial
from random import Random
from typing import NamedTuple

from narrowtune.miniature.canvas import SIZE, Canvas, fitting_height
from narrowtune.miniature.glyphs import PRINTED
from narrowtune.miniature.ground import plain_canvas
from narrowtune.miniature.item import Item, told
from narrowtune.miniature.marks import SHAPES
from narrowtune.miniature.palette import BRIGHT, Ink, ink_on, mix, reads_well, shade
from narrowtune.miniature.shapes import draw_shape
from narrowtune.miniature.words import TOPICS

WORDINGS = {
    "topic_number": ("What number is given for {topic}?", "How many percent is {topic}?"),
    "icon_topic": ("What word is beside the {icon}?", "Which word goes with the {icon}?"),
    "highest": ("Which has the highest number?", "What has the most percent?"),
    "lowest": ("Which has the lowest number?", "What has the least percent?"),
}
SUFFIX = "Answer with a word or phrase."

NUM_PANELS = 3

PITCH = 32
"""Pixels from one panel to the next."""

CLEAR = 2
"""How far the highest or lowest number is from the next where it is asked for."""


class Panel(NamedTuple):
    """One field of an infographic."""

    topic: str
    icon: str
    number: int


def make(draw: Random) -> Item:
    """Return one infographic to search."""
    kind = draw.choice(list(WORDINGS))
    topics, icons = draw.sample(TOPICS, NUM_PANELS), draw.sample(SHAPES, NUM_PANELS)
    numbers = _numbers(draw, kind)
    panels = tuple(Panel(*fields) for fields in zip(topics, icons, numbers, strict=True))
    return _ask(tuple(draw.sample(panels, NUM_PANELS)), kind, panels[0], draw)


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
        "icon_topic": asked.topic,
        "highest": order[-1].topic,
        "lowest": order[0].topic,
    }[kind]
    wording = draw.choice(WORDINGS[kind]).format(topic=asked.topic, icon=asked.icon)
    paint, again = partial(_paint, panels), partial(_again, panels)
    tell = partial(told, [f"{panel.icon} {panel.topic} {panel.number}" for panel in panels])
    return Item(kind, f"{wording}\n{SUFFIX}", (answer,), paint, again=again, tell=tell)


def _numbers(draw: Random, kind: str) -> list[int]:
    """Return different numbers; one asked for as highest or lowest is clear of the rest.

    The question is to compare what is read, not numbers next to each other.
    """
    while True:
        numbers = draw.sample(range(1, 10), NUM_PANELS)
        order = sorted(numbers)
        gap = order[-1] - order[-2] if kind == "highest" else order[1] - order[0]
        if kind not in ("highest", "lowest") or gap >= CLEAR:
            return numbers


def _paint(panels: tuple[Panel, ...], draw: Random) -> Canvas:
    canvas = plain_canvas(draw)
    face, percent = draw.choice(PRINTED), draw.random() < 0.5
    for place, panel in enumerate(panels):
        # Two rows of visual tokens below each other, the text in one of them.
        y = SIZE / 2 + (place - 1) * PITCH + draw.uniform(-2, 2)
        box = (draw.uniform(1, 3), y - PITCH / 2 + 2, SIZE - draw.uniform(1, 3), y + PITCH / 2 - 2)
        ground, ink = _inks(draw)
        canvas.rounded(box, draw.choice((1, 5)), ground, "panel")
        number = f"{panel.number}%" if percent else str(panel.number)
        text = ink_on(ground, draw)
        draw_shape(canvas, draw, panel.icon, (17, y), 11, ink)
        height = fitting_height(face, panel.topic, 44, 10.5, 8)
        canvas.text((54, y), panel.topic, text, height, face=face)
        height = fitting_height(face, number, 26, 13, 9)
        canvas.text((94, y), number, text, height, face=face)
    return canvas


def _inks(draw: Random) -> tuple[Ink, Ink]:
    """A panel's colour, and one for its icon that stands out on it."""
    while True:
        ground = mix(draw, draw.choice((*BRIGHT, "black")))
        ground = shade(ground, draw.choice((1.0, 2.5, 4.0)))
        ink = mix(draw, draw.choice((*BRIGHT, "white", "black")))
        if reads_well(ink, ground):
            return ground, ink
