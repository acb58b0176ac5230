"""Samples: the same from the same seed, of the promised form, and never in two splits."""

from __future__ import annotations

import hashlib

import pytest

from narrowtune.core.errors import UsageError
from narrowtune.evaluate.metrics import score
from narrowtune.miniature.canvas import SIZE
from narrowtune.miniature.reference.schedule import DRILLS
from narrowtune.miniature.registry import LEVELS, TASKS, get_task, tasks_of
from narrowtune.miniature.sample import SPLITS
from narrowtune.miniature.vocabulary import split_words, vocabulary


def _picture_hash(sample) -> str:
    return hashlib.sha256(sample.scene.image.tobytes()).hexdigest()


@pytest.mark.parametrize("name", TASKS)
def test_a_sample_is_the_same_every_time_and_no_other(name):
    task = TASKS[name]
    first, again = task.sample("train", 3, 5), task.sample("train", 3, 5)
    assert first.item.question == again.item.question
    assert first.item.answers == again.item.answers
    assert _picture_hash(first) == _picture_hash(again)
    others = [task.sample("train", 4, 5), task.sample("train", 3, 6), task.sample("test", 3, 5)]
    assert _picture_hash(first) not in map(_picture_hash, others)


@pytest.mark.parametrize("name", TASKS)
def test_a_sample_is_well_formed(name):
    task = TASKS[name]
    for sample in task.samples("validation", 8):
        item, image = sample.item, sample.scene.image
        assert (image.size, image.mode) == ((SIZE, SIZE), "RGB")
        assert sample.scene.marks.size == (SIZE, SIZE)
        for answer in item.answers:
            scored = score(task.metric, answer, item.answers, item.options)
            assert (scored.strict, scored.valid_format) == (1.0, True)
        assert len(item.answers[0]) < (400 if name == "recital" else 80)


def _check_hashes(tasks, count: int) -> None:
    seen: dict[str, str] = {}
    for task in tasks:
        for split in SPLITS:
            for sample in task.samples(split, count):
                picture = _picture_hash(sample)
                assert picture not in seen, (sample.id, seen[picture])
                seen[picture] = sample.id


def test_no_picture_comes_twice_in_or_across_splits():
    _check_hashes(TASKS.values(), 40)


@pytest.mark.slow
def test_no_picture_comes_twice_among_two_thousand_of_each_scored_task():
    _check_hashes([*tasks_of("target"), *tasks_of("held_out")], 500)


def test_seeds_of_splits_have_no_draw_in_common():
    """Not only pictures: the chance behind a question differs from split to split."""
    task = TASKS["forms"]
    drawn = {tuple(s.item.answers[0] for s in task.samples(split, 30)) for split in SPLITS}
    assert len(drawn) == len(SPLITS)


def test_every_word_is_in_the_vocabulary():
    known = set(vocabulary())
    assert len(known) < 600
    for task in TASKS.values():
        for sample in task.samples("test", 400):
            item = sample.item
            for text in (item.question, *item.answers, *item.options):
                assert known.issuperset(split_words(text)), text


def test_no_skill_is_in_the_curriculum():
    taught = {task.name for task in tasks_of("target")}
    in_levels = {name for level in LEVELS for name in level}
    assert not taught & in_levels
    # Pages are for the tower alone: they are labelled, not asked about.
    # Drills need no picture.
    aside = {"pages", *DRILLS}
    assert {task.name for task in TASKS.values()} == taught | in_levels | aside


def test_unknown_names_are_refused():
    with pytest.raises(UsageError, match="no task of that name"):
        get_task("reasoning")
    with pytest.raises(UsageError, match="no such split"):
        TASKS["clock"].sample("testing", 0, 0)
    with pytest.raises(UsageError):
        TASKS["clock"].sample("test", 0, -1)
