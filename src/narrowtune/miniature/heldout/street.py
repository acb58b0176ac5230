"""Where things are, what is nearer, which colour they have, in a word: mirrors RealWorldQA.

Owns: questions about a street scene whose answers are one word, without options.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from random import Random

from narrowtune.miniature.canvas import SIZE, Canvas
from narrowtune.miniature.item import Item
from narrowtune.miniature.landscape import WEATHERS, Standing, draw_landscape, tell_landscape
from narrowtune.miniature.marks import THINGS
from narrowtune.miniature.palette import BRIGHT

WORDINGS = {
    "side": ("Is the {a} left or right of the {b}?", "On which side of the {b} is the {a}?"),
    "nearer": ("Which is nearer, the {a} or the {b}?", "Is the {a} or the {b} nearer to us?"),
    "colour": ("What colour is the {a}?", "Which colour does the {a} have?"),
    "present": ("Is there a {c} in the picture?", "Do you see a {c}?"),
}

TALL = 34


def make(draw: Random) -> Item:
    """Return one street to look at."""
    kind = draw.choice(list(WORDINGS))
    number = draw.randint(2, 4)
    names = draw.sample(THINGS, number)
    columns = draw.sample(range(number), number)
    # Depths differ by steps that show in size and in height on the picture alike.
    depths = draw.sample([step / (number - 1) for step in range(number)], number)
    room = SIZE / number
    standing = tuple(
        Standing(
            name,
            draw.choice(BRIGHT),
            (column + 0.5) * room + draw.uniform(-0.1, 0.1) * room,
            depth,
            draw.random() < 0.5,
        )
        for name, column, depth in zip(names, columns, depths, strict=True)
    )
    return _ask(standing, kind, _pair(standing, kind, draw), draw)


def _again(standing: tuple[Standing, ...], draw: Random) -> Item:
    """Ask something else about the street."""
    kind = draw.choice(list(WORDINGS))
    return _ask(standing, kind, _pair(standing, kind, draw), draw)


def _pair(standing: tuple[Standing, ...], kind: str, draw: Random) -> Sequence[Standing]:
    """Return two things to ask about; for their sides, those at the two edges."""
    if kind == "side":
        ordered = sorted(standing, key=lambda item: item.x)
        return draw.sample((ordered[0], ordered[-1]), 2)
    return draw.sample(standing, 2)


def _ask(standing: tuple[Standing, ...], kind: str, pair: Sequence[Standing], draw: Random) -> Item:
    a, b = pair
    present = draw.random() < 0.5
    absent = [name for name in THINGS if name not in [item.name for item in standing]]
    c = a.name if present else draw.choice(absent)
    answer = {
        "side": "left" if a.x < b.x else "right",
        "nearer": a.name if a.depth > b.depth else b.name,
        "colour": a.colour,
        "present": "yes" if present else "no",
    }[kind]
    question = draw.choice(WORDINGS[kind]).format(a=a.name, b=b.name, c=c)
    paint, again = partial(_paint, standing), partial(_again, standing)
    tell = partial(tell_landscape, "", standing)
    return Item(kind, question, (answer,), paint, again=again, tell=tell)


def _paint(standing: tuple[Standing, ...], draw: Random) -> Canvas:
    horizon = draw.uniform(40, 50)
    weather = draw.choice(WEATHERS)
    return draw_landscape(draw, weather, standing, horizon=horizon, tall=TALL)
