"""Questions whose options fit together so well that only the picture decides: mirrors MMStar.

Owns: five kinds of puzzle. Options are drawn so that exchanging any two of them gives a question
as likely as before: nothing about the right one shows in their texts.
"""

from __future__ import annotations

from functools import partial
from random import Random

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
    with_article,
)
from narrowtune.miniature.marks import SHAPES
from narrowtune.miniature.palette import BRIGHT

WORDINGS = {
    "caption": ("Which sentence is true?", "Which of these describes the picture?"),
    "odd": ("Where is the odd one out?", "Where is the one that differs?"),
    "most": ("Which colour is there most of?", "Which colour is most common?"),
    "pattern": ("What comes next in the row?", "Which shape continues the pattern?"),
    "size": ("Which shape is the largest?", "What is the largest shape?"),
}
SUFFIX = f"Options: {{options}}\n{LETTERED}"

CORNERS = ("upper left", "upper right", "lower left", "lower right")
_PATTERNS = ("ababab", "aabaab", "abcabc", "abbabb", "aabbaa")
NUM_OPTIONS = 4

_SIDES = {
    "above": ("upper", "lower"),
    "below": ("lower", "upper"),
    "left of": ("left", "right"),
    "right of": ("right", "left"),
}


def make(draw: Random) -> Item:
    """Return one puzzle."""
    kind = draw.choice(list(WORDINGS))
    return _ask(kind, *_MAKERS[kind](draw), draw)


_Made = tuple[str, list[str], Paint, Tell]
"""The right option, the others, the drawing and what it shows in words."""


def _ask(kind: str, right: str, wrong: list[str], paint: Paint, tell: Tell, draw: Random) -> Item:
    options, letter = shuffled(draw, right, wrong)
    shown = SUFFIX.format(options=listed(options, "{letter}: {text}", ", "))
    again = partial(_ask, kind, right, wrong, paint, tell)
    question = f"{draw.choice(WORDINGS[kind])}\n{shown}"
    return Item(kind, question, lettered(options, letter), paint, options, again, tell)


def _caption(draw: Random) -> _Made:
    """Two relations crossed with two ways to colour the shapes: each word is in two options."""
    shapes, colours = draw.sample(SHAPES, 2), draw.sample(BRIGHT, 2)
    relations = draw.choice((("above", "below"), ("left of", "right of")))
    texts, facts = [], []
    for relation in relations:
        for order in (colours, colours[::-1]):
            first, second = (f"{c} {s}" for c, s in zip(order, shapes, strict=True))
            texts.append(f"{with_article(first)} {relation} {with_article(second)}")
            facts.append((((order[0], shapes[0]), (order[1], shapes[1])), relation))
    place = draw.randrange(NUM_OPTIONS)
    pair, relation = facts[place]
    wrong = texts[:place] + texts[place + 1 :]
    sides = _SIDES[relation]
    tell = partial(told, [f"{' '.join(pair[0])} {sides[0]}", f"{' '.join(pair[1])} {sides[1]}"])
    return texts[place], wrong, partial(boards.draw_pair, pair, relation), tell


def _odd(draw: Random) -> _Made:
    place = draw.randrange(len(CORNERS))
    wrong = [corner for corner in CORNERS if corner != CORNERS[place]]
    shape, colour = draw.choice(SHAPES), draw.choice(BRIGHT)
    if draw.random() < 0.5:
        odd = (draw.choice([name for name in BRIGHT if name != colour]), shape)
    else:
        odd = (colour, draw.choice([name for name in SHAPES if name != shape]))
    corners = [(odd if here == place else (colour, shape)) for here in range(len(CORNERS))]
    facts = [f"{' '.join(look)} {CORNERS[here]}" for here, look in enumerate(corners)]
    paint = partial(boards.draw_odd, (colour, shape), odd, place)
    return CORNERS[place], wrong, paint, partial(told, facts)


def _most(draw: Random) -> _Made:
    colours = draw.sample(BRIGHT, NUM_OPTIONS)
    numbers = (draw.randint(4, 5), draw.randint(1, 2), draw.randint(1, 2), draw.randint(1, 2))
    everything = [c for c, n in zip(colours, numbers, strict=True) for _ in range(n)]
    tell = partial(told, everything)
    return colours[0], colours[1:], partial(boards.draw_crowd, tuple(everything)), tell


def _pattern(draw: Random) -> _Made:
    shapes, pattern = draw.sample(SHAPES, NUM_OPTIONS), draw.choice(_PATTERNS)
    row = [shapes["abc".index(symbol)] for symbol in pattern]
    right = row[-1]
    wrong = [shape for shape in shapes if shape != right]
    return right, wrong, partial(boards.draw_row, tuple(row[:-1])), partial(_tell_row, row[:-1])


def _size(draw: Random) -> _Made:
    shapes = draw.sample(SHAPES, NUM_OPTIONS)
    tell = partial(_tell_sizes, shapes)
    return shapes[0], shapes[1:], partial(boards.draw_sizes, tuple(shapes)), tell


def _tell_row(row: list[str], draw: Random) -> str:
    return f"{' '.join(row)} ?"


def _tell_sizes(shapes: list[str], draw: Random) -> str:
    """Say how large each is, the first the largest."""
    largest = draw.randint(NUM_OPTIONS, 9)
    sizes = [largest, *(draw.randint(1, largest - 2) for _ in shapes[1:])]
    return told([f"{shape} {size}" for shape, size in zip(shapes, sizes, strict=True)], draw)


_MAKERS = {"caption": _caption, "odd": _odd, "most": _most, "pattern": _pattern, "size": _size}
