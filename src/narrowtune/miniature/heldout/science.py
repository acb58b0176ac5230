"""School science with a rule stated first, by an option's letter: mirrors ScienceQA.

Owns: magnets, thermometers, scales and maps with a key. The rule is needed beside the picture; for
a map it is drawn anew each time, so that it can't be learnt by heart.
"""

from __future__ import annotations

from functools import partial
from random import Random

from narrowtune.miniature.heldout import apparatus
from narrowtune.miniature.item import LETTERED, Item, Paint, Tell, lettered, listed, shuffled, told
from narrowtune.miniature.marks import SHAPES
from narrowtune.miniature.palette import BRIGHT

LANDS = ("forest", "lake", "desert", "city", "farm", "swamp", "beach", "hill")
SUFFIX = LETTERED

RULES = {
    "magnets": "Opposite poles attract. Like poles repel.",
    "heat": "The higher the red line, the warmer the water.",
    "scale": "The heavier side of a scale goes down.",
}
QUESTIONS = {
    "magnets": "Will these magnets attract or repel?",
    "heat": "Which cup of water is warmer?",
    "scale": "Which one is heavier?",
    "map": "What is at the star on the map?",
}

_Made = tuple[tuple[str, ...], str, str, Paint, Tell]
"""Options, the right one's letter, the rule, the drawing and what it shows in words."""


def make(draw: Random) -> Item:
    """Return one experiment or map."""
    kind = draw.choice(list(QUESTIONS))
    return _ask(kind, *_MAKERS[kind](draw), draw)


def _ask(
    kind: str,
    options: tuple[str, ...],
    letter: str,
    rule: str,
    paint: Paint,
    tell: Tell,
    draw: Random,
) -> Item:
    question = f"Context: {rule}\nQuestion: {QUESTIONS[kind]}\n{listed(options)}\n{SUFFIX}"
    right = options["ABCD".index(letter)]
    again = partial(_again, kind, right, options, rule, paint, tell)
    return Item(kind, question, lettered(options, letter), paint, options, again, tell)


def _again(
    kind: str,
    right: str,
    options: tuple[str, ...],
    rule: str,
    paint: Paint,
    tell: Tell,
    draw: Random,
) -> Item:
    """Ask the same with the options in another order."""
    options, letter = shuffled(draw, right, [text for text in options if text != right])
    return _ask(kind, options, letter, rule, paint, tell, draw)


def _magnets(draw: Random) -> _Made:
    attract = draw.random() < 0.5
    left = draw.choice(("NS", "SN"))
    # What faces the gap is the last pole of the left magnet and the first of the right one.
    right = left if attract else left[::-1]
    words = ("attract", "repel") if attract else ("repel", "attract")
    options, letter = shuffled(draw, words[0], words[1:])
    paint, tell = partial(apparatus.draw_magnets, left, right), partial(_tell_poles, left + right)
    return options, letter, RULES["magnets"], paint, tell


def _tell_poles(poles: str, draw: Random) -> str:
    return " ".join(poles)


def _heat(draw: Random) -> _Made:
    answer = draw.choice(("left", "right", "neither"))
    low, high = draw.choice(((2, 4), (2, 5), (3, 5), (2, 6), (3, 6), (4, 6), (1, 3)))
    same = draw.randint(1, 6)
    levels = {"left": (high, low), "right": (low, high), "neither": (same, same)}[answer]
    texts = {"left": "the left cup", "right": "the right cup", "neither": "they are the same"}
    wrong = [text for name, text in texts.items() if name != answer]
    options, letter = shuffled(draw, texts[answer], wrong)
    tell = partial(told, [f"{side} {level}" for side, level in zip(texts, levels, strict=False)])
    return options, letter, RULES["heat"], partial(apparatus.draw_cups, levels), tell


def _scale(draw: Random) -> _Made:
    colours, shapes = draw.sample(BRIGHT, 2), draw.sample(SHAPES, 2)
    texts = [f"the {colour} {shape}" for colour, shape in zip(colours, shapes, strict=True)]
    heavy = draw.randrange(2)
    options, letter = shuffled(draw, texts[heavy], [texts[1 - heavy]])
    loads = tuple(zip(colours, shapes, strict=True))
    names = [" ".join(load) for load in loads]
    tell = partial(told, [f"{names[heavy]} lower", f"{names[1 - heavy]} upper"])
    return options, letter, RULES["scale"], partial(apparatus.draw_scale, loads, heavy), tell


def _map(draw: Random) -> _Made:
    colours, lands = draw.sample(BRIGHT, 4), draw.sample(LANDS, 4)
    place = draw.randrange(4)
    options, letter = shuffled(draw, lands[place], lands[:place] + lands[place + 1 :])
    key = list(zip(colours, lands, strict=True))
    draw.shuffle(key)
    rule = "On the map, " + ", ".join(f"{colour} means {land}" for colour, land in key) + "."
    facts = [f"{'star ' * (colour == colours[place])}{colour}" for colour in colours]
    paint = partial(apparatus.draw_map, tuple(colours), place)
    return options, letter, rule, paint, partial(told, facts)


_MAKERS = {"magnets": _magnets, "heat": _heat, "scale": _scale, "map": _map}
