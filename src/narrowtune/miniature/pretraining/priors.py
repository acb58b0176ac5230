"""What published models bring to a skill before it is taught: parts of birds, a dial with one hand.

Owns: these questions. They ask for no species and no time; without them, neither is learned from
a few thousand samples (docs/LOG.md).
"""

from __future__ import annotations

from functools import partial
from random import Random

from narrowtune.miniature.canvas import Canvas, around
from narrowtune.miniature.dials import draw_dial, draw_hand
from narrowtune.miniature.item import Item
from narrowtune.miniature.plumage import FAMILIES, HEADS, WINGS, draw_coat, paint_bird

PLUMAGE_WORDINGS = {
    "family": "What kind of bird is this?",
    "wing": "What is on the wing?",
    "head": "What is on the head?",
    "coat": "What colour is the bird?",
}
GAUGES_WORDINGS = ("Which hour does the hand point to?", "Where does the hand point?")

_BARE = ("plain", "smooth")
NOTHING = "nothing"


def make_plumage(draw: Random) -> Item:
    """Return a bird of any build, wing and head, with one of these asked for."""
    family, wing, head = draw.choice(FAMILIES), draw.choice(WINGS), draw.choice(HEADS)
    return _ask_plumage((family, wing, head, draw_coat(draw)), draw)


def _ask_plumage(bird: tuple[str, str, str, str], draw: Random) -> Item:
    place = draw.randrange(len(bird))
    kind, value = list(PLUMAGE_WORDINGS)[place], bird[place]
    answer = NOTHING if value in _BARE else value
    paint, again = partial(paint_bird, *bird), partial(_ask_plumage, bird)
    return Item(kind, PLUMAGE_WORDINGS[kind], (answer,), paint, again=again)


def make_gauges(draw: Random) -> Item:
    """Return a dial with one hand, long or short, on one of twelve hours."""
    hour, long = draw.randint(1, 12), draw.random() < 0.5
    paint = partial(_paint_gauge, hour, long)
    return Item("hour", draw.choice(GAUGES_WORDINGS), (str(hour),), paint)


def _paint_gauge(hour: int, long: bool, draw: Random) -> Canvas:
    canvas, centre, radius, hands, _ = draw_dial(draw)
    length = draw.uniform(0.74, 0.84) if long else draw.uniform(0.42, 0.5)
    width = draw.uniform(1.8, 3) if long else draw.uniform(3.8, 5)
    draw_hand(canvas, centre, hour / 12, radius * length, hands, width)
    canvas.ellipse(around(centre, 6), hands, "hand")
    return canvas
