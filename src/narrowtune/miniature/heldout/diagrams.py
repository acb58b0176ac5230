"""Where arrows lead, by an option's letter: mirrors AI2D.

Owns: five nodes on a ring, arrows between neighbours, mostly all one way round. Nodes are words or
shapes; the four options are the four nodes that were not asked about.
"""

from __future__ import annotations

import math
from functools import partial
from random import Random

from narrowtune.miniature.arrows import arrow_in_words, draw_arrow, draw_word_node, word_box
from narrowtune.miniature.canvas import SIZE, Canvas
from narrowtune.miniature.glyphs import PRINTED
from narrowtune.miniature.ground import plain_canvas
from narrowtune.miniature.item import LETTERED, Item, lettered, listed, shuffled, told
from narrowtune.miniature.marks import SHAPES
from narrowtune.miniature.palette import BRIGHT, ink_on, mix
from narrowtune.miniature.shapes import draw_shape
from narrowtune.miniature.words import ANIMALS

NUM_NODES = 5

CYCLES = 0.7
"""Share of diagrams whose arrows all go round one way, as those of life cycles do."""

WORDINGS = {
    "next": ("What does the arrow from the {node} lead to?", "What comes after the {node}?"),
    "before": ("Which one has an arrow to the {node}?", "What comes before the {node}?"),
}
SUFFIX = LETTERED


def make(draw: Random) -> Item:
    """Return one diagram to follow."""
    words = draw.random() < 0.5
    if words:
        nodes = draw.sample(ANIMALS, NUM_NODES)
    else:
        shapes, colours = draw.sample(SHAPES, NUM_NODES), draw.sample(BRIGHT, NUM_NODES)
        nodes = [f"{colour} {shape}" for colour, shape in zip(colours, shapes, strict=True)]
    asked, relation = draw.randrange(NUM_NODES), draw.choice(list(WORDINGS))
    # The link `i` joins node i with node i + 1. The asked node has one arrow in and one out.
    if draw.random() < CYCLES:
        forward = [draw.random() < 0.5] * NUM_NODES
    else:
        forward = [draw.random() < 0.5 for _ in range(NUM_NODES)]
        forward[asked] = forward[asked - 1]
    return _ask(tuple(nodes), tuple(forward), words, asked, relation, draw)


def _again(nodes: tuple[str, ...], forward: tuple[bool, ...], words: bool, draw: Random) -> Item:
    """Ask about any node with one arrow in and one out."""
    asked = draw.choice([i for i in range(NUM_NODES) if forward[i] == forward[i - 1]])
    return _ask(nodes, forward, words, asked, draw.choice(list(WORDINGS)), draw)


def _ask(
    nodes: tuple[str, ...],
    forward: tuple[bool, ...],
    words: bool,
    asked: int,
    relation: str,
    draw: Random,
) -> Item:
    step = 1 if forward[asked] == (relation == "next") else -1
    right = nodes[(asked + step) % NUM_NODES]
    wrong = [node for place, node in enumerate(nodes) if node != right and place != asked]
    options, letter = shuffled(draw, right, wrong)
    wording = draw.choice(WORDINGS[relation]).format(node=nodes[asked])
    question = f"{wording}\n{listed(options)}\n{SUFFIX}"
    kind = f"{relation}_{'word' if words else 'shape'}"
    facts = (nodes, forward, words)
    paint, again = partial(_paint, *facts), partial(_again, *facts)
    tell = partial(_tell, nodes, forward)
    return Item(kind, question, lettered(options, letter), paint, options, again, tell)


def _tell(nodes: tuple[str, ...], forward: tuple[bool, ...], draw: Random) -> str:
    links = zip(nodes, (*nodes[1:], nodes[0]), forward, strict=True)
    arrows = [arrow_in_words(a, b) if ahead else arrow_in_words(b, a) for a, b, ahead in links]
    return told(arrows, draw)


def _paint(nodes: tuple[str, ...], forward: tuple[bool, ...], words: bool, draw: Random) -> Canvas:
    inks = [] if words else [mix(draw, node.split()[0]) for node in nodes]
    canvas = plain_canvas(draw, inks, tones=("pale", "pale", "dark"))
    start = draw.uniform(0, math.tau)
    places = []
    for step in range(NUM_NODES):
        angle = start + step * math.tau / NUM_NODES
        radius = (37, 45) if words else (40, 41)
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
