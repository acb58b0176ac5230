"""What an answer says: its words, its number, its option.

Owns the reading of free text. `read_…` takes the whole answer and refuses anything beside the
value; `find_…` looks inside a longer answer and refuses to choose between several values unless
the answer itself settles on one. Nothing is ever read out of the inside of a word or a number.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from decimal import Decimal

from narrowtune.core.errors import EvaluationError

_TYPOGRAPHY = str.maketrans("‘’“”–−", "''\"\"--")
_OPENING = "\"'`*_([{¿¡«»「『（【 "
_BRACKETS = (("(", ")"), ("[", "]"), ("{", "}"))
_SENTENCE_END = ".,;:!?…。、，；：！？।॥ "
_CLOSING = "\"'`*_)]}«»」』）】" + _SENTENCE_END

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
_DIGITS_APART = (
    rf"(?<!\w)(?<!\d[.,:/])(?P<digits>{_DIGITS})(?!\w)(?![.,:/]\d)"
    rf"(?:[ -](?P<scale>{'|'.join(_SCALES)})s?\b)?"
)
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
# As in 12,500 and 12 500; and as in 1.5 and .5, but neither a date (05.01.2020) nor "No.5".
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}([,' \u00a0\u2009\u202f])\d{3}(?:\1\d{3})*(?![\d])")
_DECIMAL = re.compile(r"(?<![\w.])\d*\.\d+(?!\.?\d)")
_CURRENCIES = "AUD|BRL|CAD|CHF|CNY|CZK|DKK|EUR|GBP|HKD|INR|JPY|KRW|MXN|NOK|NZD|PLN|SEK|SGD|USD|ZAR"
_UNIT_BEFORE = re.compile(rf"^([-+−]?)\s*(?:[$€£¥₹]\s*|(?:{_CURRENCIES})\s+)", re.IGNORECASE)
_UNIT_AFTER = re.compile(rf"(?:\s*[%$€£¥₹]|\s+(?:{_CURRENCIES}))$", re.IGNORECASE)
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
# What goes on after a letter; any other word makes "A" an article and "I" a pronoun.
_RIGHT = r"is\s+(?:the\s+)?(?:right|correct|best|answer)\b"
_AFTER_A = rf"(?:(?:or|and|because|since|due|but)\b|{_RIGHT})"
_AFTER_I = rf"(?:(?:or|and)\b|{_RIGHT})"
# A letter that is no initial ("D.C."), no contraction ("I'm"), no article or pronoun ("A bird").
_LETTER_APART = (
    r"(?<![\w.'])(?<!\bnot )([A-Z])(?![\w'])(?!\.\w)"
    rf"(?!(?<=A)[ \t]+(?!{_AFTER_A})\w)(?!(?<=I)[ \t]+(?!{_AFTER_I})\w)"
)
_LETTERS = re.compile(_LETTER_APART)
_SETTLES_LETTER = re.compile(
    rf"(?i:\b{_SETTLES}(?:option\s+|choice\s+)?)[(\[*\"]*{_LETTER_APART}"
    r"(?![)\]*\"]*\s*(?:or|and|/|,)\s*[(\[*\"]*[A-Z](?!\w))"
)


def normalised(text: str) -> str:
    """Return `text` in lower case, composed, with plain quotes and dashes and single spaces."""
    return " ".join(unicodedata.normalize("NFC", text).translate(_TYPOGRAPHY).casefold().split())


def bare(text: str) -> str:
    """Return `text` normalised and without the punctuation around it, if anything is left.

    Brackets and quotes that belong to something inside stay: JSON without its last brace is another
    text than JSON.
    """
    whole = normalised(text)
    inside = whole.lstrip(_OPENING).rstrip(_CLOSING)
    if not _is_balanced(inside):
        return _unpunctuated(text)
    return inside or whole


def as_written(text: str) -> str:
    """Return `text` composed and with single spaces, and nothing else changed."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def which_option(text: str, options: Sequence[str]) -> int | None:
    """Return the place of the one option that `text` is, or None.

    Case and punctuation around it count only as far as options differ by nothing else: "[0, 1]" and
    "[0, 1)" are options of one question, and so are "AA" and "Aa".
    """
    for read in (as_written, normalised, _unpunctuated, bare):
        said = read(text)
        same = [place for place, option in enumerate(options) if read(option) == said]
        if len({as_written(options[place]) for place in same}) == 1:
            return same[0]
        if same:
            return None
    return None


def _is_balanced(text: str) -> bool:
    """Whether as many brackets of each kind open as close, and quotes come in pairs."""
    pairs = all(text.count(opening) == text.count(closing) for opening, closing in _BRACKETS)
    return pairs and text.count('"') % 2 == 0


def _unpunctuated(text: str) -> str:
    whole = normalised(text)
    return whole.rstrip(_SENTENCE_END) or whole


def folded(text: str) -> str:
    """Return only the words of `text`: no accents, no punctuation, single spaces.

    A decimal point and a minus before a number stay, and separated thousands are joined: "1.5" is
    not a 1 and a 5, and "12,500" is no 500.
    """
    plain = unicodedata.normalize("NFKD", text.casefold()).replace("\u2212", "-")
    plain = _THOUSANDS.sub(lambda match: re.sub(r"\D", "", match[0]), plain)
    kept = [
        ("" if unicodedata.combining(c) else c)
        if _is_of_word(c) or unicodedata.combining(c) or _is_of_number(plain, place)
        else " "
        for place, c in enumerate(plain)
    ]
    return " ".join("".join(kept).split())


def contains_words(text: str, words: str) -> bool:
    """Whether `words` stand in `text` as whole words and numbers.

    Scripts without spaces match anywhere.
    """
    return next(_places(text, words), None) is not None


def without_words(text: str, words: str) -> str:
    """Return `text` with every place where `words` stand replaced by a bar."""
    kept, done = [], 0
    for start in _places(text, words):
        kept.append(text[done:start])
        done = start + len(words)
    return "|".join([*kept, text[done:]])


def read_number(answer: str) -> Decimal | None:
    """Return the number that the whole answer is, or None.

    Digits or English words, a sign, thousands separators, a decimal point, a per-cent sign, a
    currency's sign or code before or behind (units: "45 %" is 45, "EUR 100" is 100) and
    punctuation around it are understood.
    """
    text = " ".join(answer.split()).lstrip(_OPENING).rstrip(_CLOSING)
    match = _NUMBER.fullmatch(_UNIT_BEFORE.sub(r"\1", _UNIT_AFTER.sub("", text)))
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
    texts = _texts(options)
    whole = answer.strip().strip("*_\"'` ").strip()
    if len({bare(text) for text in texts}) < len({as_written(text) for text in texts}):
        # Quotes and brackets around them may tell options apart.
        place = which_option(answer, texts)
        if place is not None:
            return chr(ord("A") + place)
    for text in (whole, _PREFIX.sub("", whole, count=1).strip("*_\"'` ")):
        alone = _LETTER_ALONE.fullmatch(text)
        if alone and _in_range(alone[1], options):
            return alone[1].upper()
        place = which_option(text, texts)
        if place is not None:
            return chr(ord("A") + place)
        for pattern, letter, rest in ((_LETTER_AND_TEXT, 1, 2), (_TEXT_AND_LETTER, 2, 1)):
            both = pattern.fullmatch(text)
            if both and options and _in_range(both[letter], options):
                named = ord(both[letter].upper()) - ord("A")
                if which_option(both[rest], texts) == named:
                    return both[letter].upper()
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
        EvaluationError: it is neither; or both, of different options.
    """
    letter = read_letter(reference, options)
    texts = [as_written(text) for text in options]
    if as_written(reference) in texts:
        own = chr(ord("A") + texts.index(as_written(reference)))
        if letter != own:
            raise EvaluationError(
                asked="a score by option_letter",
                found=f"the reference {reference!r}, which is a letter of {list(options)} and the "
                "text of another option",
                do=f'give both, such as "{own}) {reference}"',
            )
    if letter is None:
        raise EvaluationError(
            asked="a score by option_letter",
            found=f"the reference {reference!r}, which names none of {list(options)}",
            do="give the letter of an option, or its text",
        )
    return letter


def _places(text: str, words: str) -> Iterator[int]:
    """Yield where `words` stand in `text`, and not in the middle of a word or number."""
    place = text.find(words)
    while words and place >= 0:
        apart = _begins(text, place, words[0]) and _ends(text, place + len(words), words[-1])
        if apart:
            yield place
        place = text.find(words, place + (len(words) if apart else 1))


def _begins(text: str, start: int, first: str) -> bool:
    before = text[max(0, start - 2) : start].rjust(2)
    if _is_spaced(first) and (_is_of_word(before[1]) or before[1] == "_"):
        return False
    if not first.isdigit():
        return True
    if before[1] in ".,:/" and before[0].isdigit():
        return False
    # ".5" and "-5", but not "No.5", "3-5" and "...5".
    if before[1] not in ".-\u2212" or _is_of_word(before[0]):
        return True
    return before == ".."


def _ends(text: str, end: int, last: str) -> bool:
    after = text[end : end + 2].ljust(2)
    if _is_spaced(last) and (_is_of_word(after[0]) or after[0] == "_"):
        return False
    return not (last.isdigit() and after[0] in ".,:/" and after[1].isdigit())


def _is_of_word(character: str) -> bool:
    """Whether words are made of it: a letter, a digit, or a mark such as an Indic vowel sign."""
    if character.isalnum():
        return True
    # Not what makes a symbol of the character before it, as in emoji.
    return unicodedata.category(character) in ("Mn", "Mc") and not "\ufe00" <= character <= "\ufe0f"


def _is_of_number(text: str, place: int) -> bool:
    """Whether a mark belongs to a number: a minus before it, the one point of a decimal."""
    if not text[place + 1 : place + 2].isdigit():
        return False
    before = text[place - 1 : place] if place else " "
    if text[place] == "-":
        return not _is_of_word(before)
    return text[place] == "." and _DECIMAL.match(text, _start_of_digits(text, place)) is not None


def _start_of_digits(text: str, place: int) -> int:
    while place and text[place - 1].isdigit():
        place -= 1
    return place


def _is_spaced(character: str) -> bool:
    """Whether words of this character's script end at spaces (not Thai, Khmer, Han, Kana…)."""
    spaceless = ("\u0e00" <= character <= "\u0eff") or ("\u1780" <= character <= "\u17ff")
    return _is_of_word(character) and not spaceless and character < "\u2e80"


def _value(match: re.Match[str]) -> Decimal:
    if match["digits"] is not None:
        plain = re.sub(r"[^\d.eE+-]", "", match["digits"].replace("−", "-"))
        return Decimal(plain) * _SCALES.get((match["scale"] or "").lower(), 1)
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
