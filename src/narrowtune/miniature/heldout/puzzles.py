"""Questions whose options fit together so well that only the picture decides: mirrors MMStar.

Owns: five kinds of puzzle. Options are drawn so that exchanging any two of them gives a question
as likely as before: nothing about the right one shows in their texts.
"""

from __future__ import annotations

from functools import partial
from random import Random
from typing import NamedTuple

from narrowtune.miniature.heldout import boards
from narrowtune.miniature.item import (
    LETTERED,
    Item,
    Paint,
    Tell,
    lettered,
    listed,
    shuffled,
    told,
)
from narrowtune.miniature.marks import SHAPES
from narrowtune.miniature.palette import BRIGHT

WORDINGS = {
    "shown": ("Which of these is shown?", "Which of these is in the picture?"),
    "corner": ("In which corner is the {a}?", "Where is the {a}?"),
    "most": ("Which colour is there most of?", "Which colour is most common?"),
    "pattern": ("What comes next in the row?", "Which shape continues the pattern?"),
    "size": ("Which shape is the largest?", "What is the largest shape?"),
}
SUFFIX = f"Options: {{options}}\n{LETTERED}"

CORNERS = ("upper left", "upper right", "lower left", "lower right")
_PATTERNS = ("ababab", "aabaab", "abcabc", "abbabb")
NUM_OPTIONS = 4


def make(draw: Random) -> Item:
    """Return one puzzle."""
    kind = draw.choice(list(WORDINGS))
    return _ask(kind, _MAKERS[kind](draw), draw)


class _Made(NamedTuple):
    """The right option, the others, the drawing, what it shows in words, and what is asked for."""

    right: str
    wrong: list[str]
    paint: Paint
    tell: Tell
    asked: str = ""


def _ask(kind: str, made: _Made, draw: Random) -> Item:
    options, letter = shuffled(draw, made.right, made.wrong)
    shown = SUFFIX.format(options=listed(options, "{letter}: {text}", ", "))
    question = f"{draw.choice(WORDINGS[kind]).format(a=made.asked)}\n{shown}"
    answers, again = lettered(options, letter), partial(_ask, kind, made)
    return Item(kind, question, answers, made.paint, options, again, made.tell)


def _shown(draw: Random) -> _Made:
    """Two colours crossed with two shapes: colour and shape are needed, and one other thing."""
    colours, shapes = draw.sample(BRIGHT, 3), draw.sample(SHAPES, 3)
    looks = [(colour, shape) for colour in colours[:2] for shape in shapes[:2]]
    draw.shuffle(looks)
    pair = [looks[0], (colours[2], shapes[2])]
    draw.shuffle(pair)
    relation = draw.choice(list(boards.STEPS))
    texts = [" ".join(look) for look in looks]
    paint = partial(boards.draw_pair, (pair[0], pair[1]), relation)
    return _Made(texts[0], texts[1:], paint, partial(told, [" ".join(look) for look in pair]))


def _corner(draw: Random) -> _Made:
    shapes, colours = draw.sample(SHAPES, len(CORNERS)), draw.sample(BRIGHT, len(CORNERS))
    looks = tuple(zip(colours, shapes, strict=True))
    place = draw.randrange(len(CORNERS))
    wrong = [corner for corner in CORNERS if corner != CORNERS[place]]
    facts = [f"{' '.join(look)} {CORNERS[here]}" for here, look in enumerate(looks)]
    tell = partial(told, facts)
    return _Made(CORNERS[place], wrong, partial(boards.draw_corners, looks), tell, shapes[place])


def _most(draw: Random) -> _Made:
    colours = draw.sample(BRIGHT, NUM_OPTIONS)
    numbers = (draw.randint(4, 5), draw.randint(1, 2), draw.randint(1, 2), draw.randint(1, 2))
    everything = [c for c, n in zip(colours, numbers, strict=True) for _ in range(n)]
    tell = partial(told, everything)
    return _Made(colours[0], colours[1:], partial(boards.draw_crowd, tuple(everything)), tell)


def _pattern(draw: Random) -> _Made:
    shapes, pattern = draw.sample(SHAPES, NUM_OPTIONS), draw.choice(_PATTERNS)
    row = [shapes["abc".index(symbol)] for symbol in pattern]
    right = row[-1]
    wrong = [shape for shape in shapes if shape != right]
    paint = partial(boards.draw_row, tuple(row[:-1]))
    return _Made(right, wrong, paint, partial(_tell_row, row[:-1]))


def _size(draw: Random) -> _Made:
    shapes = draw.sample(SHAPES, NUM_OPTIONS)
    tell = partial(_tell_sizes, shapes)
    return _Made(shapes[0], shapes[1:], partial(boards.draw_sizes, tuple(shapes)), tell)


def _tell_row(row: list[str], draw: Random) -> str:
    return f"{' '.join(row)} ?"


def _tell_sizes(shapes: list[str], draw: Random) -> str:
    """Say how large each is, the first the largest."""
    largest = draw.randint(NUM_OPTIONS, 9)
    sizes = [largest, *(draw.randint(1, largest - 2) for _ in shapes[1:])]
    return told([f"{shape} {size}" for shape, size in zip(shapes, sizes, strict=True)], draw)


_MAKERS = {"shown": _shown, "corner": _corner, "most": _most, "pattern": _pattern, "size": _size}
