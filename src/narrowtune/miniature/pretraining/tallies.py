"""How many of a few small things there are, as a number: what a skill of counting can begin from.

Published models have counted to four or so before anyone teaches them to; without it, no count is
learned from a few thousand samples (docs/LOG.md).
"""

from __future__ import annotations

from functools import partial
from random import Random

from narrowtune.miniature.crowd import FORMS, Counted, called, draw_crowd, paint_crowd
from narrowtune.miniature.item import Item
from narrowtune.miniature.marks import THINGS

MOST = 4
SEVERAL = 0.85
"""Share of further questions about what is there more than once, where anything is."""
MOST_OTHERS = 5

WORDING = "Count the {label}."


def make(draw: Random) -> Item:
    """Return one picture with one to four things to count."""
    form = draw.choice(FORMS)
    crowd = draw_crowd(draw, form, draw.randint(1, MOST), draw.randint(0, MOST_OTHERS))
    return _ask(crowd.things, form, crowd.things[0], draw)


def _again(crowd: tuple[Counted, ...], draw: Random) -> Item:
    """Ask for something else in the picture that there are few enough of."""
    forms = ("thing",) if crowd[0].name in THINGS else ("shape", "colour", "both")
    found: dict[int, list[tuple[str, Counted]]] = {}
    for form in forms:
        for item in crowd:
            found.setdefault(_count(crowd, form, item), []).append((form, item))
    # Most things are there once, and one would be the answer to most of these questions.
    several = [number for number in found if 1 < number <= MOST]
    if several and draw.random() < SEVERAL:
        (number,) = draw.choices(several, weights=several)
    else:
        number = min(found)
    return _ask(crowd, *draw.choice(found[number]), draw)


def _ask(crowd: tuple[Counted, ...], form: str, asked: Counted, draw: Random) -> Item:
    _, label = called(form, asked)
    answer = (str(_count(crowd, form, asked)),)
    paint, again = partial(paint_crowd, crowd), partial(_again, crowd)
    return Item(form, WORDING.format(label=label), answer, paint, again=again)


def _count(crowd: tuple[Counted, ...], form: str, asked: Counted) -> int:
    return sum(
        (form == "colour" or item.name == asked.name)
        and (form in ("shape", "thing") or item.colour == asked.colour)
        for item in crowd
    )
