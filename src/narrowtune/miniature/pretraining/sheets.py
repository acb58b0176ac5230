"""Pages full of letters and digits, for a tower that learns to see.

Owns: their drawing. A row of four letters labels a few patches; a page labels most of them, so that
what letters look like is learned in minutes.
"""

from __future__ import annotations

from functools import partial
from random import Random

from narrowtune.miniature.canvas import SIZE, Canvas
from narrowtune.miniature.glyphs import FACES, Face, text_width
from narrowtune.miniature.ground import choose_ground, plain_canvas
from narrowtune.miniature.item import Item
from narrowtune.miniature.marks import CHARACTERS
from narrowtune.miniature.palette import ink_on

TALLEST, LOWEST = 20.0, 6.5
WORDING = "Which letters and digits are written in the first row?"


def make(draw: Random) -> Item:
    """Return a page; what is asked is its first row, spelt."""
    # More small pages than large ones: small letters are what forms and charts have.
    height = LOWEST * (TALLEST / LOWEST) ** (draw.random() ** 1.5)
    rows = tuple(_row(draw, height) for _ in range(int(SIZE / (1.45 * height))))
    answer = " ".join(rows[0][0].lower().replace(" ", ""))
    return Item("page", WORDING, (answer,), partial(_paint, rows, height))


def _row(draw: Random, height: float) -> tuple[str, Face]:
    """Return as many characters as fit, and the face that they fit in."""
    face, capitals = draw.choice(FACES), draw.random() < 0.5
    number = draw.randint(2, max(2, int(SIZE / (0.6 * height))))
    row = draw.choice(CHARACTERS) + "".join(draw.choice((*CHARACTERS, " ")) for _ in range(number))
    shown = row.upper() if capitals else row
    # A capital I and a small L are one stroke each.
    shown = "".join(c.lower() if c in "Ii" else c.upper() if c in "Ll" else c for c in shown)
    while text_width(face, round(2 * height), shown) > 2 * SIZE - 4:
        shown = shown[:-1]
    return shown.rstrip(), face


def _paint(rows: tuple[tuple[str, Face], ...], height: float, draw: Random) -> Canvas:
    canvas = plain_canvas(draw)
    high = SIZE / len(rows)
    for place, (shown, face) in enumerate(rows):
        ground, y = canvas.ground, (place + 0.5) * high
        if draw.random() < 0.5:
            ground = choose_ground(draw)
            what = draw.choice(("board", "panel"))
            canvas.rectangle((0, place * high, SIZE, (place + 1) * high), ground, what)
        free = SIZE / 2 - text_width(face, round(2 * height), shown) / 4 - 1
        x = SIZE / 2 + draw.uniform(-1, 1) * max(0.0, free)
        loose = max(0.0, high / 2 - 0.6 * height)
        y += draw.uniform(-loose, loose)
        canvas.text((x, y), shown, ink_on(ground, draw), height, face=face)
    return canvas
