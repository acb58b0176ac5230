"""The words of the small world, all of them: what a tokenizer for it has to know.

Owns: `vocabulary`. A test holds every question and answer to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from narrowtune.miniature import plumage, shapes, things, words
from narrowtune.miniature.heldout import (
    charts,
    diagrams,
    forms,
    infographics,
    puzzles,
    scenes,
    science,
    street,
)
from narrowtune.miniature.landscape import WEATHERS
from narrowtune.miniature.marks import SHAPES, THINGS
from narrowtune.miniature.palette import COLOURS
from narrowtune.miniature.pretraining import captions, drills, parts, priors, sheets, tallies
from narrowtune.miniature.targets import birds, clock, counting, signs, tissue

_SENTENCES = (
    "There is are in this image. shape shapes",
    "Context: Question: On a map . a an",
    "the left cup, the right cup, attract, repel, tip",
    "A scene with and. above below left of right of. yes no",
    "Which letter digit is this? What is this? What colour is this?",
    "What colour is the? What is? Where is the? Is the above or below left or right of? Is there?",
    "Spell the letters digits. Which are written here? upper middle lower",
)


@lru_cache(maxsize=1)
def vocabulary() -> tuple[str, ...]:
    """Return every word of two letters and more that a question or answer may have, in order.

    Lower case. Numbers, single letters and the codes on forms are not among them.
    """
    found = {word for text in _texts() for word in split_words(text)}
    return tuple(sorted(found))


def split_words(text: str) -> list[str]:
    """Return the words of `text` that `vocabulary` is about."""
    plain = re.sub(r"\{.*?\}", " ", text.lower())
    return re.findall(r"(?<!\w)[a-z]{2,}(?!\w)", plain)


def _texts() -> Iterator[str]:
    yield from _SENTENCES
    for name in ("READING", "NAMES", "CITIES", "MONTHS", "GOODS", "TOPICS", "ANIMALS"):
        yield from getattr(words, name)
    yield from (*COLOURS, *SHAPES, *THINGS, *WEATHERS)
    yield from (*shapes.PLURALS.values(), *things.PLURALS.values())
    yield from (species.name for species in birds.SPECIES)
    yield from (*tissue.TISSUES, *tissue.STAINS, *tissue.PLACES, *signs.CARRIERS)
    yield from (*forms.TITLES, *forms.FIELDS, *science.DIRECTIONS, *puzzles.CORNERS)
    yield from (*science.RULES.values(), *science.QUESTIONS.values())
    yield from (*birds.WORDINGS, *counting.WORDINGS, *clock.WORDINGS, *captions.PROMPTS)
    yield from (tallies.WORDING, *priors.PLUMAGE_WORDINGS.values(), *priors.GAUGES_WORDINGS)
    yield from (*plumage.WINGS, *plumage.HEADS, priors.NOTHING)
    open_forms = (tissue.OPEN, tissue.YES_NO, signs.WORDINGS, diagrams.WORDINGS, charts.WORDINGS)
    more_forms = (forms.WORDINGS, infographics.WORDINGS, street.WORDINGS, scenes.WORDINGS)
    yield from (
        sheets.WORDING,
        parts.LISTS_WORDING,
        *parts.LAYOUTS,
        *parts.ROWS_WORDINGS,
        *parts.WORDS_WORDINGS,
    )
    yield from (drills.AFTER, drills.BEFORE, drills.EACH_AFTER, drills.EACH_BEFORE)
    yield from (drills.RECITE, drills.RECITE_BACK)
    yield from (drills.EACH_LETTER, drills.STANDS, *drills.ORDERS.values())
    yield from (
        *parts.SPELLING_WORDINGS,
        parts.PICK_WORDING,
        parts.EACH_WORDING,
        *parts.SUFFIXES.values(),
        parts.SUFFIX,
    )
    for table in (parts.ARROWS_WORDINGS, *open_forms, *more_forms, puzzles.WORDINGS):
        for wordings in table.values():
            yield from wordings
    for module in (birds, diagrams, charts, forms, infographics, scenes, science, puzzles):
        yield module.SUFFIX
