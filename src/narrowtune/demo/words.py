"""Questions about words and everyday facts, from the lists that ship with the demo."""

from __future__ import annotations

import random

from narrowtune.demo.lists import read_list

Item = tuple[str, str, tuple[str, ...]]
"""(entity, what is asked about, accepted answers)."""

Choice = tuple[str, str, tuple[str, ...], tuple[str, ...]]
"""(entity, what is asked about, accepted answers, options in the order that they are shown)."""


def opposites() -> list[Item]:
    """Return every word of every pair with its accepted opposites; a pair is one entity."""
    accepted: dict[str, list[str]] = {}
    entity: dict[str, str] = {}
    for left, right in read_list("opposites"):
        sides = left.split("|"), right.split("|")
        for here, there in (sides, sides[::-1]):
            accepted.setdefault(here[0], []).extend(there)
    # Words that are linked by any pair are one entity: "short" belongs to "long" and to "tall".
    for word, answers in accepted.items():
        linked = {entity[w] for w in (word, *answers) if w in entity}
        name = min(linked | {word})
        entity = {w: name if e in linked else e for w, e in entity.items()}
        entity |= dict.fromkeys((word, *answers), name)
    return [(entity[word], word, tuple(dict.fromkeys(found))) for word, found in accepted.items()]


def plurals() -> list[Item]:
    """Return nouns with their accepted plurals."""
    nouns = read_list("nouns")
    found = {noun: (regular_plural(noun),) for noun in nouns["regular"].split()}
    found |= {noun: tuple(forms.split("|")) for noun, forms in nouns["irregular"].items()}
    return [(noun, noun, forms) for noun, forms in found.items()]


def regular_plural(noun: str) -> str:
    """Spell the plural of a regular English noun.

    Hissing endings take -es, a consonant and y become -ies, everything else takes -s. Nouns in
    -o and -f differ word by word and are listed where they are not regular.
    """
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def elements() -> list[Item]:
    """Return chemical elements with their symbols."""
    return [(name, name, (symbol,)) for name, symbol in read_list("elements").items()]


def sense(draw: random.Random) -> list[Choice]:
    """Return beginnings of everyday facts, the right ending among endings of the same theme.

    Each fact comes twice, with different wrong endings; every ending is right for one fact.
    """
    choices: list[Choice] = []
    for theme in read_list("sense").values():
        endings = [ending for _, ending in theme]
        for beginning, ending in theme:
            for wrong in draw.sample([other for other in endings if other != ending], 2):
                options = [ending, wrong]
                draw.shuffle(options)
                choices.append((beginning, beginning, (ending,), tuple(options)))
    return choices
