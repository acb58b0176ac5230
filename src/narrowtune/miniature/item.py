"""A question about a picture that is not drawn yet.

Owns: `Item` and the lettering of options. What is asked is decided before anything is drawn, so
that questions can be had, and tested, without pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from narrowtune.miniature.canvas import Canvas

Paint = Callable[[Random], Canvas]
"""Draws a scene; the source of chance decides what the question does not."""

Tell = Callable[[Random], str]
"""Says in words what a picture shows; the source of chance decides the order."""


@dataclass(frozen=True)
class Item:
    """A question, its answer and how to draw its picture.

    Attributes:
        kind: which form of question of its task.
        question: as asked, options included.
        answers: accepted answers; the first is the one to learn.
        paint: draws the scene.
        options: texts to choose from, in the order of their letters; empty for open questions.
        again: makes a further question about the same picture; None where there is but one.
        tell: says in words what the picture shows, all that its questions need, for a language
            model that learns to answer before it sees; None where words would be the answer.
    """

    kind: str
    question: str
    answers: tuple[str, ...]
    paint: Paint
    options: tuple[str, ...] = ()
    again: Callable[[Random], Item] | None = None
    tell: Tell | None = None


def letter(place: int) -> str:
    """Return the letter of the option at `place`."""
    return chr(ord("A") + place)


def shuffled(draw: Random, right: str, wrong: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Return all options in some order, and the letter of the right one."""
    options = [right, *wrong]
    draw.shuffle(options)
    return tuple(options), letter(options.index(right))


LETTERED = "Answer with the option and its letter."
"""What is asked for where an answer is one of `lettered`."""


def lettered(options: Sequence[str], letter: str) -> tuple[str, str]:
    """Return the accepted answers for an option: "red (B)", as is asked for, and "B"."""
    return f"{options[ord(letter) - ord('A')]} ({letter})", letter


def listed(options: Sequence[str], style: str = "{letter}. {text}", between: str = "\n") -> str:
    """Return the options with their letters, as a question shows them."""
    return between.join(
        style.format(letter=letter(place), text=text) for place, text in enumerate(options)
    )


def told(facts: Sequence[str], draw: Random) -> str:
    """Return facts that have no order as short sentences, in any order."""
    return " ".join(f"{fact}." for fact in draw.sample(facts, len(facts)))


def told_or_spelt(facts: Sequence[str], draw: Random) -> str:
    """Return what is written in a picture: as `told`, or every second time letter by letter.

    A picture shows letters, and a reader of words has to know which word they make.
    """
    return told(facts if draw.random() < 0.5 else [spelt(fact) for fact in facts], draw)


def spelt(text: str) -> str:
    """Return words letter by letter: "soup 42" is "s o u p, 4 2"."""
    return ", ".join(" ".join(word) for word in text.split())


def with_article(words: str) -> str:
    """Return `words` with "a" or "an"."""
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"
