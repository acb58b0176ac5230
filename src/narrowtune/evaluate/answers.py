"""What an answer says: its words, its number, its option.

Owns the reading of free text. `read_…` takes the whole answer and refuses anything beside the
value; `find_…` looks inside a longer answer and refuses to choose between several values unless
the answer itself settles on one. Nothing is ever read out of the inside of a word or a number.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal

from narrowtune.core.errors import EvaluationError

_TYPOGRAPHY = str.maketrans("‘’“”–−", "''\"\"--")
_OPENING, _CLOSING = "\"'`*_([{¿¡«» ", "\"'`*_)]}.,;:!?«» "

_ONES = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_TEENS = [
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_VALUES = {
    **{word: value for value, word in enumerate(["zero", *_ONES, *_TEENS])},
    **{word: 10 * value for value, word in enumerate(_TENS, start=2)},
}

_DIGITS = (
    r"[-+−]?[$€£¥₹]?(?:(?:\d{1,3}(?:[,' \u00a0\u2009\u202f]\d{2,3})*[,' \u00a0\u2009\u202f]\d{3}"
    r"|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,3})?"
)
_DIGITS_APART = rf"(?<!\w)(?<!\d[.,:/])(?P<digits>{_DIGITS})(?!\w)(?![.,:/]\d)"
_HUNDRED = (
    rf"(?:(?:{'|'.join(_TENS)})(?:[- ](?:{'|'.join(_ONES)}))?"
    rf"|zero|{'|'.join(_TEENS)}|{'|'.join(_ONES)})"
)
_THOUSAND = rf"(?:(?:(?:a|{_HUNDRED})[- ])?hundred(?: (?:and )?{_HUNDRED})?|{_HUNDRED})"
_WORDS = (
    rf"(?:(?:minus|negative) )?(?:{_THOUSAND}|(?:a )?(?={'|'.join(_SCALES)}))"
    rf"(?:[- ]?(?:{'|'.join(_SCALES)})(?:,? (?:and )?{_THOUSAND})?)*"
    rf"(?: point(?: (?:zero|{'|'.join(_ONES)}))+)?"
)
_WORDS_APART = rf"(?<!\w)(?<!\w-)(?P<words>{_WORDS})(?!\w)(?!-\w)"
_NUMBER = re.compile(f"{_DIGITS_APART}|{_WORDS_APART}", re.IGNORECASE)
_UNIT_SIGN = re.compile(r"\s*[%$€£¥₹]$")
_SETTLES_NUMBER = re.compile(
    r"(?:=|\b(?:answer|total|result|sum|count)\b\s*(?:is|are|of|:)?)[\s:*]*$", re.IGNORECASE
)
_PRONOUN_BEFORE = re.compile(
    r"\b(?:no|any|some|every|each|this|that|the|which|another)\s+$", re.IGNORECASE
)

_SETTLES = (
    r"(?:(?:the|my|correct|right|best|final)\s+)*answer\s*(?:(?:is|would be)\b|[:=])?\s*[:=]?\s*"
)
_PREFIX = re.compile(rf"(?:{_SETTLES})?(?:(?:option|choice)\s*:?\s+)?", re.IGNORECASE)
_LETTER_ALONE = re.compile(r"[(\[]?([A-Za-z])[)\].:,]*")
_LETTER_AND_TEXT = re.compile(r"[(\[]?([A-Za-z])(?:[)\].:]+\**\s*|\s+-?\s*)(\S.*)")
_TEXT_AND_LETTER = re.compile(r"(\S.*?)(?:,\s*|\s+)[(\[]?([A-Za-z])[)\]]?\.?")
_LABEL_AND_TEXT = re.compile(r"[(\[]?([A-Z])[)\].:]+\**\s+\S.*")
# A letter that is no initial ("D.C."), no contraction ("I'm"), no article or pronoun ("A bird").
_LETTER_APART = r"(?<![\w.'])(?<!\bnot )([A-Z])(?![\w'])(?!\.\w)(?!(?<=[AI])\s+(?!(?:or|and)\b)\w)"
_LETTERS = re.compile(_LETTER_APART)
_SETTLES_LETTER = re.compile(
    rf"(?i:\b{_SETTLES}(?:option\s+|choice\s+)?)[(\[*\"]*{_LETTER_APART}"
    r"(?![)\]*\"]*\s*(?:or|and|/|,)\s*[(\[*\"]*[A-Z](?!\w))"
)


def normalised(text: str) -> str:
    """Return `text` in lower case, composed, with plain quotes and dashes and single spaces."""
    return " ".join(unicodedata.normalize("NFC", text).translate(_TYPOGRAPHY).casefold().split())


def bare(text: str) -> str:
    """Return `text` normalised and without the punctuation around it, if anything is left."""
    whole = normalised(text)
    return whole.lstrip(_OPENING).rstrip(_CLOSING) or whole


def folded(text: str) -> str:
    """Return only the words of `text`: no accents, no punctuation, single spaces."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    kept = (c if c.isalnum() else "" if unicodedata.combining(c) else " " for c in plain)
    return " ".join("".join(kept).split())


def contains_words(text: str, words: str) -> bool:
    """Whether `words` stand in `text` as whole words; scripts without spaces match anywhere."""
    return _pattern(words).search(text) is not None


def without_words(text: str, words: str) -> str:
    """Return `text` with every place where `words` stand replaced by a bar."""
    return _pattern(words).sub("|", text)


def read_number(answer: str) -> Decimal | None:
    """Return the number that the whole answer is, or None.

    Digits or English words, a sign, thousands separators, a decimal point, a currency or per-cent
    sign (a unit: "45 %" is 45) and punctuation around it are understood.
    """
    text = " ".join(answer.split()).lstrip(_OPENING).rstrip(_CLOSING)
    match = _NUMBER.fullmatch(_UNIT_SIGN.sub("", text))
    return _value(match) if match else None


def find_number(answer: str) -> Decimal | None:
    """Return the number that a longer answer settles on, or None.

    The only number; else the last one announced ("the answer is", "total:", "="); else the last.
    The pronoun in "no one" or "one of" is no number.
    """
    found = [match for match in _NUMBER.finditer(answer) if not _is_pronoun(match)]
    if not found:
        return None
    announced = [m for m in found if _SETTLES_NUMBER.search(answer, 0, m.start())]
    return _value((announced or found)[-1])


def read_letter(answer: str, options: Sequence[str] = ()) -> str | None:
    """Return the option's letter that the whole answer names, or None.

    Accepts the letter alone in either case, in brackets or with a full stop, the letter with the
    option's own text behind it or in front of it, the full text alone, and any of these after
    "Answer:" or the like.
    """
    texts = [bare(text) for text in _texts(options)]
    whole = answer.strip().strip("*_\"'` ").strip()
    for text in (whole, _PREFIX.sub("", whole, count=1).strip("*_\"'` ")):
        alone = _LETTER_ALONE.fullmatch(text)
        if alone and _in_range(alone[1], options):
            return alone[1].upper()
        if bare(text) in texts:
            return chr(ord("A") + texts.index(bare(text)))
        both = _LETTER_AND_TEXT.fullmatch(text)
        if both and options and _in_range(both[1], options):
            letter = both[1].upper()
            if bare(both[2]) == texts[ord(letter) - ord("A")]:
                return letter
        both = _TEXT_AND_LETTER.fullmatch(text)
        if both and options and _in_range(both[2], options):
            letter = both[2].upper()
            if bare(both[1]) == texts[ord(letter) - ord("A")]:
                return letter
        label = _LABEL_AND_TEXT.fullmatch(text)
        if label and not options:
            return label[1]
    return None


def find_letter(answer: str, options: Sequence[str] = ()) -> str | None:
    """Return the one option that a longer answer names, or None.

    The last letter announced by "the answer is"; else the only capital letter that stands alone
    and is neither article nor pronoun; else the only option whose text stands in the answer.
    """
    announced = [m[1] for m in _SETTLES_LETTER.finditer(answer) if _in_range(m[1], options)]
    if announced:
        return announced[-1]
    letters = {m[1] for m in _LETTERS.finditer(answer) if _in_range(m[1], options)}
    if letters:
        return letters.pop() if len(letters) == 1 else None
    rest, named = folded(answer), set()
    texts = [folded(text) for text in _texts(options)]
    for text in sorted(filter(None, texts), key=len, reverse=True):
        if contains_words(rest, text):
            named.add(chr(ord("A") + texts.index(text)))
            rest = without_words(rest, text)
    return named.pop() if len(named) == 1 else None


def reference_letter(reference: str, options: Sequence[str]) -> str:
    """Return the letter of a reference given as a letter or as an option's text.

    Raises:
        EvaluationError: it is neither.
    """
    letter = read_letter(reference, options)
    if letter is None:
        raise EvaluationError(
            asked="a score by option_letter",
            found=f"the reference {reference!r}, which names none of {list(options)}",
            do="give the letter of an option, or its text",
        )
    return letter


def _pattern(words: str) -> re.Pattern[str]:
    before = r"(?<!\w)" if _is_spaced(words[:1]) else ""
    after = r"(?!\w)" if _is_spaced(words[-1:]) else ""
    return re.compile(before + re.escape(words) + after)


def _is_spaced(character: str) -> bool:
    """Whether words of this character's script end at spaces (not Thai, Khmer, Han, Kana…)."""
    spaceless = ("\u0e00" <= character <= "\u0eff") or ("\u1780" <= character <= "\u17ff")
    return character.isalnum() and not spaceless and character < "\u2e80"


def _value(match: re.Match[str]) -> Decimal:
    if match["digits"] is not None:
        plain = re.sub(r"[^\d.eE+-]", "", match["digits"].replace("−", "-"))
        return Decimal(plain)
    total = current = 0
    decimals = ""
    words = re.findall(r"[a-z]+", match["words"].lower())
    for word in words:
        if "point" in decimals:
            decimals += str(_VALUES[word])
        elif word == "point":
            decimals = word
        elif word in _VALUES:
            current += _VALUES[word]
        elif word == "hundred":
            current = max(current, 1) * 100
        elif word in _SCALES:
            total, current = total + max(current, 1) * _SCALES[word], 0
    value = Decimal(f"{total + current}{decimals.replace('point', '.')}")
    return -value if words[0] in ("minus", "negative") else value


def _is_pronoun(match: re.Match[str]) -> bool:
    if match[0].lower() != "one":
        return False
    before, after = match.string[: match.start()], match.string[match.end() :]
    return bool(_PRONOUN_BEFORE.search(before) or re.match(r"\s+of\b", after))


def _texts(options: Sequence[str]) -> list[str]:
    """The options' texts without the labels "A.", "(B)"… where all carry their own."""
    labelled = [_LETTER_AND_TEXT.fullmatch(option.strip()) for option in options]
    own = [m[2] for i, m in enumerate(labelled) if m and m[1] == chr(ord("A") + i)]
    return own if len(own) == len(options) else list(options)


def _in_range(letter: str, options: Sequence[str]) -> bool:
    return ord(letter.upper()) - ord("A") < (len(options) or 26)
