from __future__ import annotations

import re

import pytest

from narrowtune.core.errors import UsageError
from narrowtune.demo import pronunciation
from narrowtune.demo.lists import read_list


def test_first_pronunciation_is_the_answer_and_the_others_are_accepted():
    (row,) = pronunciation.generate(1, seed=0, vocabulary={"tomato"})
    assert row["question"] == "How is 'tomato' pronounced?"
    assert row["answer"] == "T AH0 M EY1 T OW2"
    assert row["answers"] == ["T AH0 M EY1 T OW2", "T AH0 M AA1 T OW2"]


def test_words_are_plain_and_phonemes_are_arpabet():
    for row in pronunciation.generate(500, seed=2):
        word = re.fullmatch(r"How is '(.*)' pronounced\?", row["question"]).group(1)
        assert re.fullmatch(r"[a-z]{3,10}", word)
        assert all(re.fullmatch(r"([A-Z]{1,2}[012]? ?)+", answer) for answer in row["answers"])
        assert row["answer"] == row["answers"][0]


@pytest.mark.parametrize(
    "family",
    [
        ["walk", "walks", "walked", "walking", "walker", "walkers"],
        ["hope", "hopes", "hoped", "hoping"],
        ["stop", "stopped", "stopping"],
        ["carry", "carried", "carrying", "carrier"],
        ["organize", "organized", "organizing", "organization"],
        ["nation", "nations", "national"],
        ["john", "johnson"],
    ],
)
def test_forms_of_a_word_share_a_stem(family):
    assert len({pronunciation.stem(word) for word in family}) == 1


def test_words_that_only_end_alike_do_not():
    stems = {pronunciation.stem(word) for word in ("thing", "king", "wing", "spring", "tomato")}
    assert len(stems) == 5


def test_rows_depend_on_the_seed_alone():
    assert pronunciation.generate(20, seed=1) == pronunciation.generate(20, seed=1)
    assert pronunciation.generate(20, seed=1) != pronunciation.generate(20, seed=2)


def test_more_words_than_there_are_is_refused():
    with pytest.raises(UsageError, match="1 words of"):
        pronunciation.generate(2, seed=0, vocabulary={"tomato", "notawordatall"})


def test_common_words_are_plain_distinct_and_in_the_dictionary():
    common = read_list("common")["words"].split()
    assert len(common) == len(set(common)) > 10_000
    assert set(common) <= set(pronunciation.pronunciations())
    assert {"the", "tomato", "walking"} <= set(common)
    assert "ohkawara" not in common
