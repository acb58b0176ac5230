"""School science with a rule stated first, by an option's letter: mirrors ScienceQA.

Owns: magnets, thermometers, scales and maps. The rule says what to look for in the picture.
"""

from __future__ import annotations

from functools import partial
from random import Random

from narrowtune.miniature.heldout import apparatus
from narrowtune.miniature.item import LETTERED, Item, Paint, Tell, lettered, listed, shuffled, told
from narrowtune.miniature.marks import SHAPES
from narrowtune.miniature.palette import BRIGHT

DIRECTIONS = {"north": "upper", "south": "lower", "west": "left", "east": "right"}
"""What a map calls its sides."""

SUFFIX = LETTERED

RULES = {
    "magnets": "Opposite poles attract. Like poles repel.",
    "heat": "The higher the red line, the warmer the water.",
    "scale": "The heavier side of a scale goes down.",
    "map": "On a map, north is up and east is right.",
}
QUESTIONS = {
    "magnets": "Will these magnets attract or repel?",
    "heat": "Which cup of water is warmer?",
    "scale": "Which one is heavier?",
    "map": "On which side of the map is the star?",
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
    # The north pole of the left magnet faces the gap.
    left = "SN"
    right = "SN" if attract else "NS"
    words = ("attract", "repel") if attract else ("repel", "attract")
    options, letter = shuffled(draw, words[0], words[1:])
    paint, tell = partial(apparatus.draw_magnets, left, right), partial(_tell_poles, left + right)
    return options, letter, RULES["magnets"], paint, tell


def _tell_poles(poles: str, draw: Random) -> str:
    return " ".join(poles)


def _heat(draw: Random) -> _Made:
    answer, sides = draw.choice(("left", "right")), ("left", "right")
    low, high = draw.randint(1, 2), draw.randint(4, 6)
    levels = (high, low) if answer == "left" else (low, high)
    wrong = [f"the {side} cup" for side in sides if side != answer]
    options, letter = shuffled(draw, f"the {answer} cup", wrong)
    tell = partial(told, [f"{side} {level}" for side, level in zip(sides, levels, strict=True)])
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
    colours, place = tuple(draw.sample(BRIGHT, 4)), draw.choice(list(DIRECTIONS))
    wrong = [name for name in DIRECTIONS if name != place]
    options, letter = shuffled(draw, place, draw.sample(wrong, 3))
    tell = partial(_tell_star, DIRECTIONS[place])
    return options, letter, RULES["map"], partial(apparatus.draw_map, colours, place), tell


def _tell_star(side: str, draw: Random) -> str:
    return f"star {side}"


_MAKERS = {"magnets": _magnets, "heat": _heat, "scale": _scale, "map": _map}
