"""Where arrows lead, by an option's letter: mirrors AI2D.

Owns: five nodes on a ring, arrows between neighbours in either direction. Nodes are words or
shapes; the four options are the four nodes that were not asked about.
"""

from __future__ import annotations

import math
from functools import partial
from random import Random

from narrowtune.miniature.canvas import SIZE, Canvas, Point, around
from narrowtune.miniature.glyphs import PRINTED, Face
from narrowtune.miniature.ground import plain_canvas
from narrowtune.miniature.item import Item, listed, shuffled
from narrowtune.miniature.marks import SHAPES
from narrowtune.miniature.palette import BRIGHT, Ink, ink_on, mix, shade
from narrowtune.miniature.shapes import draw_shape
from narrowtune.miniature.words import ANIMALS

NUM_NODES = 5

WORDINGS = {
    "next": ("What does the arrow from the {node} lead to?", "What comes after the {node}?"),
    "before": ("Which one has an arrow to the {node}?", "What comes before the {node}?"),
}
SUFFIX = "Answer with the letter."


def make(draw: Random) -> Item:
    """Return one diagram to follow."""
    words = draw.random() < 0.5
    if words:
        nodes = draw.sample(ANIMALS, NUM_NODES)
    else:
        shapes, colours = draw.sample(SHAPES, NUM_NODES), draw.sample(BRIGHT, NUM_NODES)
        nodes = [f"{colour} {shape}" for colour, shape in zip(colours, shapes, strict=True)]
    asked, relation = draw.randrange(NUM_NODES), draw.choice(list(WORDINGS))
    forward = [draw.random() < 0.5 for _ in range(NUM_NODES)]
    # The link `i` joins node i with node i + 1. The asked node has one arrow in and one out.
    forward[asked] = forward[asked - 1]
    step = 1 if forward[asked] == (relation == "next") else -1
    right = nodes[(asked + step) % NUM_NODES]
    wrong = [node for place, node in enumerate(nodes) if node != right and place != asked]
    options, letter = shuffled(draw, right, wrong)
    wording = draw.choice(WORDINGS[relation]).format(node=nodes[asked])
    question = f"{wording}\n{listed(options)}\n{SUFFIX}"
    kind = f"{relation}_{'word' if words else 'shape'}"
    paint = partial(_paint, tuple(nodes), tuple(forward), words)
    return Item(kind, question, (letter,), paint, options)


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
    boxes = [_word_box(node) if words else (22.0, 22.0) for node in nodes]
    for link, ahead in enumerate(forward):
        ends = [link, (link + 1) % NUM_NODES]
        tail, tip = ends if ahead else reversed(ends)
        _arrow(canvas, places[tail], places[tip], boxes[tail], boxes[tip], arrow)
    face = draw.choice(PRINTED)
    for place, (node, at) in enumerate(zip(nodes, places, strict=True)):
        if words:
            _word_node(canvas, draw, node, at, boxes[place], face)
        else:
            draw_shape(canvas, draw, node.split()[1], at, 9.5, inks[place])
    return canvas


def _word_box(word: str) -> tuple[float, float]:
    return 9 + 5.8 * len(word), 14.5


def _word_node(
    canvas: Canvas, draw: Random, word: str, at: Point, box: tuple[float, float], face: Face
) -> None:
    ground = shade(mix(draw, draw.choice(BRIGHT)), draw.uniform(1, 2.5))
    canvas.rounded(around(at, *box), draw.choice((1, 4, 7)), ground, "panel")
    canvas.text(at, word, ink_on(ground, draw), 7.5, face=face)


def _arrow(
    canvas: Canvas,
    tail: Point,
    tip: Point,
    tail_box: tuple[float, float],
    tip_box: tuple[float, float],
    ink: Ink,
) -> None:
    dx, dy = tip[0] - tail[0], tip[1] - tail[1]
    length = math.hypot(dx, dy)
    dx, dy = dx / length, dy / length
    gap, end = _reach(tail_box, dx, dy), _reach(tip_box, dx, dy) + 1
    start = (tail[0] + gap * dx, tail[1] + gap * dy)
    point = (tip[0] - end * dx, tip[1] - end * dy)
    neck = (point[0] - 6 * dx, point[1] - 6 * dy)
    canvas.line([start, neck], ink, "arrow", 2)
    wings = [(neck[0] + side * 4.5 * dy, neck[1] - side * 4.5 * dx) for side in (-1, 1)]
    canvas.polygon([point, *wings], ink, "arrow")


def _reach(box: tuple[float, float], dx: float, dy: float) -> float:
    """How far a box extends from its middle in a direction."""
    sides = [half / 2 / abs(part) for half, part in zip(box, (dx, dy), strict=True) if part]
    return min(sides)
