"""How many there are, as a sentence: mirrors PixmoCount.

Owns: the questions and answers. One to eight things are asked about equally often. The number of
other things is drawn on its own, so that how full a picture is does not give the answer away.
"""

from __future__ import annotations

from functools import partial
from random import Random

from narrowtune.miniature.crowd import FORMS, draw_crowd, paint_crowd
from narrowtune.miniature.item import Item

MOST = 8
MOST_OTHERS = 5

WORDINGS = ("How many {label} are in this image?", "How many {label} are there?")


def make(draw: Random) -> Item:
    """Return one picture to count in."""
    form, number = draw.choice(FORMS), draw.randint(1, MOST)
    crowd = draw_crowd(draw, form, number, draw.randint(0, MOST_OTHERS))
    verb, label = ("is", crowd.one) if number == 1 else ("are", crowd.many)
    answer = f"There {verb} {number} {label} in this image."
    question = draw.choice(WORDINGS).format(label=crowd.many)
    return Item(form, question, (answer, str(number)), partial(paint_crowd, crowd.things))
