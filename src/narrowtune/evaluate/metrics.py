"""How one answer is scored: eight metrics, each read strictly and leniently.

Owns the definitions. `strict` asks for the form that was asked for, `lenient` looks for the right
answer inside a longer one, `valid_format` says whether the form was kept at all, right or wrong.
A model that has only changed its manners loses strict score and valid format but keeps its lenient
score, so that a change of form is not mistaken for forgetting. `lenient` is never below `strict`.

Every score is a share from 0 to 1 and higher is better; several references give the best of them.
Comparison ignores runs of whitespace throughout, and case except where letters are symbols
(`edit_distance`, `json`).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeVar

from narrowtune.core.errors import EvaluationError
from narrowtune.core.mistakes import did_you_mean
from narrowtune.evaluate.answers import (
    as_written,
    bare,
    contains_words,
    find_letter,
    find_number,
    folded,
    normalised,
    read_letter,
    read_number,
    reference_letter,
    which_option,
    without_words,
)
from narrowtune.evaluate.json_answers import find_json, read_json, same_fields
from narrowtune.evaluate.own_metrics import is_own, score_own

Value = TypeVar("Value")

RELAXED_TOLERANCE = Decimal("0.05")
"""Relative tolerance of ChartQA's relaxed accuracy (Masry et al. 2022)."""

ANLS_THRESHOLD = 0.5
"""Similarity below which ANLS is 0 (Biten et al. 2019)."""

EXTRA_WORDS = 2
"""A short answer may be this many words longer than the longest reference."""


@dataclass(frozen=True)
class Scored:
    """One answer's scores, 0 to 1, and whether it has the form that was asked for."""

    strict: float
    lenient: float
    valid_format: bool


@dataclass(frozen=True)
class Metric:
    """A way to score an answer.

    Attributes:
        description: one sentence for reports.
        higher_is_better: true of every metric here; edit distance is turned into a similarity.
        function: (answer, references, options) to scores.
    """

    name: str
    description: str
    function: Callable[[str, Sequence[str], Sequence[str]], Scored]
    higher_is_better: bool = True


def score(
    metric: str, answer: str, references: Sequence[str], options: Sequence[str] = ()
) -> Scored:
    """Score `answer` against the accepted `references`.

    Args:
        metric: a name in `METRICS`, or `FILE.py:FUNCTION` (own_metrics.py), whose score is strict
            and lenient alike; any answer but an empty one has its form.
        answer: what the model said.
        references: accepted answers; the best match counts.
        options: texts of the choices, in order, for questions that offer some.

    Raises:
        EvaluationError: the metric is unknown, there are no references, or a reference can't be
            an answer under this metric (a number metric without a number, a letter beyond the
            options); or a user's own can't score it.
    """
    if metric not in METRICS and not is_own(metric):
        raise EvaluationError(
            asked=f"the metric {metric!r}",
            found="no metric of that name" + did_you_mean(metric, METRICS),
            do="choose one of " + ", ".join(METRICS),
        )
    if not references or not all(reference.strip() for reference in references):
        raise EvaluationError(
            asked=f"a score by {metric} for the answer {answer[:80]!r}",
            found="no reference" if not references else "an empty reference",
            do="give every row at least one accepted answer",
        )
    if metric not in METRICS:
        share = score_own(metric, answer, references)
        return Scored(share, share, bool(answer.strip()))
    return METRICS[metric].function(answer, references, options)


def right_options(metric: str, references: Sequence[str], options: Sequence[str]) -> set[int]:
    """Return the places of the options that are right; none where no option is a reference.

    By what tells the options apart, since a metric that forgives case and punctuation may take two
    options for one; by letters under `option_letter`.
    """
    if metric == "option_letter":
        return {ord(reference_letter(r, options)) - ord("A") for r in references}
    return right_places(references, options)


def right_places(references: Sequence[str], options: Sequence[str]) -> set[int]:
    """Return the places of the options that references are, by their texts."""
    places = (which_option(reference, options) for reference in references)
    wanted = {as_written(options[place]) for place in places if place is not None}
    return {place for place, option in enumerate(options) if as_written(option) in wanted}


def why_unscorable(
    metric: str, references: Sequence[str], options: Sequence[str] = ()
) -> str | None:
    """Return why no answer could be scored against `references`, and which metrics fit, or None."""
    reason = _misfit(metric, references, options)
    if reason is None:
        return None
    fitting = [name for name in METRICS if _misfit(name, references, options) is None]
    if metric == "number" and any(c.isdigit() for reference in references for c in reference):
        # Where they are no numbers it would ask for their very text, and forgive nothing.
        fitting = [name for name in fitting if name != "relaxed_number"]
    fits = f"; {', '.join(fitting)} would fit" if fitting else ""
    return f"the metric {metric} found {reason}{fits}"


def _misfit(metric: str, references: Sequence[str], options: Sequence[str]) -> str | None:
    try:
        score(metric, "", references, options)
    except EvaluationError as error:
        return error.found
    return None


def error_rate(answer: str, reference: str) -> float:
    """Return edits per reference token (phoneme or word error rate); may exceed 1.

    Tokens are what spaces separate, and case counts.
    """
    tokens = _tokens(reference)
    return _edits(_tokens(answer), tokens) / len(tokens)


def _exact_match(answer: str, references: Sequence[str], options: Sequence[str]) -> Scored:
    """Strict: the answer is a reference, outer punctuation and case aside where options allow it.

    Lenient: a reference stands in the answer as whole words, accents and punctuation aside, and
    no other option does. Valid: one of the options where there are some, else one line at most
    `EXTRA_WORDS` words longer than the longest reference.
    """
    strict = _is_any(answer, references, options)
    lenient = strict or _mentions(answer, references, options)
    return Scored(float(strict), float(lenient), _is_short(answer, references, options))


def _contains(answer: str, references: Sequence[str], options: Sequence[str]) -> Scored:
    """Strict: a reference stands in the answer as whole words, spelt and punctuated the same.

    Lenient: the same, accents and punctuation aside. Valid: the answer is not empty.
    """
    said = normalised(answer)
    strict = any(contains_words(said, bare(reference)) for reference in references)
    lenient = strict or _mentions(answer, references, ())
    return Scored(float(strict), float(lenient), bool(said))


def _number(answer: str, references: Sequence[str], options: Sequence[str]) -> Scored:
    """Strict: the whole answer is one number, in digits or words, equal to a reference.

    Lenient: the number that a longer answer settles on equals a reference. Valid: the whole
    answer is one number.
    """
    wanted = [_reference_number(reference) for reference in references]
    said = read_number(answer)
    found = said if said is not None else find_number(answer)
    return Scored(float(said in wanted), float(found in wanted), said is not None)


def _relaxed_number(answer: str, references: Sequence[str], options: Sequence[str]) -> Scored:
    """As `number`, within 5 % of a numeric reference; as `exact_match` for the other references.

    Valid: a number where a reference is one, or a short answer where a reference is a text.
    """
    numbers = [n for n in (read_number(reference) for reference in references) if n is not None]
    texts = [reference for reference in references if read_number(reference) is None]
    said = read_number(answer)
    found = said if said is not None else find_number(answer)
    strict = said is not None and any(_is_close(said, number) for number in numbers)
    lenient = found is not None and any(_is_close(found, number) for number in numbers)
    valid = bool(numbers) and said is not None
    if texts:
        other = _exact_match(answer, texts, options)
        strict, lenient = strict or other.strict > 0, lenient or other.lenient > 0
        valid = valid or other.valid_format
    return Scored(float(strict), float(lenient), valid)


def _option_letter(answer: str, references: Sequence[str], options: Sequence[str]) -> Scored:
    """Strict: the whole answer names one option: "B", "(b)", "B.", "B) its text", "its text (B)",
    "Answer: B", or the option's full text.

    Lenient: a longer answer names exactly one option. Valid: the whole answer names an option,
    right or wrong.
    """
    wanted = {reference_letter(reference, options) for reference in references}
    said = read_letter(answer, options)
    found = said if said is not None else find_letter(answer, options)
    return Scored(float(said in wanted), float(found in wanted), said is not None)


def _anls(answer: str, references: Sequence[str], options: Sequence[str]) -> Scored:
    """Strict: 1 − normalised Levenshtein distance over characters, 0 below 0.5.

    Lenient: 1 where a reference stands in the answer as whole words. Valid: as `exact_match`.
    """
    said = normalised(answer)
    similarity = max(_similarity(said, normalised(reference)) for reference in references)
    strict = similarity if similarity >= ANLS_THRESHOLD else 0.0
    lenient = 1.0 if _mentions(answer, references, options) else strict
    return Scored(strict, lenient, _is_short(answer, references, options))


def _edit_distance(answer: str, references: Sequence[str], options: Sequence[str]) -> Scored:
    """Strict: 1 − edits per reference token (see `error_rate`), not below 0.

    Lenient: the same for the stretch of the answer that fits best, case and punctuation around
    tokens aside. Valid: one line, of kinds of characters that the references have too, so that a
    sentence is not taken for a pronunciation.
    """
    strict = max(0.0, *(1 - error_rate(answer, reference) for reference in references))
    said = [bare(token) for token in _tokens(answer)]
    lenient = strict
    for reference in references:
        tokens = [bare(token) for token in _tokens(reference)]
        lenient = max(lenient, 1 - _edits(said, tokens, anywhere=True) / len(tokens))
    allowed = {kind for reference in references for kind in _character_kinds(reference)}
    valid = _is_one_line(answer) and _character_kinds(answer) <= allowed
    return Scored(strict, lenient, valid)


def _json(answer: str, references: Sequence[str], options: Sequence[str]) -> Scored:
    """Strict: the whole answer is JSON of the same values as a reference, however it is written.

    Lenient: the share of fields that JSON in a longer answer has in common with a reference
    (`same_fields`). Valid: the whole answer is a JSON object or list, as the references are.
    """
    wanted = [_reference_json(reference) for reference in references]
    said = read_json(answer)
    found = said if said is not None else find_json(answer)
    shares = [0.0 if found is None else same_fields(found, value) for value in wanted]
    valid = said is not None and any(isinstance(said, type(value)) for value in wanted)
    return Scored(float(said is not None and 1.0 in shares), max(shares), valid)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("exact_match", "the answer is an accepted answer", _exact_match),
        Metric("contains", "an accepted answer stands in the answer as whole words", _contains),
        Metric("number", "the answer is the right number", _number),
        Metric("relaxed_number", "the answer is within 5 % of the right number", _relaxed_number),
        Metric("option_letter", "the answer names the right option", _option_letter),
        Metric("anls", "character similarity to an accepted answer, 0 below 0.5", _anls),
        Metric("edit_distance", "1 − token error rate against an accepted answer", _edit_distance),
        Metric("json", "the answer is JSON of the right values", _json),
    )
}


def _is_any(answer: str, references: Sequence[str], options: Sequence[str]) -> bool:
    """Whether the answer is a reference: the same option, or the same text if it is none."""
    if which_option(answer, options) in right_places(references, options):
        return True
    others = [r for r in references if which_option(r, options) is None]
    return bare(answer) in {bare(reference) for reference in others}


def _mentions(answer: str, references: Sequence[str], options: Sequence[str]) -> bool:
    """Whether a reference, and no option that is not one, stands in the answer."""
    said = folded(answer)
    right = [folded(reference) for reference in references]
    own = right_places(references, options)
    known = {
        bare(reference) for reference in references if which_option(reference, options) is None
    }
    wrong = [
        folded(option)
        for place, option in enumerate(options)
        if place not in own and bare(option) not in known
    ]
    if not set(wrong).isdisjoint(right):
        return False  # words alone don't tell them apart
    # An option inside the right one ("York" in "New York") is not another answer.
    rest = said
    for reference in sorted(right, key=len, reverse=True):
        if reference:
            rest = without_words(rest, reference)
    found = any(reference and contains_words(said, reference) for reference in right)
    return found and not any(option and contains_words(rest, option) for option in wrong)


def _is_one_line(answer: str) -> bool:
    return len(answer.strip().splitlines()) == 1


def _is_short(answer: str, references: Sequence[str], options: Sequence[str]) -> bool:
    if options:
        return bare(answer) in {bare(option) for option in (*options, *references)}
    longest = max(len(reference.split()) for reference in references)
    return _is_one_line(answer) and len(answer.split()) <= longest + EXTRA_WORDS


def _reference_number(reference: str) -> Decimal:
    return _fitting("number", reference, read_number(reference), "not a number")


def _reference_json(reference: str) -> Any:
    return _fitting("json", reference, read_json(reference), "no JSON object or list")


def _fitting(metric: str, reference: str, value: Value | None, kind: str) -> Value:
    """Return what a reference was read as."""
    if value is None:
        raise EvaluationError(
            asked=f"a score by {metric}",
            found=f"the reference {reference[:80]!r}, which is {kind}",
            do="use the metric exact_match or contains for such rows",
        )
    return value


def _is_close(said: Decimal, wanted: Decimal) -> bool:
    return abs(said - wanted) <= RELAXED_TOLERANCE * abs(wanted)


def _tokens(text: str) -> list[str]:
    return unicodedata.normalize("NFC", text).split()


def _character_kinds(text: str) -> set[str]:
    kinds = {"digit": str.isdigit, "upper": str.isupper, "lower": str.islower}
    return {
        next((name for name, test in kinds.items() if test(character)), character)
        for character in "".join(text.split())
    }


def _similarity(left: str, right: str) -> float:
    longest = max(len(left), len(right))
    return 1 - _edits(left, right) / longest if longest else 1.0


def _edits(said: Sequence[str], wanted: Sequence[str], *, anywhere: bool = False) -> int:
    """Fewest insertions, deletions and substitutions from `said` to `wanted`.

    With `anywhere` what stands before and after the best stretch of `said` is free.
    """
    row = list(range(len(wanted) + 1))
    best = row[-1]
    for position, item in enumerate(said, start=1):
        previous, row = row, [0 if anywhere else position]
        for column, target in enumerate(wanted, start=1):
            substituted = previous[column - 1] + (item != target)
            row.append(min(substituted, previous[column] + 1, row[-1] + 1))
        best = min(best, row[-1])
    return best if anywhere else row[-1]
