"""The curriculum: name one thing, bind two properties, relate two things, read.

Owns: the questions of each level. Models at random weights learn the first in minutes; binding
takes longest, so its level has nothing else in it.
"""

from __future__ import annotations

from functools import partial
from random import Random

from narrowtune.miniature.canvas import SIZE, Canvas
from narrowtune.miniature.glyphs import FACES
from narrowtune.miniature.ground import plain_canvas
from narrowtune.miniature.item import Item
from narrowtune.miniature.marks import CHARACTERS, SHAPES, THINGS
from narrowtune.miniature.palette import OBJECT_COLOURS, mix, reads_well
from narrowtune.miniature.pretraining.objects import (
    PLACES,
    SIDE,
    Placed,
    draw_objects,
    paint_objects,
    tell_objects,
)

MOST_OBJECTS = 3
MOST_CHARACTERS = 4

_LETTERS, _DIGITS = CHARACTERS[:26], CHARACTERS[26:]
_SPELT = _LETTERS.replace("l", "")  # which a row of letters could not tell from a capital I


def make_names(draw: Random) -> Item:
    """Level 1: one thing; what it is, its colour, or which character."""
    kind = draw.choice(("name", "colour", "letter", "digit"))
    if kind in ("letter", "digit"):
        text = draw.choice(_LETTERS if kind == "letter" else _DIGITS)
        return Item(kind, f"Which {kind} is this?", (text,), partial(_paint_text, text))
    return _ask_name(draw_objects(draw, 1), draw)


def _ask_name(objects: tuple[Placed, ...], draw: Random) -> Item:
    kind, question, answer = draw.choice(
        (
            ("name", "What is this?", objects[0].name),
            ("colour", "What colour is this?", objects[0].colour),
        )
    )
    again = partial(_ask_name, objects)
    return Item(kind, question, (answer,), partial(paint_objects, objects), again=again)


def make_binding(draw: Random) -> Item:
    """Level 2: which colour a thing has among others, and which thing has a colour."""
    return _ask_binding(draw_objects(draw, draw.randint(2, MOST_OBJECTS)), draw)


def _ask_binding(objects: tuple[Placed, ...], draw: Random) -> Item:
    kind, asked = draw.choice(("colour_of", "what_is", "where")), draw.choice(objects)
    question, answer = {
        "colour_of": (f"What colour is the {asked.name}?", asked.colour),
        "what_is": (f"What is {asked.colour}?", asked.name),
        "where": (f"Where is the {asked.name}?", PLACES[asked.row * SIDE + asked.column]),
    }[kind]
    paint, tell = partial(paint_objects, objects), partial(tell_objects, objects)
    again = partial(_ask_binding, objects)
    return Item(kind, question, (answer,), paint, again=again, tell=tell)


def make_relations(draw: Random) -> Item:
    """Level 3: where two things stand to each other, yes/no and by name; which is largest."""
    return _ask_relation(draw_objects(draw, draw.randint(2, MOST_OBJECTS)), draw)


def _ask_relation(objects: tuple[Placed, ...], draw: Random) -> Item:
    a, b = draw.sample(objects, 2)
    kind = draw.choice(("side", "is_side", "is_there"))
    vertical = draw.random() < 0.5
    if vertical:
        words = ("above", "below") if a.row < b.row else ("below", "above")
    else:
        words = ("left of", "right of") if a.column < b.column else ("right of", "left of")
    truth = draw.random() < 0.5
    if kind == "side":
        asked = "above or below" if vertical else "left or right of"
        answer = words[0].removesuffix(" of")
        question = f"Is the {a.name} {asked} the {b.name}?"
    elif kind == "is_side":
        question, answer = f"Is the {a.name} {words[not truth]} the {b.name}?", _yes(truth)
    else:
        shown = draw.choice(objects)
        question, answer = f"Is there a {_asked(draw, shown, objects, truth)}?", _yes(truth)
    paint, tell = partial(paint_objects, objects), partial(tell_objects, objects)
    again = partial(_ask_relation, objects)
    return Item(kind, question, (answer,), paint, again=again, tell=tell)


def make_reading(draw: Random) -> Item:
    """Level 4: a few letters or digits in a row, named one by one."""
    number, kind = draw.randint(2, MOST_CHARACTERS), draw.choice(("letters", "digits"))
    # Never both kinds in one row: an O is no zero only because the question says so.
    characters = _SPELT if kind == "letters" else _DIGITS
    text = "".join(draw.choice(characters) for _ in range(number))
    question = draw.choice(("Spell the {kind}.", "Which {kind} are written here?"))
    answer = (" ".join(text),)
    return Item(kind, question.format(kind=kind), answer, partial(_paint_text, text))


def _asked(draw: Random, shown: Placed, objects: tuple[Placed, ...], truth: bool) -> str:
    """A coloured thing that is there, or one with the name or the colour of one that is."""
    if truth:
        return shown.text
    names = {item.name for item in objects}
    colours = {item.colour for item in objects}
    if draw.random() < 0.5:
        colour = draw.choice([name for name in OBJECT_COLOURS if name not in colours])
        return shown._replace(colour=colour).text
    other = draw.choice([name for name in (*SHAPES, *THINGS) if name not in names])
    return shown._replace(name=other).text


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


def _paint_text(text: str, draw: Random) -> Canvas:
    canvas, ink = plain_canvas(draw), mix(draw, draw.choice(OBJECT_COLOURS))
    while not reads_well(ink, canvas.ground):
        ink = mix(draw, draw.choice(OBJECT_COLOURS))
    height = draw.uniform(7, 40 if len(text) == 1 else 22)
    room = (SIZE / 2 - 0.5 * height * len(text) - 3, SIZE / 2 - 0.6 * height - 2)
    at = tuple(SIZE / 2 + draw.uniform(-1, 1) * max(0.0, free) for free in room)
    shown = draw.choice((text, text.upper()))
    # A capital I and a small L are one stroke each.
    shown = text if "i" in text else text.upper() if "l" in text else shown
    canvas.text((at[0], at[1]), shown, ink, height, face=draw.choice(FACES))
    return canvas
