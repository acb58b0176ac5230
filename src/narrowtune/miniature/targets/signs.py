"""What is written on a sign, a book, a shirt: mirrors TextVQA.

Owns: what carries text, and the questions that name it. Words come from a list of common ones,
numbers have two or three digits; nothing but reading gives the answer.
"""

from __future__ import annotations

from functools import partial
from random import Random
from typing import NamedTuple

from narrowtune.miniature.canvas import SIZE, Box, Canvas, fitting_height
from narrowtune.miniature.glyphs import FACES
from narrowtune.miniature.ground import plain_canvas
from narrowtune.miniature.item import Item
from narrowtune.miniature.palette import BRIGHT, Ink, ink_on, mix, shade
from narrowtune.miniature.words import SIGNS

CARRIERS = ("sign", "banner", "book", "shirt", "box")

WORDINGS = {
    "word": (
        "What is written on the {carrier}?",
        "What does the {carrier} say?",
        "What word is on the {carrier}?",
    ),
    "number": ("What number is on the {carrier}?", "Which number does the {carrier} show?"),
    "colour": ("What is written on the {colour} one?", "What word is on the {colour} one?"),
}


class Carrier(NamedTuple):
    """Something with text on it."""

    name: str
    colour: str
    text: str


def make(draw: Random) -> Item:
    """Return one text to read, sometimes beside another."""
    kind = draw.choice(("word", "word", "number", "colour"))
    number = 2 if kind == "colour" else draw.choice((1, 2))
    names, colours = draw.sample(CARRIERS, number), draw.sample(BRIGHT, number)
    texts = draw.sample(SIGNS, number)
    if kind == "number":
        texts[0] = str(draw.randint(10, 999))
    carriers = [Carrier(*fields) for fields in zip(names, colours, texts, strict=True)]
    wording = draw.choice(WORDINGS[kind])
    question = wording.format(carrier=names[0], colour=colours[0])
    draw.shuffle(carriers)
    return Item(kind, question, (texts[0],), partial(_paint, tuple(carriers)))


def _paint(carriers: tuple[Carrier, ...], draw: Random) -> Canvas:
    inks = [mix(draw, carrier.colour) for carrier in carriers]
    canvas = plain_canvas(draw, inks)
    height = SIZE / len(carriers)
    for place, (carrier, ink) in enumerate(zip(carriers, inks, strict=True)):
        wide = draw.uniform(74, 98)
        high = draw.uniform(32, 40) if len(carriers) == 2 else draw.uniform(38, 62)
        x = SIZE / 2 + draw.uniform(-1, 1) * (SIZE - wide - 6) / 2
        y = height * (place + 0.5) + draw.uniform(-1, 1) * max(0.0, (height - high - 12) / 2)
        box = (x - wide / 2, y - high / 2, x + wide / 2, y + high / 2)
        _carrier(canvas, draw, carrier.name, box, ink)
        _write(canvas, draw, carrier, box, ink)
    return canvas


def _write(canvas: Canvas, draw: Random, carrier: Carrier, box: Box, ground: Ink) -> None:
    left, top, right, bottom = box
    face = draw.choice(FACES)
    text = draw.choice((carrier.text, carrier.text.upper(), carrier.text.capitalize()))
    width = (right - left) * (0.66 if carrier.name in ("shirt", "banner") else 0.84)
    height = fitting_height(face, text, width, draw.uniform(12, 19), 7.5)
    centre = ((left + right) / 2, (top + bottom) / 2 + (2 if carrier.name == "shirt" else 0))
    angle = draw.uniform(-7, 7) if draw.random() < 0.4 else 0.0
    canvas.text(centre, text, ink_on(ground, draw), height, face=face, angle=angle)


def _carrier(canvas: Canvas, draw: Random, name: str, box: Box, ink: Ink) -> None:
    left, top, right, bottom = box
    dark, x, y = shade(ink, 0.6), (left + right) / 2, (top + bottom) / 2
    if name == "sign":
        post = shade(mix(draw, "grey"), 0.8)
        canvas.rectangle((x - 3, y, x + 3, bottom + 12), post, None)
        canvas.rounded(box, draw.choice((2, 6)), ink, "board", edge=ink_on(ink, draw))
    elif name == "banner":
        notch = 8
        points = [(left, top), (right, top), (right - notch, y), (right, bottom)]
        points += [(left, bottom), (left + notch, y)]
        canvas.polygon(points, ink, "board", edge=dark)
    elif name == "book":
        canvas.rectangle((left + 3, top - 3, right + 3, bottom - 3), mix(draw, "white"), None)
        canvas.rectangle(box, ink, "board")
        canvas.rectangle((left, top, left + 4, bottom), dark, "board")
    elif name == "shirt":
        sleeve = (right - left) * 0.13
        points = [(left, top + 2), (left + sleeve, top - 5), (x - 7, top - 6), (x, top - 1)]
        points += [(x + 7, top - 6), (right - sleeve, top - 5), (right, top + 2)]
        points += [(right - 4, top + 12), (right - sleeve, top + 9), (right - sleeve, bottom)]
        points += [(left + sleeve, bottom), (left + sleeve, top + 9), (left + 4, top + 12)]
        canvas.polygon(points, ink, "board", edge=dark)
    else:
        lid = [(left, top), (left + 8, top - 7), (right + 5, top - 7), (right, top)]
        canvas.polygon(lid, shade(ink, 1.4), "board")
        canvas.polygon(
            [(right, top), (right + 5, top - 7), (right + 5, bottom - 7), (right, bottom)],
            dark,
            "board",
        )
        canvas.rectangle(box, ink, "board")
