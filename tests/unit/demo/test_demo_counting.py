from __future__ import annotations

import re
from collections import Counter

import pytest

from narrowtune.core.errors import UsageError
from narrowtune.demo import counting
from narrowtune.demo.lists import read_list


@pytest.fixture(scope="module")
def kinds() -> dict[str, set[str]]:
    return {kind: set(words.split()) for kind, words in read_list("kinds").items()}


def test_kinds_are_many_large_and_share_no_word(kinds):
    assert len(kinds) >= 8
    assert all(len(words) >= 40 for words in kinds.values())
    assert max(Counter(word for words in kinds.values() for word in words).values()) == 1


def test_answers_agree_with_a_count_by_hand(kinds):
    names = {counting.PHRASES.get(kind, kind): kind for kind in kinds}
    for row in counting.generate(400, seed=3):
        phrase = next(name for name in names if re.search(rf"\b{name}\b", row["question"]))
        listed = re.search(r"list: (.*?)[?.]", row["question"]).group(1).split(", ")
        assert int(row["answer"]) == sum(word in kinds[names[phrase]] for word in listed)
        assert len(listed) - int(row["answer"]) in counting.OTHERS
        assert len(set(listed)) == len(listed)


def test_every_answer_is_equally_frequent():
    counts = Counter(row["answer"] for row in counting.generate(803, seed=0))
    assert set(counts) == {str(number) for number in range(1, 9)}
    assert max(counts.values()) - min(counts.values()) <= 1


def test_any_run_of_rows_is_balanced_too():
    rows = counting.generate(800, seed=0)
    for part in (rows[:160], rows[160:320], rows[320:]):
        assert len(set(Counter(row["answer"] for row in part).values())) == 1


def test_no_list_comes_twice_and_ids_differ():
    rows = counting.generate(3000, seed=5)
    assert len({row["group"] for row in rows}) == len(rows)
    assert len({row["id"] for row in rows}) == len(rows)


def test_rows_depend_on_the_seed_alone():
    assert counting.generate(50, seed=1) == counting.generate(50, seed=1)
    assert counting.generate(50, seed=1) != counting.generate(50, seed=2)


def test_a_number_of_questions_that_is_not_positive_is_refused():
    with pytest.raises(UsageError, match="not positive"):
        counting.generate(0, seed=1)
