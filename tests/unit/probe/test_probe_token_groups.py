"""Which tokens count as numbers, and what their mass is on logits made by hand."""

from __future__ import annotations

import math

import pytest
import torch

from narrowtune.models.load import load_model
from narrowtune.probe.token_groups import (
    GroupMass,
    TokenGroup,
    answer_group,
    group_of,
    is_number,
    is_option_letter,
    is_yes_no,
    standard_groups,
)


@pytest.mark.parametrize(
    "token",
    ["7", "42", "▁7", "Ġ1999", " 3", "1st", "Ġ22nd", "3RD", "11th", "3.14", "1,000", "zero", "Ġone",
     "▁Nineteen", "NINETY", "Hundred", "Ġbillion", "twelve"],
)  # fmt: skip
def test_these_are_numbers(token: str):
    assert is_number(token)


@pytest.mark.parametrize(
    "token",
    ["", "Ġ", "▁", "someone", "tone", "ones", "1a", "v2", "th", "st", "1.2.3", "1,000,000", ".5",
     "5.", ",5", "²", "٣", "first", "trillion", "dozen", "-1", "$1", "10%", "Ġ1 0"],
)  # fmt: skip
def test_these_are_not(token: str):
    assert not is_number(token)


def test_yes_no_and_letters():
    assert all(map(is_yes_no, ["yes", "ĠNo", "▁YES"]))
    assert not any(map(is_yes_no, ["yesterday", "not", "Ġ", "y"]))
    assert all(map(is_option_letter, ["A", "ĠB", "▁H"]))
    assert not any(map(is_option_letter, ["a", "I", "AB", "(A", ""]))


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_groups_hold_every_spelling_in_the_vocabulary(tiny, family: str):
    tokenizer = load_model(str(tiny(family)), device="cpu").tokenizer
    groups = {group.name: group for group in standard_groups(tokenizer)}
    numbers = groups["numbers"].ids
    texts = {tokenizer.decode([i]).strip() for i in numbers}
    assert {str(digit) for digit in range(10)} <= texts
    assert numbers == tuple(sorted(set(numbers)))
    for token, index in tokenizer.get_vocab().items():
        assert (index in numbers) == is_number(token)


def test_a_group_that_the_vocabulary_lacks_is_left_out():
    class Tokenizer:
        def get_vocab(self):
            return {"7": 0, "cat": 1, "Ġseven": 2}

    assert standard_groups(Tokenizer()) == [TokenGroup("numbers", (0, 2))]
    assert group_of("none", Tokenizer(), lambda token: False) == TokenGroup("none", ())


def test_tokens_of_answers_leave_the_ends_of_turns_out():
    assert answer_group("s", [[5, 3, 9], [3, 8, 9]], leave_out=[9]) == TokenGroup("s", (3, 5, 8))


def test_largest_probability_and_mass_are_those_of_a_softmax_by_hand():
    logits = torch.tensor([[1.0, 2.0, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    found = GroupMass([TokenGroup("a", (0, 1)), TokenGroup("b", (2,))])(logits)
    total = math.e + 2 * math.e**2 + 1
    expected = [
        [math.e**2 / total, (math.e + math.e**2) / total, 1 / total, 1 / total],
        [0.25, 0.5, 0.25, 0.25],
    ]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_no_groups_give_no_columns():
    assert GroupMass([])(torch.zeros(3, 4)).shape == (3, 0)
