"""What is in a scene, which colour, how many, what at an edge, which weather: mirrors SeedBench.

Owns: four options to each question about a landscape, all of them things that could be there.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from random import Random

from narrowtune.miniature.canvas import SIZE, Canvas
from narrowtune.miniature.item import LETTERED, Item, lettered, listed, shuffled, with_article
from narrowtune.miniature.landscape import WEATHERS, Standing, draw_landscape, tell_landscape
from narrowtune.miniature.marks import THINGS
from narrowtune.miniature.palette import BRIGHT
from narrowtune.miniature.things import PLURALS

WORDINGS = {
    "identity": ("What is in the picture?", "Which of these is in the scene?"),
    "attribute": ("What is the colour of the {a}?", "What colour does the {a} have?"),
    "counting": ("How many {many} are in the scene?", "How many {many} does the picture show?"),
    "edge": ("What is on the far {side}?", "What do you see on the far {side}?"),
    "weather": ("What is the weather like?", "Which weather does the scene show?"),
}
SUFFIX = LETTERED

NUM_OPTIONS = 4
SLOTS = 4


def make(draw: Random) -> Item:
    """Return one scene to look at."""
    kind, weather = draw.choice(list(WORDINGS)), draw.choice(WEATHERS)
    # What is at an edge is one of two, far from each other.
    names = draw.sample(THINGS, 2 if kind in ("edge", "counting") else draw.randint(2, 3))
    if kind == "counting":
        number = draw.randint(1, SLOTS)
        row = [names[0]] * number + [names[1]] * (SLOTS - number)
        draw.shuffle(row)
    else:
        row = list(names)
    slots = (0, SLOTS - 1) if kind == "edge" else sorted(draw.sample(range(SLOTS), len(row)))
    return _ask(weather, _standing(draw, row, slots), kind, draw)


def _again(weather: str, standing: tuple[Standing, ...], draw: Random) -> Item:
    """Ask something else that the scene has an answer to."""
    many = len({item.name for item in standing}) < len(standing)
    kinds = ["counting", "weather"] if many else ["identity", "attribute", "weather"]
    if not many and len(standing) == 2 and standing[1].x - standing[0].x > SIZE / 2:
        kinds.append("edge")
    return _ask(weather, standing, draw.choice(kinds), draw)


def _ask(weather: str, standing: tuple[Standing, ...], kind: str, draw: Random) -> Item:
    row = [item.name for item in standing]
    names = list(dict.fromkeys(row))
    a, side = draw.choice(standing), draw.choice(("left", "right"))
    if kind == "identity":
        absent = [name for name in THINGS if name not in names]
        right = with_article(a.name)
        wrong = [with_article(name) for name in draw.sample(absent, 3)]
    elif kind == "attribute":
        others = draw.sample([colour for colour in BRIGHT if colour != a.colour], 3)
        right, wrong = a.colour, others
    elif kind == "counting":
        right = str(row.count(a.name))
        wrong = [str(other) for other in range(1, SLOTS + 1) if str(other) != right]
    elif kind == "edge":
        right = row[0 if side == "left" else -1]
        absent = [name for name in THINGS if name not in names]
        wrong = [*(name for name in row if name != right), *draw.sample(absent, 2)]
    else:
        right, wrong = weather, [other for other in WEATHERS if other != weather]
    options, letter = shuffled(draw, right, wrong)
    wording = draw.choice(WORDINGS[kind]).format(a=a.name, side=side, many=PLURALS[a.name])
    question = f"{wording}\n{listed(options)}\n{SUFFIX}"
    paint, again = partial(_paint, weather, standing), partial(_again, weather, standing)
    tell = partial(tell_landscape, weather, standing)
    return Item(kind, question, lettered(options, letter), paint, options, again, tell)


def _standing(draw: Random, row: Sequence[str], slots: Sequence[int]) -> tuple[Standing, ...]:
    """Things from left to right, each in a slot of its own."""
    room = SIZE / SLOTS
    return tuple(
        Standing(
            name,
            draw.choice(BRIGHT),
            (slot + 0.5) * room + draw.uniform(-2, 2),
            draw.uniform(0.2, 0.9),
            draw.random() < 0.5,
        )
        for name, slot in zip(row, slots, strict=True)
    )


def _paint(weather: str, standing: tuple[Standing, ...], draw: Random) -> Canvas:
    return draw_landscape(draw, weather, standing, horizon=draw.uniform(44, 56), tall=24)
