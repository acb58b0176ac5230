"""In which form something is answered: a number, a word, an option with its letter, a sentence.

Owns: telling forms apart, by sight alone. What training takes over first is the form of its answers
(arXiv 2510.08564, section 4), and an anchor holds the forms that its prompts are answered in
(docs/anchor.md), so that it matters which ones these are.
"""

from __future__ import annotations

import math
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

_NUMBER = re.compile(
    r"[-+−]?[$€£¥₹]?\d[\d.,:/' -]*(?:e[-+]?\d+)?\s*(?:%|°[cf]?|[$€£¥₹]|[ap]\.?m\.?)?", re.IGNORECASE
)
_LETTER_FIRST = re.compile(r"[(\[]?(?:[A-Z][)\].:]|[a-z][)\]])(?:\s.*)?|[A-Z]", re.DOTALL)
_LETTER_LAST = re.compile(r"\S.*\s[(\[][A-Za-z][)\]]\.?", re.DOTALL)
_JSON = re.compile(
    r"\{|\[\s*(?:[\[{\"\]]|(?:[-\d]|true|false|null)[^\]]*\]?$)|```(?:json\b|\s*[{\[])",
    re.IGNORECASE,
)
"""How it begins; what is cut short has no end."""

_THOUGHT = re.compile(r"\s*<think>.*?(?:</think>|\Z)", re.DOTALL)
_ENDS = ".!?。！？"
_GOES_ON = "…"
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]"
)
"""Letters of languages without spaces: Thai, Lao, Burmese, Khmer, Japanese, Chinese."""
_LETTERS_OF_A_WORD = 4
"""Of these languages, about."""


def form_of(answer: str) -> Form | None:
    """Return the form of an answer; None for an empty one, and for a thought that has not ended.

    A number is one in digits, also with a unit's sign, a date or a time of day. What was thought
    before an answer does not count, nor do marks of emphasis. An answer that ends in an ellipsis
    goes on, and only what is long does.
    """
    said = _THOUGHT.sub("", answer, count=1).strip()
    if _JSON.match(said) and not _LETTER_FIRST.fullmatch(said):
        return "JSON"
    text = said.strip("*_`").strip()
    bare = text.rstrip(_ENDS).strip()
    if not bare.strip(_GOES_ON):
        return None
    if _NUMBER.fullmatch(bare):
        return "a number"
    if _LETTER_FIRST.fullmatch(text) or _LETTER_LAST.fullmatch(text):
        return "an option with its letter"
    if bare.lower() in ("yes", "no"):
        return "yes or no"
    if text.endswith(_GOES_ON):
        return "sentences"
    words = sum(_num_words(part) for part in bare.split())
    if words == 1:
        return "a word"
    return "a few words" if words <= MOST_WORDS and text == bare else "sentences"


def _num_words(part: str) -> int:
    """Return how many words stand between two spaces."""
    return max(1, math.ceil(len(_UNSPACED.findall(part)) / _LETTERS_OF_A_WORD))


def usual_form(answers: Sequence[str]) -> Form | None:
    """Return the form that more than half of some answers have; None if there is none."""
    forms = Counter(map(form_of, answers)).most_common(1)
    return forms[0][0] if forms and 2 * forms[0][1] > len(answers) else None
