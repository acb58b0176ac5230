"""What may be at a place in a picture: the closed vocabulary of dense labels.

Owns: `WHAT`, `HUES`, and how a pair of them is one number in a scene's plane of marks.
"""

from __future__ import annotations

from narrowtune.miniature.palette import COLOURS

SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "ring", "moon")
THINGS = ("house", "tree", "car", "boat", "flower", "person", "dog", "cup")
PARTS = ("arrow", "bar", "hand", "dial", "board", "panel", "bird", "beak", "feather", "cell", "sky")
CARRIERS = ("board", "panel", "sky", "dial")
"""Parts that other marks stand on."""

CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789"

WHAT = ("nothing", *SHAPES, *THINGS, *PARTS, *CHARACTERS)
"""Everything that a patch can be said to show; the first is the background."""

HUES = ("none", *COLOURS)
"""The colour of what a patch shows; "none" where it has no name."""

_WHAT = {name: number for number, name in enumerate(WHAT)}
_HUES = {name: number for number, name in enumerate(HUES)}


def mark(what: str, hue: str) -> int:
    """Return the number that stands for `what` in the colour `hue`."""
    return _WHAT[what] * len(HUES) + _HUES[hue]


def unmark(number: int) -> tuple[int, int]:
    """Return the places in `WHAT` and `HUES` that a number of `mark` stands for."""
    return divmod(number, len(HUES))
