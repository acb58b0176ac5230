"""Descriptions of scenes in a sentence: the free prompts on which drift shows.

Owns: captions of shapes and of landscapes. The order of a sentence follows the picture, so that it
has one right caption.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from random import Random

from narrowtune.miniature.canvas import SIZE, Canvas
from narrowtune.miniature.item import Item, with_article
from narrowtune.miniature.landscape import WEATHERS, Standing, draw_landscape, tell_landscape
from narrowtune.miniature.marks import THINGS
from narrowtune.miniature.palette import BRIGHT
from narrowtune.miniature.pretraining.objects import draw_objects, paint_objects, tell_objects

PROMPTS = ("Describe the picture.", "What does the picture show?", "Describe this image.")


def make(draw: Random) -> Item:
    """Return one picture to describe: one to three shapes, or two or three things outdoors."""
    question = draw.choice(PROMPTS)
    if draw.random() < 0.5:
        return _shapes(draw, question)
    weather, names = draw.choice(WEATHERS), draw.sample(THINGS, draw.randint(2, 3))
    room = SIZE / len(names)
    standing = tuple(
        Standing(
            name,
            draw.choice(BRIGHT),
            (place + 0.5) * room + draw.uniform(-3, 3),
            draw.uniform(0.2, 1),
            draw.random() < 0.5,
        )
        for place, name in enumerate(names)
    )
    listed = _listed([with_article(f"{item.colour} {item.name}") for item in standing])
    answer = f"A {weather} scene with {listed}."
    tell = partial(tell_landscape, weather, standing)
    return Item("landscape", question, (answer,), partial(_paint, weather, standing), tell=tell)


def _shapes(draw: Random, question: str) -> Item:
    number = draw.randint(1, 3)
    objects = draw_objects(draw, number)
    # From left to right.
    objects = tuple(sorted(objects, key=lambda item: item.column))
    texts = [with_article(item.text) for item in objects]
    if number == 2:
        first, second = objects
        relation = "above" if first.row < second.row else "below"
        answer = f"{_capital(texts[0])} {relation} {texts[1]}."
    else:
        answer = f"{_capital(_listed(texts))}."
    paint, tell = partial(paint_objects, objects), partial(tell_objects, objects)
    return Item("shapes", question, (answer,), paint, tell=tell)


def _listed(texts: Sequence[str]) -> str:
    if len(texts) == 1:
        return texts[0]
    return f"{', '.join(texts[:-1])} and {texts[-1]}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _paint(weather: str, standing: tuple[Standing, ...], draw: Random) -> Canvas:
    return draw_landscape(draw, weather, standing, horizon=draw.uniform(42, 56), tall=32)
