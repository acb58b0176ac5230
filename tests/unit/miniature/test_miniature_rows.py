"""Rows as files and rows in memory are the same rows."""

from __future__ import annotations

import pytest

from narrowtune.data.images import open_image
from narrowtune.data.rows import read_rows
from narrowtune.evaluate.tasks import make_task
from narrowtune.miniature.canvas import SIZE
from narrowtune.miniature.registry import TASKS
from narrowtune.miniature.rows import write_rows


@pytest.mark.parametrize("name", ["birds", "counting", "clock", "forms", "science", "captions"])
def test_files_read_as_what_is_made_in_memory(name, tmp_path):
    settings = write_rows(tmp_path, name, "train", 6, seed=2)
    read = read_rows(settings).examples
    made = list(TASKS[name].examples("train", 6, seed=2))
    for left, right in zip(read, made, strict=True):
        assert (left.id, left.group) == (right.id, right.group)
        assert (left.answers, left.options) == (right.answers, right.options)
        assert [m.text for m in left.messages] == [m.text for m in right.messages]
        assert left.image_hashes == right.image_hashes
        assert left.text_hash == right.text_hash
        image = right.images[0]
        assert open_image(image, image.root).size == (SIZE, SIZE)
    assert settings.metric == TASKS[name].metric


def test_rows_make_a_task_of_the_evaluation(tmp_path):
    settings = write_rows(tmp_path, "street", "test", 4)
    task = make_task(settings, read_rows(settings).examples, "held_out")
    assert (task.name, task.metric, len(task.examples)) == ("street", "exact_match", 4)
