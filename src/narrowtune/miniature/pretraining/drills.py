"""What needs no picture: to look up, to letter and to compare, in a few words.

Owns: exercises that a language model learns before it sees. Each asks for one step of an answer, as
often as a line holds, so that the step is learned in minutes; a question about a picture asks for
several at once, and stays at chance for as long as one of them is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from random import Random

from narrowtune.miniature import shapes, things
from narrowtune.miniature.canvas import Canvas
from narrowtune.miniature.ground import plain_canvas
from narrowtune.miniature.item import Item, letter, listed, told
from narrowtune.miniature.marks import SHAPES, THINGS
from narrowtune.miniature.palette import OBJECT_COLOURS
from narrowtune.miniature.pretraining.parts import PICK_WORDING, SMALL
from narrowtune.miniature.words import READING

AFTER, BEFORE = "What comes after {value}?", "What comes before {value}?"
EACH_AFTER = "Name each, then what comes after it: {values}"
EACH_BEFORE = "Name each, then what comes before it: {values}"
RECITE, RECITE_BACK = "Name each after the other.", "Name each before the other."
EACH_LETTER = "Name each, then its letter: {values}"
STANDS = "What stands at {value}?"
ORDERS = {
    "highest": "Which has the highest number?",
    "lowest": "Which has the lowest number?",
    "more": "Which has more, {a} or {b}?",
    "side": "Is {a} left or right of {b}?",
    "sorted": "Name each, the highest first.",
}

_PLAIN = ("There", "are", "is", "in", "this", "image", "shape", "shapes", "yes", "no")
_WORDS = tuple(
    sorted(
        {
            *SMALL,
            *READING,
            *SHAPES,
            *THINGS,
            *OBJECT_COLOURS,
            *shapes.PLURALS.values(),
            *things.PLURALS.values(),
            *_PLAIN,
        }
    )
)
"""Those that skills answer with among them: a model that has never said "rings" can't be taught to
count them by its attention alone (docs/LOG.md)."""

_STYLES = (("{letter}. {text}", "\n"), ("{letter}: {text}", ", "))
_MOST = 7  # things in an exercise
_RECITED = 20  # pairs


def make_recital(draw: Random) -> Item:
    """Return words in pairs, or options with letters, to be recited in a long row of any order.

    Nearly every second word of the answer can be looked up, so that one line teaches as much as
    dozens of questions.
    """
    if draw.random() < 0.4:
        options = draw.sample(_WORDS, draw.randint(3, 5))
        pairs = [(letter(place), text) for place, text in enumerate(options)]
        tell = partial(_tell_options, tuple(options), draw.choice(_STYLES))
    else:
        words = draw.sample(_WORDS, 2 * draw.randint(3, _MOST))
        pairs = list(zip(words[::2], words[1::2], strict=True))
        tell = partial(told, [" ".join(pair) for pair in pairs])
    back = draw.random() < 0.5
    known = [pair[::-1] if back else pair for pair in draw.choices(pairs, k=_RECITED)]
    answer = ", ".join(" ".join(pair) for pair in known)
    return Item("recital", RECITE_BACK if back else RECITE, (answer,), _paint_nothing, tell=tell)


def make_pairs(draw: Random) -> Item:
    """Return words in pairs; of some words, what their partner is."""
    words = draw.sample(_WORDS, 2 * draw.randint(2, _MOST))
    return _ask_pair(tuple(zip(words[::2], words[1::2], strict=True)), draw)


def _ask_pair(pairs: tuple[tuple[str, str], ...], draw: Random) -> Item:
    back = draw.random() < 0.5
    known = [pair[::-1] if back else pair for pair in draw.sample(pairs, len(pairs))]
    if draw.random() < 0.5:
        question = (EACH_BEFORE if back else EACH_AFTER).format(values=_joined(known, 0))
        answer = ", ".join(f"{key} {value}" for key, value in known)
    else:
        question, answer = (BEFORE if back else AFTER).format(value=known[0][0]), known[0][1]
    tell = partial(told, [" ".join(pair) for pair in pairs])
    return _item("pair", question, answer, tell, partial(_ask_pair, pairs))


def make_letters(draw: Random) -> Item:
    """Return options with their letters; of some options, which letter they have."""
    options = tuple(draw.sample(_WORDS, draw.randint(2, 5)))
    return _ask_letter(options, draw.choice(_STYLES), draw)


def _ask_letter(options: tuple[str, ...], style: tuple[str, str], draw: Random) -> Item:
    named = [(text, letter(place)) for place, text in enumerate(options)]
    known, form = draw.sample(named, len(named)), draw.choice(("each", "pick", "at"))
    question, answer = {
        "each": (
            EACH_LETTER.format(values=_joined(known, 0)),
            ", ".join(f"{text} {name}" for text, name in known),
        ),
        "pick": (PICK_WORDING.format(value=known[0][0]), known[0][1]),
        "at": (STANDS.format(value=known[0][1]), known[0][0]),
    }[form]
    tell = partial(_tell_options, options, style)
    return _item(form, question, answer, tell, partial(_ask_letter, options, style))


def make_orders(draw: Random) -> Item:
    """Return words with a number each: which is more, which is further left, all in order."""
    count = draw.randint(2, 5)
    most = draw.choice((9, 9, 99))
    numbers = draw.sample(range(1 if most < 10 else 10, most + 1), count)
    return _ask_order(tuple(zip(draw.sample(_WORDS, count), numbers, strict=True)), draw)


def _ask_order(rows: tuple[tuple[str, int], ...], draw: Random) -> Item:
    kind = draw.choice(list(ORDERS))
    order = sorted(rows, key=lambda row: -row[1])
    (a, first), (b, second) = draw.sample(rows, 2)
    answer = {
        "highest": order[0][0],
        "lowest": order[-1][0],
        "more": a if first > second else b,
        "side": "left" if first < second else "right",
        "sorted": ", ".join(f"{name} {number}" for name, number in order),
    }[kind]
    tell = partial(told, [f"{name} {number}" for name, number in rows])
    return _item(kind, ORDERS[kind].format(a=a, b=b), answer, tell, partial(_ask_order, rows))


def _item(
    kind: str,
    question: str,
    answer: str,
    tell: Callable[[Random], str],
    again: Callable[[Random], Item],
) -> Item:
    return Item(kind, question, (answer,), _paint_nothing, again=again, tell=tell)


def _joined(rows: Sequence[tuple[str, str]], column: int) -> str:
    return ", ".join(row[column] for row in rows)


def _tell_options(options: tuple[str, ...], style: tuple[str, str], draw: Random) -> str:
    return listed(options, *style)


def _paint_nothing(draw: Random) -> Canvas:
    return plain_canvas(draw)
