"""What a form says: mirrors DocVQA.

Owns: tickets, receipts, orders; their fields, and values in print or by hand.
"""

from __future__ import annotations

from functools import partial
from random import Random

from narrowtune.miniature.canvas import SIZE, Canvas, fitting_height
from narrowtune.miniature.glyphs import FACES, PRINTED, Face, text_width
from narrowtune.miniature.ground import choose_ground, plain_canvas
from narrowtune.miniature.item import Item, told_or_spelt
from narrowtune.miniature.palette import Ink, ink_on, mix, shade
from narrowtune.miniature.words import CITIES, GOODS, MONTHS, NAMES

TITLES = ("ticket", "receipt", "order", "invoice", "letter", "permit")

FIELDS = ("name", "city", "date", "item", "total", "code")

WORDINGS = {
    "name": ("What name is on the form?", "What is the name?"),
    "city": ("What city is on the form?", "What is the city?"),
    "date": ("What date is on the form?", "What is the date?"),
    "item": ("What item is on the form?", "What is the item?"),
    "total": ("What total is on the form?", "What is the total?"),
    "code": ("What code is on the form?", "What is the code?"),
    "title": ("What kind of form is this?", "What is the title of the form?"),
}
SUFFIX = "Answer with a word or phrase."

NUM_ROWS = 4


def make(draw: Random) -> Item:
    """Return one form to read."""
    values = {
        "name": draw.choice(NAMES),
        "city": draw.choice(CITIES),
        "date": f"{draw.randint(1, 28)} {draw.choice(MONTHS)}",
        "item": draw.choice(GOODS),
        "total": str(draw.randint(10, 999)),
        "code": draw.choice("ABCDEFGHKLMNPRSTUVWXYZ") + str(draw.randint(100, 999)),
    }
    title = draw.choice(TITLES)
    fields = draw.sample(FIELDS, NUM_ROWS)
    return _ask(title, tuple((field, values[field]) for field in fields), draw)


def _ask(title: str, rows: tuple[tuple[str, str], ...], draw: Random) -> Item:
    kind, answer = draw.choice([("title", title), *rows, *rows])
    question = f"{draw.choice(WORDINGS[kind])}\n{SUFFIX}"
    paint, again = partial(_paint, title, rows), partial(_ask, title, rows)
    tell = partial(told_or_spelt, [title, *(f"{name}: {value.lower()}" for name, value in rows)])
    return Item(kind, question, (answer.lower(),), paint, again=again, tell=tell)


def _paint(title: str, rows: tuple[tuple[str, str], ...], draw: Random) -> Canvas:
    canvas = plain_canvas(draw)
    paper = choose_ground(draw, tones=("pale",))
    left, top = draw.uniform(1, 8), draw.uniform(1, 6)
    right, bottom = SIZE - draw.uniform(1, 8), SIZE - draw.uniform(1, 6)
    canvas.rectangle((left, top, right, bottom), paper, "board", edge=shade(paper, 0.7))
    print_ink = ink_on(paper, draw)
    high = (bottom - top - 6) / (NUM_ROWS + 1)
    _title(canvas, draw, title, (left, top + 3, right, top + high + 1), paper)
    hand = draw.random() < 0.5
    face = draw.choice(FACES[4:6] if hand else PRINTED)
    ink = mix(draw, draw.choice(("blue", "black"))) if hand else print_ink
    label_face, style = draw.choice(PRINTED), draw.choice(("lines", "table", "plain"))
    for place, (field, value) in enumerate(rows, start=1):
        y = top + 4 + (place + 0.5) * high
        label = field.upper() if style == "table" else f"{field}:"
        wide = text_width(label_face, 13, label) / 2
        canvas.text((left + 4 + wide / 2, y), label, print_ink, 6.5, face=label_face)
        _value(canvas, draw, value, (left + 42, y, right - 3), face, ink)
        if style != "plain":
            x = left + 2 if style == "table" else left + 38
            ends = [(x, y + high / 2 - 1), (right - 2, y + high / 2 - 1)]
            canvas.line(ends, shade(paper, 0.7), None, 1)
    return canvas


def _title(canvas: Canvas, draw: Random, title: str, box: tuple[float, ...], paper: Ink) -> None:
    left, top, right, bottom = box
    ground, middle = paper, ((left + right) / 2, (top + bottom) / 2)
    if draw.random() < 0.5:
        ground = mix(draw, draw.choice(("blue", "green", "red", "purple", "black")))
        canvas.rectangle((left, top - 3, right, bottom), ground, "panel")
    face = draw.choice(PRINTED)
    height = fitting_height(face, title.upper(), (right - left) * 0.8, 10, 8)
    canvas.text(middle, title.upper(), ink_on(ground, draw), height, face=face)


def _value(
    canvas: Canvas, draw: Random, value: str, room: tuple[float, float, float], face: Face, ink: Ink
) -> None:
    left, y, right = room
    text = draw.choice((value, value.upper(), value.capitalize())) if value.islower() else value
    height = fitting_height(face, text, right - left, 9, 6.5)
    wide = text_width(face, round(2 * height), text) / 2
    canvas.text((left + wide / 2, y), text, ink, height, face=face)
