"""What may be at a place in a picture: the closed vocabulary of dense labels.

Owns: `WHAT`, `HUES`, how a pair of them is one number in a scene's plane of marks, and `WRITTEN`,
the words that are labelled as a whole.
"""

from __future__ import annotations

import re

from narrowtune.miniature.palette import COLOURS
from narrowtune.miniature.words import SMALL

SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "ring", "moon")
THINGS = ("house", "tree", "car", "boat", "flower", "person", "dog", "cup")
PARTS = (
    "arrow",
    "tip",
    "bar",
    "hand",
    "dial",
    "board",
    "panel",
    "bird",
    "beak",
    "feather",
    "cell",
    "sky",
)
CARRIERS = ("board", "panel", "sky", "dial")
"""Parts that other marks stand on."""

CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789"

WHAT = ("nothing", *SHAPES, *THINGS, *PARTS, *CHARACTERS)
"""Everything that a patch can be said to show; the first is the background."""

HUES = ("none", *COLOURS)
"""The colour of what a patch shows; "none" where it has no name."""

WRITTEN = ("none", *SMALL)
"""The word that a patch shows a part of; "none" where it has none, or one of a skill."""

_WHAT = {name: number for number, name in enumerate(WHAT)}
_HUES = {name: number for number, name in enumerate(HUES)}
_WRITTEN = {word: number for number, word in enumerate(WRITTEN)}


def mark(what: str, hue: str) -> int:
    """Return the number that stands for `what` in the colour `hue`."""
    return _WHAT[what] * len(HUES) + _HUES[hue]


def unmark(number: int) -> tuple[int, int]:
    """Return the places in `WHAT` and `HUES` that a number of `mark` stands for."""
    return divmod(number, len(HUES))


def word_marks(text: str) -> list[int]:
    """Return for each character of a line of text the place in `WRITTEN` of the word it is in."""
    found: list[int] = []
    for word in re.split(r"(\W)", text.lower()):
        found += [_WRITTEN.get(word, 0)] * len(word)
    return found
