"""Which of twenty-four birds it is, by an option's letter: mirrors CUB200.

Owns: the species. Four families are told by their build; the six species of one differ in two
small things, the wing and the head, and have names that say nothing of either. Colour, size and
pose belong to the single bird. Half of the eight options are of another family, so that knowing
the families alone is right one time in four.
"""

from __future__ import annotations

from functools import partial
from random import Random
from typing import NamedTuple

from narrowtune.miniature.canvas import Canvas
from narrowtune.miniature.ground import plain_canvas
from narrowtune.miniature.item import LETTERED, Item, lettered, listed, shuffled
from narrowtune.miniature.palette import mix, shade, stands_out
from narrowtune.miniature.targets.plumage import WING_SHADE, draw_bird

NUM_OPTIONS = 8

WINGS = ("plain", "bar", "spots")
HEADS = ("smooth", "crest", "mask")


class Species(NamedTuple):
    """A class: its name, and what it is told by."""

    name: str
    family: str
    wing: str
    head: str


_EPITHETS = {
    "finch": ("balo", "deri", "fomu", "gani", "hulo", "jeti"),
    "heron": ("kavi", "lodo", "mire", "nuso", "pelu", "quon"),
    "duck": ("rabi", "sote", "tamu", "umbi", "velo", "wari"),
    "owl": ("yomi", "zeka", "arlo", "bexi", "corvo", "dulan"),
}
# Which six of the nine plumages a family has: another six in each, so that a wing is no name.
_PLUMAGES = {
    "finch": (0, 1, 2, 3, 4, 6),
    "heron": (0, 2, 4, 5, 6, 7),
    "duck": (1, 2, 3, 5, 7, 8),
    "owl": (0, 1, 3, 4, 7, 8),
}

SPECIES = tuple(
    Species(f"{epithet} {family}", family, WINGS[plumage // 3], HEADS[plumage % 3])
    for family, epithets in _EPITHETS.items()
    for epithet, plumage in zip(epithets, _PLUMAGES[family], strict=True)
)

WORDINGS = (
    "Which bird is this?",
    "What is the name of this bird?",
    "Which of these birds is in the picture?",
)
SUFFIX = LETTERED


def make(draw: Random) -> Item:
    """Return one bird to name."""
    species = draw.choice(SPECIES)
    own = [other.name for other in SPECIES if other.family == species.family and other != species]
    family = draw.choice([name for name in _EPITHETS if name != species.family])
    foreign = [other.name for other in SPECIES if other.family == family]
    half = NUM_OPTIONS // 2
    wrong = draw.sample(own, half - 1) + draw.sample(foreign, half)
    options, right = shuffled(draw, species.name, wrong)
    question = f"{draw.choice(WORDINGS)}\n{listed(options)}\n{SUFFIX}"
    return Item("species", question, lettered(options, right), partial(_paint, species), options)


def _paint(species: Species, draw: Random) -> Canvas:
    colour = draw.choice(("red", "orange", "yellow", "green", "blue", "purple", "brown"))
    coat, mark = mix(draw, colour), mix(draw, draw.choice(("black", "white")))
    if not stands_out(mark, shade(coat, WING_SHADE)):
        mark = mix(draw, "white")
    canvas = plain_canvas(draw, [coat], tones=("pale", "pale", "middle"))
    draw_bird(canvas, draw, species.family, species.wing, species.head, coat, mark)
    return canvas
