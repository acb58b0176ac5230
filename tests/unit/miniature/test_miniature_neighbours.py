"""What stands beside a visual token is what the picture has there, asked where it is sought."""

from __future__ import annotations

import math

import pytest
import torch

from narrowtune.miniature.marks import WHAT, WRITTEN
from narrowtune.miniature.reference.architectures import get_blueprint
from narrowtune.miniature.reference.losses import in_words, size_loss
from narrowtune.miniature.reference.neighbours import NAMES, beside_loss, neighbours
from narrowtune.miniature.reference.visual_words import VisualWords
from narrowtune.miniature.registry import TASKS


def drawn(rows):
    """Labels of a picture of three by three tokens, four patches each, from a table of names."""
    what, word = torch.zeros(1, 6, 6, dtype=torch.long), torch.zeros(1, 6, 6, dtype=torch.long)
    for row, names in enumerate(rows):
        for column, name in enumerate(names.split()):
            # In one of the four patches below a token.
            place = (0, 2 * row + 1, 2 * column)
            if name in WRITTEN and name != "none":
                word[place], what[place] = WRITTEN.index(name), WHAT.index(name[0])
            elif name != ".":
                what[place] = WHAT.index(name)
    return what.flatten(1), word.flatten(1)


def named(found):
    return [[NAMES[value] for value in row] for row in found.view(3, 3).tolist()]


def test_the_nearest_other_thing_in_row_and_column_is_found():
    left, above = neighbours(*drawn(["star 7 tea", "star star panel", "moon . tea"]), 3)
    none = "nothing"
    # The seven is beside the star and is none itself; a panel shows nothing.
    assert named(left) == [[none, "star", "star"], [none, none, none], [none, none, "moon"]]
    assert named(above) == [[none] * 3, [none, none, none], ["star", none, none]]


def test_a_word_of_several_tokens_stands_beside_what_is_before_it():
    left, _ = neighbours(*drawn(["tea moon moon", ". . .", ". . ."]), 3)
    assert named(left)[0] == ["nothing", "tea", "tea"]


@pytest.mark.parametrize("task", ["rows", "infographics"])
def test_rows_of_tasks_have_their_labels_beside_their_values(task):
    checked = 0
    for sample in TASKS[task].samples("train", 120):
        marks = sample.scene.patch_labels(8)
        what, word = torch.tensor([marks.what]), torch.tensor([marks.word])
        left, _ = neighbours(what, word, 7)
        if sample.item.kind not in ("word", "icon_topic"):
            continue
        answer = WRITTEN.index(sample.item.answers[0])
        at = (word.view(7, 2, 7, 2).transpose(1, 2).reshape(49, 4) == answer).any(-1)
        beside = {NAMES[value] for value in left[0, at].tolist()}
        asked = set(sample.item.question.replace("?", " ").split())
        # In a square of four, the word is below its icon.
        checked += bool(beside & asked)
    assert checked > 8


class Model:
    def __init__(self, table):
        self.lm_head = torch.nn.Linear(table.shape[1], len(table), bias=False)
        self.lm_head.weight = torch.nn.Parameter(table)


def test_left_is_asked_of_the_second_third_and_above_of_the_last():
    table = torch.zeros(4, 6)
    table[1, 0] = table[2, 1] = 10.0
    words = torch.tensor([-1, 1, 2])
    beside = torch.tensor([[1]]), torch.tensor([[2]])
    states = torch.zeros(1, 1, 6)
    even = float(beside_loss(Model(table), states, beside, words, 1))
    assert even == pytest.approx(2 * math.log(2))
    states[0, 0, 2] = states[0, 0, 5] = 1.0
    assert float(beside_loss(Model(table), states, beside, words, 1)) < 1e-6
    assert float(beside_loss(Model(table), states.flip(-1), beside, words, 1)) > 10
    # What stands beside nothing, or beside what has no token of its own, is not asked.
    nothing = torch.tensor([[0]]), torch.tensor([[0]])
    assert float(beside_loss(Model(table), states, nothing, words, 1)) == 0


def test_visual_tokens_are_held_to_the_length_of_words():
    table = torch.randn(50, 12)
    length = float(table.square().sum(-1).mean().sqrt())
    looked = torch.randn(2, 5, 12)
    looked = length * looked / looked.norm(dim=-1, keepdim=True)
    assert float(size_loss(Model(table), looked)) == pytest.approx(0, abs=1e-6)
    assert float(size_loss(Model(table), 3 * looked)) == pytest.approx(math.log(3) ** 2, rel=1e-4)
    assert float(size_loss(Model(table), looked / 3)) == pytest.approx(math.log(3) ** 2, rel=1e-4)
    assert in_words(Model(table), looked).norm(dim=-1).flatten().tolist() == pytest.approx([1] * 10)


def test_nearly_every_name_has_a_token_of_its_own():
    words = VisualWords(get_blueprint("qwen2_5_vl").tokenizer(), width=192, side=7, seed=0)
    assert int(words.beside[0]) == -1
    assert int((words.beside[1:] < 0).sum()) <= 4
    assert len(words.beside) == len(NAMES)
