"""No task can be answered without its picture, and the table says what guessing gives."""

from __future__ import annotations

from collections import Counter

import pytest
from blind import blind_scores

from narrowtune.miniature.registry import TASKS, tasks_of

LETTERED = [task.name for task in TASKS.values() if task.metric == "option_letter"]


@pytest.mark.parametrize("name", TASKS)
def test_guessing_without_the_picture_scores_what_the_table_says(name):
    task = TASKS[name]
    scores = blind_scores(task, 1600 if task.role == "probe" else 4000)
    total = sum(number for _, number in scores.values())
    blind = sum(score * number for score, number in scores.values()) / total
    # The best of several guessers on some hundred items is two or three points above chance.
    assert task.chance - 0.03 < blind < task.chance + 0.05, scores


@pytest.mark.parametrize("name", LETTERED)
def test_right_letters_are_even_and_options_differ(name):
    letters: Counter[tuple[int, str]] = Counter()
    for sample in TASKS[name].samples("test", 3000):
        options = sample.item.options
        assert len(set(options)) == len(options) >= 2
        said, right = sample.item.answers
        assert said == f"{options[ord(right) - ord('A')]} ({right})"
        letters[len(options), right] += 1
    for size in {size for size, _ in letters}:
        counts = [n for (other, _), n in letters.items() if other == size]
        mean = sum(counts) / size
        assert len(counts) == size
        # Five standard deviations of a fair die.
        assert all(abs(count - mean) < 5 * mean**0.5 for count in counts), letters


def test_yes_and_no_are_even():
    for name in ("tissue", "street", "relations", "charts"):
        counts = Counter(s.item.answers[0] for s in TASKS[name].samples("test", 3000))
        assert abs(counts["yes"] - counts["no"]) < 5 * (counts["yes"] + counts["no"]) ** 0.5


def test_numbers_of_things_are_even():
    counts = Counter(s.item.answers[1] for s in TASKS["counting"].samples("test", 4000))
    assert set(counts) == set("12345678")
    assert all(400 < count < 600 for count in counts.values())


def test_answer_formats_differ_as_those_of_the_real_tasks_do():
    targets = {task.name: task.answers for task in tasks_of("target")}
    assert len(set(targets.values())) == len(targets) == 5
    held_out = tasks_of("held_out")
    assert len(held_out) == 8
    assert {"option_letter", "anls", "relaxed_number", "exact_match"} == {
        task.metric for task in held_out
    }
