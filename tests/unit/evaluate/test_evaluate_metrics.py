"""Scores: what counts as right strictly, leniently, and as an answer in the form asked for."""

from __future__ import annotations

from decimal import Decimal
from typing import get_args

import pytest

from narrowtune.core.data_settings import MetricName
from narrowtune.core.errors import EvaluationError
from narrowtune.evaluate.answers import find_number, read_number
from narrowtune.evaluate.metrics import METRICS, error_rate, right_options, score, why_unscorable

ANIMALS = ("a bird", "a cat", "a dog", "a cow", "a horse")


def outcome(metric, answer, references, options=()):
    scored = score(metric, answer, references, options)
    return scored.strict, scored.lenient, scored.valid_format


def test_every_metric_of_the_configuration_exists():
    assert set(METRICS) == set(get_args(MetricName))
    assert all(metric.higher_is_better and metric.description for metric in METRICS.values())


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("fourteen", "14"),
        ("Sixteen.", "16"),
        ("eighteen", "18"),
        ("forty-two", "42"),
        ("ninety nine", "99"),
        ("zero", "0"),
        ("one hundred and five", "105"),
        ("a hundred", "100"),
        ("two thousand three hundred", "2300"),
        ("a thousand", "1000"),
        ("three hundred thousand", "300000"),
        ("minus seven", "-7"),
        ("one point five", "1.5"),
        ("1.5", "1.5"),
        (".5", "0.5"),
        ("-3", "-3"),
        ("−3", "-3"),
        ("1,234", "1234"),
        ("1,234,567.25", "1234567.25"),
        ("12 345", "12345"),
        ("1,00,000", "100000"),
        ("$1,200", "1200"),
        ("45%", "45"),
        ("45 %", "45"),
        ("**7**", "7"),
        ("(7).", "7"),
        ("1e3", "1000"),
        ("007", "7"),
    ],
)
def test_a_whole_number_is_read(text, number):
    assert read_number(text) == Decimal(number)


@pytest.mark.parametrize(
    "text",
    ["", "none", "someone", "often", "1,5", "1.2.3", "12:30", "1/2", "3rd", "x2", "5 apples",
     "one two", "10²", "weightless", "ten-year-old", "No one"],
)  # fmt: skip
def test_what_is_no_whole_number_is_not_read(text):
    assert read_number(text) is None


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("There are fourteen animals.", "14"),
        ("None of them, said someone", None),
        ("No one knows", None),
        ("One of the animals is a dog", None),
        ("There are 3: a dog, a cat and one cow. The answer is 3, not 4", "3"),
        ("2 cats + 3 dogs = 5 animals, on 1 farm", "5"),
        ("2 cats and 3 dogs make 5", "5"),
        ("Total: **12**", "12"),
        ("It is 12:30", None),
        ("a ratio of 1/2", None),
        ("the version is 1.2.3", None),
        ("It weighs 1.5 kg", "1.5"),
        ("Answer:5", "5"),
        ("It is 45 million", "45000000"),
        ("about 1.5 billion people", "1500000000"),
        ("some 3 thousands", "3000"),
        ("a million", "1000000"),
    ],
)
def test_a_number_is_found_in_prose(text, number):
    assert find_number(text) == (None if number is None else Decimal(number))


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("fourteen", "4", (0, 0, True)),
        ("fourteen", "14", (1, 1, True)),
        ("someone", "1", (0, 0, False)),
        ("1.5", "15", (0, 0, True)),
        ("5.0", "5", (1, 1, True)),
        ("There are 5 animals", "5", (0, 1, False)),
        ("There are 15 animals", "5", (0, 0, False)),
        ("", "5", (0, 0, False)),
    ],
)
def test_number(answer, reference, expected):
    assert outcome("number", answer, [reference]) == expected


@pytest.mark.parametrize(
    ("answer", "references", "expected"),
    [
        ("95", ["100"], (1, 1, True)),
        ("105", ["100"], (1, 1, True)),
        ("94.99", ["100"], (0, 0, True)),
        ("105.01", ["100"], (0, 0, True)),
        ("-95", ["-100"], (1, 1, True)),
        ("95", ["-100"], (0, 0, True)),
        ("0", ["0"], (1, 1, True)),
        ("0.001", ["0"], (0, 0, True)),
        ("45%", ["45"], (1, 1, True)),
        ("about 98 people", ["100"], (0, 1, False)),
        ("Blue.", ["blue"], (1, 1, True)),
        ("it is the colour blue", ["blue"], (0, 1, False)),
        ("12", ["blue"], (0, 0, True)),
        ("twenty", ["blue", "20"], (1, 1, True)),
    ],
)
def test_relaxed_number(answer, references, expected):
    assert outcome("relaxed_number", answer, references) == expected


@pytest.mark.parametrize(
    ("answer", "references", "expected"),
    [
        ("Paris", ["paris"], (1, 1, True)),
        (' "Paris". ', ["Paris"], (1, 1, True)),
        ("PARIS\n", ["Paris"], (1, 1, True)),
        ("The capital of France is Paris.", ["Paris"], (0, 1, False)),
        ("Rome", ["Paris"], (0, 0, True)),
        ("Parish", ["Paris"], (0, 0, True)),
        ("It is in the parish church", ["Paris"], (0, 0, False)),
        ("7", ["Abu Dhabi"], (0, 0, True)),
        ("Bogota", ["Bogotá"], (0, 1, True)),
        ("Bogota\u0301", ["Bogot\u00e1"], (1, 1, True)),
        ("Côte d’Ivoire", ["Côte d'Ivoire"], (1, 1, True)),
        ("Washington DC", ["Washington, D.C.", "Washington DC"], (1, 1, True)),
        ("Paris\nIt lies on the Seine", ["Paris"], (0, 1, False)),
        ("首都是北京。", ["北京"], (0, 1, True)),
        ("北京。", ["北京"], (1, 1, True)),
        ("Paris…", ["Paris"], (1, 1, True)),
        (".5", ["5"], (0, 0, True)),
        ("?", ["?"], (1, 1, True)),
        ("", ["Paris"], (0, 0, False)),
    ],
)
def test_exact_match(answer, references, expected):
    assert outcome("exact_match", answer, references) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes.", (1, 1, True)),
        ("no", (0, 0, True)),
        ("Yes, it can", (0, 1, False)),
        ("Yes and no", (0, 0, False)),
        ("maybe", (0, 0, False)),
    ],
)
def test_exact_match_with_options_does_not_count_an_answer_that_names_both(answer, expected):
    assert outcome("exact_match", answer, ["yes"], ["yes", "no"]) == expected


def test_an_option_inside_the_right_one_is_not_another_answer():
    answer = "I would say New York, of course"
    assert outcome("exact_match", answer, ["New York"], ["York", "New York"]) == (0, 1, False)


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("The sign says STOP!", "stop", (1, 1, True)),
        ("The sign says nonstop", "stop", (0, 0, True)),
        ("It is 15", "5", (0, 0, True)),
        ("Il est à Orléans", "Orleans", (0, 1, True)),
        ("co-operate", "co operate", (0, 1, True)),
        ("It costs 1.5 dollars", "5", (0, 0, True)),
        ("12,500 people", "12", (0, 0, True)),
        ("at 12:30", "12", (0, 1, True)),
        ("The change is +5 %.", "5", (1, 1, True)),
        ("Answer...5", "5", (1, 1, True)),
        ("\u27a1\ufe0fParis", "Paris", (1, 1, True)),
        ("1,500", "500", (0, 0, True)),
        ("-5", "5", (0, 0, True)),
        (".5", "5", (0, 0, True)),
        ("pages 3-5", "5", (1, 1, True)),
        ("No.5, of 1.5.", "5", (1, 1, True)),
        ("It is 5. Or 6, no: 7", "5", (1, 1, True)),
        ("between 1.5 and 2", "1.5", (1, 1, True)),
        ("दिल्ली", "दिल", (0, 0, True)),
        ("यह किताब है", "किताब", (1, 1, True)),
        ("", "stop", (0, 0, False)),
    ],
)
def test_contains(answer, reference, expected):
    assert outcome("contains", answer, [reference]) == expected


@pytest.mark.parametrize(
    "answer",
    ["B", "b", "(B)", "B.", "B)", "[B]", "**B**", "B) a cat", "B. a cat", "(B) A cat.", "B a cat",
     "Answer: B", "The answer is B.", "the correct answer is option (B)", "Option B", "a cat",
     "A cat.", "Answer: a cat", " B\n"],
)  # fmt: skip
def test_option_letter_in_the_form_asked_for(answer):
    for reference in ("B", "a cat"):
        assert outcome("option_letter", answer, [reference], ANIMALS) == (1, 1, True)
    assert outcome("option_letter", answer, ["C"], ANIMALS) == (0, 0, True)


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("This is a bird D", "D", (0, 1, False)),
        ("This is a bird D", "A", (0, 0, False)),
        ("I think E", "E", (0, 1, False)),
        ("I think E", "I", (0, 0, False)),
        ("A bird in the hand", "A", (0, 1, False)),
        ("A cat, I believe", "A", (0, 0, False)),
        ("A or B", "B", (0, 0, False)),
        ("A\n\nExplanation: it flies", "A", (0, 1, False)),
        ("The answer is A because of its wings", "A", (0, 1, False)),
        ("A is right", "A", (0, 1, False)),
        ("A is a bird, so it must be C", "C", (0, 1, False)),
        ("I was unsure, but B fits best.", "B", (0, 1, False)),
        ("I as an assistant choose B.", "B", (0, 1, False)),
        ("The answer is A or B", "A", (0, 0, False)),
        ("B, not C", "B", (0, 1, False)),
        ("B) a dog", "B", (0, 1, False)),
        ("Because it barks, the answer is (C) and not (B).", "C", (0, 1, False)),
        ("It is clearly a dog, as it barks", "C", (0, 1, False)),
        ("a dog or a cat", "C", (0, 0, False)),
        ("The one in D.C.", "C", (0, 0, False)),
        ("I choose A.", "A", (0, 1, False)),
        ("C\nIt barks", "C", (0, 1, False)),
        ("Z", "C", (0, 0, False)),
        ("The dog", "A", (0, 0, False)),
        ("", "A", (0, 0, False)),
    ],
)
def test_option_letter_in_prose(answer, reference, expected):
    options = ("a bird", "a cat", "a dog", "a cow", "a horse", "f", "g", "h", "nine")
    assert outcome("option_letter", answer, [reference], options) == expected


INTERVALS = ("(0, 1)", "[0, 1]", "(0, 1]", "[0, 1)")
GENOTYPES = ("AA", "Aa", "aa")


@pytest.mark.parametrize("metric", ["exact_match", "option_letter"])
@pytest.mark.parametrize("options", [INTERVALS, GENOTYPES, ("f", "f'"), ("5", "5!")])
def test_options_that_differ_by_case_or_brackets_alone_are_told_apart(metric, options):
    for place, reference in enumerate(options):
        said = [outcome(metric, option, [reference], options)[0] for option in options]
        assert said == [float(other == place) for other in range(len(options))]
        assert right_options(metric, [reference], options) == {place}


def test_options_that_differ_otherwise_forgive_case_and_brackets():
    assert outcome("exact_match", "(PARIS).", ["paris"], ["Paris", "Rome"]) == (1, 1, True)
    assert right_options("exact_match", ["paris"], ["Paris", "Rome"]) == {0}
    assert right_options("exact_match", ["Oslo"], ["Paris", "Rome"]) == set()
    assert right_options("option_letter", ["B"], ["Paris", "Rome"]) == {1}


@pytest.mark.parametrize(
    ("metric", "answer", "reference", "options", "expected"),
    [
        ("exact_match", "[0, 1).", "[0, 1)", ("[0, 1]", "[0, 1)", "(0, 1)"), (1, 1, True)),
        ("exact_match", "pear.", "Pear", ("Apple", "apple", "Pear"), (1, 1, True)),
        ("exact_match", "APPLE", "Apple", ("Apple", "apple", "Pear"), (0, 0, True)),
        ("option_letter", "C) Pear.", "C", ("Apple", "apple", "Pear"), (1, 1, True)),
        ("option_letter", "pear", "C", ("Apple", "apple", "Pear"), (1, 1, True)),
        ("option_letter", "Pear.", "C", ("Yes", "Yes.", "Pear"), (1, 1, True)),
    ],
)
def test_two_options_that_are_alike_make_no_other_stricter(
    metric, answer, reference, options, expected
):
    assert outcome(metric, answer, [reference], options) == expected


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("The answer is 1,2,3.", "1, 2, 3"),
        ("The point is (3,4)", "(3, 4)"),
        ("It is 06 : 15", "06:15"),
        ("2020-01-05", "2020/01/05"),
        ("The date is 05.01.2020.", "05/01/2020"),
        ("10 000 people", "10,000"),
        ("Result: 2-1", "2:1"),
        ("Lines 3,4 and 5", "4"),
        ("some 12,500.50 in all", "12500.50"),
    ],
)
def test_punctuation_between_numbers_is_forgiven_leniently(answer, reference):
    assert outcome("exact_match", answer, [reference])[1] == 1


@pytest.mark.parametrize(
    ("answer", "reference"),
    [("1.5 dollars", "5"), ("12,500", "500"), ("12 500", "12"), ("it is -5", "5"), ("x .5", "5")],
)
def test_numbers_are_not_taken_apart_even_leniently(answer, reference):
    assert outcome("exact_match", answer, [reference])[1] == 0


def test_a_letter_that_is_also_another_options_text_is_refused():
    with pytest.raises(EvaluationError, match="text of another option"):
        score("option_letter", "O", ["A"], ("O", "A", "B", "AB"))
    assert outcome("option_letter", "B", ["B) A"], ("O", "A", "B", "AB")) == (1, 1, True)


def test_option_letter_without_options_and_with_labelled_ones():
    assert outcome("option_letter", "B. two cats", ["B"]) == (1, 1, True)
    assert outcome("option_letter", "I think it is", ["I"]) == (0, 0, False)
    assert outcome("option_letter", "a cat", ["B"], ["A. a bird", "B. a cat"]) == (1, 1, True)
    assert outcome("option_letter", "O", ["O"], ["A", "B", "O", "AB"]) == (1, 1, True)


def test_anls():
    assert outcome("anls", "Hello  World", ["hello world"]) == (1, 1, True)
    assert score("anls", "hella", ["hello"]).strict == pytest.approx(0.8)
    assert score("anls", "hellas", ["hello", "hella"]).strict == pytest.approx(5 / 6)
    assert score("anls", "abxx", ["abcd"]).strict == pytest.approx(0.5)
    assert outcome("anls", "axxx", ["abcd"]) == (0, 0, True)
    assert outcome("anls", "The total amount due is 42 dollars", ["42"]) == (0, 1, False)
    assert outcome("anls", "", ["42"]) == (0, 0, False)


def test_edit_distance_is_one_minus_the_phoneme_error_rate():
    tomato = "T AH0 M EY1 T OW2"
    assert outcome("edit_distance", tomato, [tomato]) == (1, 1, True)
    one_wrong = score("edit_distance", "T AH0 M AA1 T OW2", [tomato])
    assert one_wrong.strict == one_wrong.lenient == pytest.approx(5 / 6)
    assert score("edit_distance", "T AH0 M AA1 T OW2", [tomato, "T AH0 M AA1 T OW2"]).strict == 1
    sentence = score("edit_distance", f"It is pronounced {tomato}.", [tomato])
    assert sentence.strict == pytest.approx(1 - 4 / 6)
    assert (sentence.lenient, sentence.valid_format) == (1, False)
    assert outcome("edit_distance", "", [tomato]) == (0, 0, False)
    assert outcome("edit_distance", "K K K K K K K K K K K K", [tomato]) == (0, 0, True)
    assert error_rate("K K K K K K K K K K K K", tomato) == 2.0
    assert error_rate("", tomato) == 1.0


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_lenient_is_never_below_strict_and_a_strict_hit_is_valid(metric):
    answers = [
        "B",
        "5",
        "5.",
        "a cat",
        "A cat",
        "it is a cat",
        "five",
        "",
        "B) a cat",
        "(5)",
        "5 b",
        '{"a": 5}',
        'it is {"a": 5, "b": 1}',
    ]
    own = {"number": ["5"], "option_letter": ["B", "a cat"], "json": ['{"a": 5.0}', "[5]"]}
    references = own.get(metric, ["5", "a cat", "B"])
    options = ANIMALS if metric == "option_letter" else ()
    hits = 0
    for answer in answers:
        scored = score(metric, answer, references, options)
        assert 0 <= scored.strict <= scored.lenient <= 1
        assert scored.valid_format or scored.strict < 1
        hits += scored.strict == 1
    assert hits


@pytest.mark.parametrize(
    ("metric", "references", "part"),
    [
        ("accuracy", ["x"], "exact_match"),
        ("exact_match", [], "no reference"),
        ("exact_match", ["x", " "], "empty reference"),
        ("number", ["many"], "'many'"),
        ("option_letter", ["F"], "'F'"),
        ("json", ["5"], "'5'"),
        ("json", ['{"a": 1, "a": 2}'], "no JSON object or list"),
    ],
)
def test_what_cannot_be_scored_is_an_error(metric, references, part):
    with pytest.raises(EvaluationError, match=part):
        score(metric, "x", references, ANIMALS if metric == "option_letter" else ())


INVOICE = '{"no": "A-1", "total": 5, "lines": [{"item": "pen", "net": 4.2}], "paid": true}'


@pytest.mark.parametrize(
    ("answer", "strict", "lenient", "valid"),
    [
        (INVOICE, 1, 1, True),
        # However it is written.
        (INVOICE.replace(" ", "\n  "), 1, 1, True),
        (
            '{"paid": true, "lines": [{"net": 4.20, "item": "pen"}], "total": 5.0, "no": "A-1"}',
            1,
            1,
            True,
        ),
        # Case is content, true is no 1, and a key that is given twice says two things.
        (INVOICE.replace("A-1", "a-1"), 0, 3 / 4 + 0.05, True),
        (INVOICE.replace("true", "1"), 0, 0.8, True),
        (INVOICE.replace('"total": 5', '"total": 5, "total": 6'), 0, 0, False),
        # What is cut off is none, whatever is left of it.
        (INVOICE[:-1], 0, 0, False),
        (INVOICE[1:-1], 0, 1 / 3 + 1 / 3 - 2 / 3, False),
        # Words around it, a fence, a field too many, a list for an object.
        (f"Here it is: {INVOICE}.", 0, 1, False),
        (f"```json\n{INVOICE}\n```", 0, 1, False),
        (INVOICE.replace('"paid"', '"note": null, "paid"'), 0, 10 / 11, True),
        (f"[{INVOICE}]", 0, 0, False),
        ("", 0, 0, False),
        ('{"total": NaN}', 0, 0, False),
    ],
)
def test_json_is_compared_by_its_values(answer, strict, lenient, valid):
    found = score("json", answer, [INVOICE])
    assert (found.strict, found.valid_format) == (strict, valid)
    assert found.lenient == pytest.approx(lenient)


def test_json_without_a_brace_is_another_text_than_json():
    assert outcome("exact_match", INVOICE, [INVOICE])[0] == 1
    for cut in (INVOICE[:-1], INVOICE[1:], INVOICE[1:-1]):
        assert outcome("exact_match", cut, [INVOICE])[0] == 0
    # Brackets and quotes around a whole answer are punctuation, as before.
    for said in ("(pen)", '"pen"', "[pen].", "pen)", "«pen»"):
        assert outcome("exact_match", said, ["pen"])[0] == 1
    assert outcome("exact_match", 'say "pen".', ['say "pen"'])[0] == 1


@pytest.mark.parametrize(
    "said", ["100", "100 EUR", "EUR 100", "€ 100", "€100", "100 €", "usd 100.00", "100.0 chf."]
)
def test_a_currency_is_a_unit(said):
    assert outcome("number", said, ["100 EUR"]) == (1, 1, True)
    assert outcome("number", f"The total is {said}", ["100"])[1] == 1
    assert outcome("relaxed_number", said, ["104 USD"])[0] == 1
    assert outcome("number", f"-{said}", ["100"])[0] == 0
    # No code is read out of a word.
    assert outcome("number", "100 euros", ["100"])[0] == 0


def test_what_would_fit_is_no_metric_that_reads_digits_as_text():
    said = why_unscorable("number", ["1.234,50"])
    assert "exact_match" in said
    assert "relaxed_number" not in said
    assert "relaxed_number" in why_unscorable("number", ["many"])
