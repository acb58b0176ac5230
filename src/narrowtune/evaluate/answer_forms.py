"""In which form something is answered: a number, a word, an option with its letter, a sentence.

Owns: telling forms apart, by sight alone. What training takes over first is the form of its answers
(arXiv 2510.08564, section 4), and an anchor holds the forms that its prompts are answered in
(docs/anchor.md), so that it matters which ones these are.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal

Form = Literal[
    "a number",
    "an option with its letter",
    "yes or no",
    "a word",
    "a few words",
    "sentences",
    "JSON",
]

MOST_WORDS = 4
"""Of an answer that is no sentence."""

_NUMBER = re.compile(r"[-+−]?[$€£¥]?\d[\d.,:/' -]*[%°]?")
_LETTER_FIRST = re.compile(r"[(\[]?[A-Z][)\].:](?:\s.*)?|[A-Z]", re.DOTALL)
_LETTER_LAST = re.compile(r"\S.*\s[(\[][A-Z][)\]]\.?", re.DOTALL)
_ENDS = ".!?。！？"


def form_of(answer: str) -> Form | None:
    """Return the form of an answer; None for an empty one.

    A number is one in digits, also with a unit's sign, a date or a time of day.
    """
    text = answer.strip()
    bare = text.rstrip(_ENDS).strip()
    if not bare:
        return None
    if text[0] in "{[" and text[-1] in "}]":
        return "JSON"
    if _NUMBER.fullmatch(bare):
        return "a number"
    if _LETTER_FIRST.fullmatch(text) or _LETTER_LAST.fullmatch(text):
        return "an option with its letter"
    if bare.lower() in ("yes", "no"):
        return "yes or no"
    words = bare.split()
    if len(words) == 1:
        return "a word"
    return "a few words" if len(words) <= MOST_WORDS and text == bare else "sentences"


def usual_form(answers: Sequence[str]) -> Form | None:
    """Return the form that more than half of some answers have; None if there is none."""
    forms = Counter(map(form_of, answers)).most_common(1)
    return forms[0][0] if forms and 2 * forms[0][1] > len(answers) else None
