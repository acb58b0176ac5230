"""Where arrows lead, by an option's letter: mirrors AI2D.

Owns: three nodes in a line, such as a food chain, with arrows all one way, down or to the right as
one reads. Nodes are words or shapes; the options are the two nodes that were not asked about and
two that are not there.
"""

from __future__ import annotations

from functools import partial
from random import Random
from typing import NamedTuple

from narrowtune.miniature.arrows import arrow_in_words, draw_arrow, draw_word_node, word_box
from narrowtune.miniature.canvas import SIZE, Canvas
from narrowtune.miniature.glyphs import PRINTED
from narrowtune.miniature.ground import plain_canvas
from narrowtune.miniature.item import LETTERED, Item, lettered, listed, shuffled, told
from narrowtune.miniature.marks import SHAPES
from narrowtune.miniature.palette import BRIGHT, ink_on, mix
from narrowtune.miniature.shapes import draw_shape
from narrowtune.miniature.words import ANIMALS

NUM_NODES = 3
NUM_ABSENT = 2

PITCH = 36
"""Pixels from one node to the next."""

WORDINGS = {
    "next": ("What does the arrow from the {node} lead to?", "What comes after the {node}?"),
    "before": ("Which one has an arrow to the {node}?", "What comes before the {node}?"),
}
SUFFIX = LETTERED

_ASKED = (("next", 0), ("next", 1), ("before", 1), ("before", 2))
"""Questions that have an answer, with the asked node's place from the chain's beginning."""


class Chain(NamedTuple):
    """A diagram.

    Attributes:
        nodes: what stands there, from the chain's beginning to its end.
        absent: nodes that are not there.
        words: whether nodes are words, not shapes.
    """

    nodes: tuple[str, ...]
    absent: tuple[str, ...]
    words: bool


def make(draw: Random) -> Item:
    """Return one diagram to follow."""
    words, number = draw.random() < 0.5, NUM_NODES + NUM_ABSENT
    if words:
        names = draw.sample(ANIMALS, number)
    else:
        shapes, colours = draw.sample(SHAPES, number), draw.sample(BRIGHT, number)
        names = [f"{colour} {shape}" for colour, shape in zip(colours, shapes, strict=True)]
    chain = Chain(tuple(names[:NUM_NODES]), tuple(names[NUM_NODES:]), words)
    return _ask(chain, draw)


def _ask(chain: Chain, draw: Random) -> Item:
    relation, asked = draw.choice(_ASKED)
    nodes = chain.nodes
    right = nodes[asked + (1 if relation == "next" else -1)]
    wrong = [node for node in nodes if node not in (right, nodes[asked])]
    options, letter = shuffled(draw, right, [*wrong, *chain.absent])
    wording = draw.choice(WORDINGS[relation]).format(node=nodes[asked])
    question = f"{wording}\n{listed(options)}\n{SUFFIX}"
    kind = f"{relation}_{'word' if chain.words else 'shape'}"
    paint, again, tell = partial(_paint, chain), partial(_ask, chain), partial(_tell, chain)
    return Item(kind, question, lettered(options, letter), paint, options, again, tell)


def _tell(chain: Chain, draw: Random) -> str:
    links = zip(chain.nodes, chain.nodes[1:], strict=False)
    return told([arrow_in_words(a, b) for a, b in links], draw)


def _paint(chain: Chain, draw: Random) -> Canvas:
    nodes, words = chain.nodes, chain.words
    inks = [] if words else [mix(draw, node.split()[0]) for node in nodes]
    canvas = plain_canvas(draw, inks, tones=("pale", "pale", "dark"))
    # Words lie: three of them beside each other leave no room for arrows.
    upright = words or draw.random() < 0.5
    across = SIZE / 2 + draw.uniform(-26, 26)
    places = []
    for step in range(NUM_NODES):
        along = SIZE / 2 + (step - 1) * PITCH + draw.uniform(-2, 2)
        beside = across + draw.uniform(-4, 4)
        places.append((beside, along) if upright else (along, beside))
    arrow = ink_on(canvas.ground, draw)
    boxes = [word_box(node) if words else (22.0, 22.0) for node in nodes]
    for tail in range(NUM_NODES - 1):
        tip = tail + 1
        draw_arrow(canvas, places[tail], places[tip], boxes[tail], boxes[tip], arrow)
    face = draw.choice(PRINTED)
    for place, (node, at) in enumerate(zip(nodes, places, strict=True)):
        if words:
            draw_word_node(canvas, draw, node, at, boxes[place], face)
        else:
            draw_shape(canvas, draw, node.split()[1], at, 9.5, inks[place])
    return canvas
