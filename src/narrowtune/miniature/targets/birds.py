"""Which of twelve birds it is, by an option's letter: mirrors CUB200.

Owns: the species. Four families are told by their build; the three species of one differ in wing
and head, and have names that say nothing of either. Colour, size and pose belong to the single
bird. The six options are all species of two families, so that knowing the families alone is right
one time in three.
"""

from __future__ import annotations

from functools import partial
from random import Random
from typing import NamedTuple

from narrowtune.miniature.item import LETTERED, Item, lettered, listed, shuffled
from narrowtune.miniature.plumage import FAMILIES, HEADS, WINGS, draw_coat, paint_bird


class Species(NamedTuple):
    """A class: its name, and what it is told by."""

    name: str
    family: str
    wing: str
    head: str


_EPITHETS = {
    "finch": ("balo", "deri", "fomu"),
    "heron": ("kavi", "lodo", "mire"),
    "duck": ("rabi", "sote", "tamu"),
    "owl": ("yomi", "zeka", "arlo"),
}
# In the order of their wings. The head that goes with each wing: another pairing in each family, so
# that a wing or a head is no name.
_HEADS = {"finch": (0, 1, 2), "heron": (1, 2, 0), "duck": (2, 0, 1), "owl": (0, 2, 1)}

SPECIES = tuple(
    Species(f"{epithet} {family}", family, wing, HEADS[head])
    for family, epithets in _EPITHETS.items()
    for epithet, wing, head in zip(epithets, WINGS, _HEADS[family], strict=True)
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
    other = draw.choice([family for family in FAMILIES if family != species.family])
    shown = [each.name for each in SPECIES if each.family in (species.family, other)]
    wrong = [name for name in shown if name != species.name]
    options, right = shuffled(draw, species.name, wrong)
    question = f"{draw.choice(WORDINGS)}\n{listed(options)}\n{SUFFIX}"
    paint = partial(paint_bird, species.family, species.wing, species.head, draw_coat(draw))
    return Item("species", question, lettered(options, right), paint, options)
