"""What reference models are asked for on the way is where it should be."""

import math

import pytest
import torch

from narrowtune.miniature.marks import HUES, WHAT, WRITTEN
from narrowtune.miniature.reference.architectures import get_blueprint
from narrowtune.miniature.reference.batches import Writer, collate_samples
from narrowtune.miniature.reference.forward import PatchHead, Seen
from narrowtune.miniature.reference.losses import (
    answer_loss,
    name_loss,
    patch_accuracy,
    patch_loss,
    place_codes,
    place_loss,
    place_word_loss,
)
from narrowtune.miniature.registry import TASKS


def test_places_are_told_by_row_and_column():
    codes = place_codes(6, 3, seed=1)
    directions = torch.linalg.pinv(codes)  # [6, 6]: one state per score
    right = torch.stack([directions[i // 3] + directions[3 + i % 3] for i in range(9)])
    states = torch.cat((50 * right, torch.zeros(4, 6)))[None]  # what follows is not asked
    assert float(place_loss(states, codes)) == pytest.approx(0, abs=1e-3)
    assert float(place_loss(states.flip(1)[:, 4:], codes)) > 5
    assert float(place_loss(0 * states, codes)) == pytest.approx(2 * math.log(3), abs=1e-5)


class Scored(torch.nn.Module):
    """A model whose head scores words by the state's own numbers."""

    def __init__(self, width=5):
        super().__init__()
        self.lm_head = torch.nn.Linear(width, width, bias=False)
        torch.nn.init.eye_(self.lm_head.weight).requires_grad_(False)


def test_places_are_told_in_words():
    words = torch.arange(5)  # upper, middle, lower, left, right
    states = torch.zeros(1, 9, 5)
    for place in range(9):
        states[0, place, [0, 1, 2][place // 3]] = 30
        states[0, place, [3, 1, 4][place % 3]] = 30
    # Two words share a token's probability, but for the one in the middle of both.
    right = float(place_word_loss(Scored(), states, words, 3))
    assert right == pytest.approx(8 / 9 * math.log(2), abs=1e-5)
    assert float(place_word_loss(Scored(), 0 * states, words, 3)) == pytest.approx(math.log(5))
    assert float(place_word_loss(Scored(), states.flip(1), words, 3)) > 5


def test_patches_are_told_in_words_below_their_token():
    # One token over four patches: two show 1, one shows 2, one nothing; 3 has no word of its own.
    labels = torch.tensor([[1, 1, 2, 0]])
    words = torch.tensor([-1, 7, 4, -1])
    states = torch.zeros(1, 1, 8)
    states[0, 0, 7], states[0, 0, 4] = math.log(2), 0.0
    expected = (2 * -math.log(2 / 3) - math.log(1 / 3)) / 3
    assert float(name_loss(Scored(8), states, labels, words, 1)) == pytest.approx(expected)
    # Of four tokens, the one at the lower left has the four patches there below it.
    grid = torch.zeros(4, 4, dtype=torch.long)
    grid[2:, :2] = 1
    states = torch.zeros(1, 4, 8)
    states[0, 2, 7] = 30
    assert float(name_loss(Scored(8), states, grid.view(1, -1), words, 2)) == pytest.approx(
        0, abs=1e-6
    )


def test_every_answer_weighs_the_same_however_long_it_is():
    labels = torch.tensor([[-100, 3, -100, -100], [-100, 1, 2, 0]])
    logits = torch.randn(4, 5, dtype=torch.float64)
    each = torch.nn.functional.cross_entropy(logits, torch.tensor([3, 1, 2, 0]), reduction="none")
    found = answer_loss(logits, torch.tensor([3, 1, 2, 0]), labels)
    assert float(found) == pytest.approx(float(each[0] + each[1:].mean()), abs=1e-6)


def test_patches_are_named_where_they_are():
    head = PatchHead(5, 7, 2, (len(WHAT), len(HUES), len(WRITTEN)))
    states = torch.zeros(1, 56, 5)  # the last of a second view
    with torch.no_grad():
        head.norm = torch.nn.Identity()
        head.classify.weight.zero_()
        head.classify.bias.zero_()
        # The lower left of the four patches below a token says 7 where the token's state is 1.
        width = len(WHAT) + len(HUES) + len(WRITTEN)
        head.classify.weight[2 * width + 7, 0] = 1
        states[0, 7 * 3 + 5, 0] = 1
        what, hue, word = head(states)
    assert what.shape == (1, 196, len(WHAT))
    assert hue.shape == (1, 196, len(HUES))
    assert word.shape == (1, 196, len(WRITTEN))
    row, column = divmod(int(what[0, :, 7].argmax()), 14)
    assert (row, column) == (2 * 3 + 1, 2 * 5)
    assert what.sum() == 1


def test_things_and_words_of_patches_are_scored_and_missed_where_they_are_shown():
    sample = TASKS["words"].sample("pretrain", 0, 0)
    blueprint = get_blueprint("qwen2_5_vl")
    writer = Writer(blueprint.tokenizer(), blueprint.picture, blueprint.placeholder)
    batch = collate_samples([sample], writer, 0, labelled_patch=8)
    kinds = ((batch.what, WHAT), (batch.hue, HUES), (batch.word, WRITTEN))
    right = [20.0 * torch.nn.functional.one_hot(x, len(names)).float() for x, names in kinds]
    worded = (batch.word > 0).nonzero()
    assert len(worded) > 1
    assert patch_accuracy("words", Seen(*right), batch) == {"words": 1.0, "words words": 1.0}
    assert float(patch_loss(Seen(*right), batch, 1.0)) < 1e-3
    # One letter is taken for one of another word: its share, and its part of the words' mean.
    wrong = right[2].clone()
    wrong[tuple(worded[0])] = wrong[tuple(worded[0])].roll(1)
    found = patch_accuracy("words", Seen(*right[:2], wrong), batch)
    assert found["words words"] == pytest.approx(1 - 1 / len(worded))
    lost = float(patch_loss(Seen(*right[:2], wrong), batch, 0.5))
    assert lost == pytest.approx(0.5 * 20 / len(worded), rel=1e-3)


def test_a_batch_without_words_has_a_loss():
    blueprint = get_blueprint("qwen2_5_vl")
    writer = Writer(blueprint.tokenizer(), blueprint.picture, blueprint.placeholder)
    samples = [TASKS["binding"].sample("pretrain", 0, 0)]
    batch = collate_samples(samples, writer, 0, labelled_patch=8)
    assert not batch.word.any()
    seen = Seen(*(torch.zeros(1, 196, len(names)) for names in (WHAT, HUES, WRITTEN)))
    expected = math.log(len(WHAT)) + math.log(len(HUES))
    assert float(patch_loss(seen, batch, 1.0)) == pytest.approx(expected, abs=1e-4)
    words = torch.arange(len(WRITTEN)) - 1
    assert (
        float(
            name_loss(Scored(len(WRITTEN)), torch.zeros(1, 49, len(WRITTEN)), batch.word, words, 7)
        )
        == 0
    )
