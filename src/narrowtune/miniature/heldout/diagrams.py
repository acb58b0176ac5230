"""Where arrows lead, by an option's letter: mirrors AI2D.

Owns: four nodes on a ring, arrows between neighbours, mostly all one way round. Nodes are words or
shapes; the options are the three nodes that were not asked about and one that is not there.
"""

from __future__ import annotations

import math
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

NUM_NODES = 4

CYCLES = 0.7
"""Share of diagrams whose arrows all go round one way, as those of life cycles do."""

WORDINGS = {
    "next": ("What does the arrow from the {node} lead to?", "What comes after the {node}?"),
    "before": ("Which one has an arrow to the {node}?", "What comes before the {node}?"),
}
SUFFIX = LETTERED


class Ring(NamedTuple):
    """A diagram.

    Attributes:
        nodes: what stands there, in order.
        forward: whether the link between node i and node i + 1 points to the latter.
        absent: a node that is not there.
        words: whether nodes are words, not shapes.
    """

    nodes: tuple[str, ...]
    forward: tuple[bool, ...]
    absent: str
    words: bool


def make(draw: Random) -> Item:
    """Return one diagram to follow."""
    words = draw.random() < 0.5
    if words:
        *nodes, absent = draw.sample(ANIMALS, NUM_NODES + 1)
    else:
        shapes, colours = draw.sample(SHAPES, NUM_NODES + 1), draw.sample(BRIGHT, NUM_NODES + 1)
        *nodes, absent = (f"{hue} {shape}" for hue, shape in zip(colours, shapes, strict=True))
    asked, relation = draw.randrange(NUM_NODES), draw.choice(list(WORDINGS))
    # The link `i` joins node i with node i + 1. The asked node has one arrow in and one out.
    if draw.random() < CYCLES:
        forward = [draw.random() < 0.5] * NUM_NODES
    else:
        forward = [draw.random() < 0.5 for _ in range(NUM_NODES)]
        forward[asked] = forward[asked - 1]
    return _ask(Ring(tuple(nodes), tuple(forward), absent, words), asked, relation, draw)


def _again(ring: Ring, draw: Random) -> Item:
    """Ask about any node with one arrow in and one out."""
    asked = draw.choice([i for i in range(NUM_NODES) if ring.forward[i] == ring.forward[i - 1]])
    return _ask(ring, asked, draw.choice(list(WORDINGS)), draw)


def _ask(ring: Ring, asked: int, relation: str, draw: Random) -> Item:
    nodes = ring.nodes
    step = 1 if ring.forward[asked] == (relation == "next") else -1
    right = nodes[(asked + step) % NUM_NODES]
    wrong = [node for place, node in enumerate(nodes) if node != right and place != asked]
    wrong.append(ring.absent)
    options, letter = shuffled(draw, right, wrong)
    wording = draw.choice(WORDINGS[relation]).format(node=nodes[asked])
    question = f"{wording}\n{listed(options)}\n{SUFFIX}"
    kind = f"{relation}_{'word' if ring.words else 'shape'}"
    paint, again, tell = partial(_paint, ring), partial(_again, ring), partial(_tell, ring)
    return Item(kind, question, lettered(options, letter), paint, options, again, tell)


def _tell(ring: Ring, draw: Random) -> str:
    links = zip(ring.nodes, (*ring.nodes[1:], ring.nodes[0]), ring.forward, strict=True)
    arrows = [arrow_in_words(a, b) if ahead else arrow_in_words(b, a) for a, b, ahead in links]
    return told(arrows, draw)


def _paint(ring: Ring, draw: Random) -> Canvas:
    nodes, forward, _, words = ring
    inks = [] if words else [mix(draw, node.split()[0]) for node in nodes]
    canvas = plain_canvas(draw, inks, tones=("pale", "pale", "dark"))
    start = draw.uniform(0, math.tau)
    places = []
    for step in range(NUM_NODES):
        angle = start + step * math.tau / NUM_NODES
        radius = (38, 45) if words else (41, 41)
        places.append(
            (
                SIZE / 2 + radius[0] * math.cos(angle) + draw.uniform(-1.5, 1.5),
                SIZE / 2 + radius[1] * math.sin(angle) + draw.uniform(-1.5, 1.5),
            )
        )
    arrow = ink_on(canvas.ground, draw)
    boxes = [word_box(node) if words else (22.0, 22.0) for node in nodes]
    for link, ahead in enumerate(forward):
        ends = [link, (link + 1) % NUM_NODES]
        tail, tip = ends if ahead else reversed(ends)
        draw_arrow(canvas, places[tail], places[tip], boxes[tail], boxes[tip], arrow)
    face = draw.choice(PRINTED)
    for place, (node, at) in enumerate(zip(nodes, places, strict=True)):
        if words:
            draw_word_node(canvas, draw, node, at, boxes[place], face)
        else:
            draw_shape(canvas, draw, node.split()[1], at, 9.5, inks[place])
    return canvas
