"""What every patch of a picture shows, so that a tower can be taught to see before it is asked.

Owns: the vote of a patch's pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

from narrowtune.core.errors import UsageError
from narrowtune.miniature.canvas import SIZE
from narrowtune.miniature.marks import CARRIERS, HUES, WHAT

LEAST_SHARE = 1 / 10
"""Share of a patch's pixels that a thing must cover to be named: less can't be seen well."""


_IS_GROUND = np.isin(WHAT, ("nothing", *CARRIERS))


class PatchLabels(NamedTuple):
    """For each patch, row by row: places in `marks.WHAT`, of its colour in `HUES`, in `WRITTEN`."""

    what: tuple[int, ...]
    hue: tuple[int, ...]
    word: tuple[int, ...]


def label_patches(marks: Image.Image, words: Image.Image, patch: int) -> PatchLabels:
    """Return what most of each patch shows: a thing, or what lies behind where none is seen.

    Args:
        marks, words: the planes that a `Canvas` keeps.
        patch: side of a patch, in pixels.

    Raises:
        UsageError: the picture's side is no multiple of `patch`.
    """
    if patch < 1 or SIZE % patch:
        raise UsageError(
            asked=f"labels for patches of {patch} pixels",
            found=f"pictures of {SIZE} by {SIZE} pixels",
            do="ask for a divisor of the picture's side, such as 8, 14 or 16",
        )
    side, plane = SIZE // patch, np.asarray(marks)
    # Few of the possible marks are in any one picture: votes are counted for these alone.
    present = np.flatnonzero(np.bincount(plane.ravel(), minlength=len(WHAT) * len(HUES)))
    place = np.zeros(len(WHAT) * len(HUES), dtype=np.int64)
    place[present] = np.arange(len(present))
    patches = place[plane].reshape(side, patch, side, patch).transpose(0, 2, 1, 3)
    offset = np.arange(side * side)[:, None] * len(present)
    ballots = (patches.reshape(side * side, patch * patch) + offset).ravel()
    votes = np.bincount(ballots, minlength=side * side * len(present))
    votes = votes.reshape(side * side, len(present))
    # A letter covers less of a patch than the board that it stands on, and is what matters there.
    is_thing = ~_IS_GROUND[present // len(HUES)]
    things = np.where(is_thing, votes, -1)
    seen = things.max(1) >= LEAST_SHARE * patch * patch
    grounds = np.where(is_thing, -1, votes)
    winner = present[np.where(seen, things.argmax(1), grounds.argmax(1))]
    # A patch that slivers of several things fill between them shows none of them.
    winner[~seen & (grounds.max(1) < 1)] = 0
    what, hue = np.divmod(winner, len(HUES))
    return PatchLabels(tuple(what.tolist()), tuple(hue.tolist()), _words(words, patch))


def _words(words: Image.Image, patch: int) -> tuple[int, ...]:
    """Return the word that most of each patch's letters are of, where they can be seen."""
    side, plane = SIZE // patch, np.asarray(words)
    patches = plane.reshape(side, patch, side, patch).swapaxes(1, 2).reshape(side * side, -1)
    found = np.zeros(side * side, dtype=np.int64)
    most = np.full(side * side, LEAST_SHARE * patch * patch)
    for word in np.unique(plane[plane > 0]):
        votes = (patches == word).sum(1)
        found[votes >= most] = word
        most = np.maximum(most, votes)
    return tuple(found.tolist())
