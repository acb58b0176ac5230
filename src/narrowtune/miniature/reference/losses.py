"""What a reference model is asked while it is pre-trained: answers, and what leads to them.

Owns: the losses. Shapes: B samples, V visual tokens, T tokens after them, H hidden size, N patches.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from narrowtune.miniature.marks import WHAT
from narrowtune.miniature.reference.batches import Batch
from narrowtune.miniature.reference.forward import Seen, answer_lengths, answer_logits

_CODE_SCALE = 4.0  # of a score's deviation before anything is learned
_NOTHING_WEIGHT = 0.2  # most patches show nothing, and that is soon learned


def answer_loss(logits: Tensor, labels: Tensor, all_labels: Tensor) -> Tensor:
    """Return the cross-entropy of each answer, per token of it, summed over answers.

    A caption's twelve tokens count as much as a letter and its end of turn: otherwise the
    captions have most of the loss.

    Args:
        logits, labels: of `answer_logits`.
        all_labels: [B, T] that these came from.
    """
    lengths = answer_lengths(all_labels)
    each = functional.cross_entropy(logits.float(), labels, reduction="none")
    return (each / lengths.repeat_interleave(lengths)).sum()


def hint_loss(model: PreTrainedModel, middle: Tensor, hints: Tensor) -> Tensor:
    """Return the cross-entropy of how an answer begins, asked between the layers, over answers.

    What is known there can be looked up in the layers that are left.

    Args:
        middle: [B, T, H], states between the layers.
        hints: [B, T], the token to be known where an answer begins.
    """
    logits, wanted = answer_logits(model, middle, hints)
    return functional.cross_entropy(logits.float(), wanted, reduction="sum")


def patch_loss(found: Seen, batch: Batch, word_weight: float) -> Tensor:
    """Return the mean cross-entropy of what patches show, of its colour and of its word.

    Patches that show nothing count a fifth; they have no colour, and few have a word.

    Args:
        found: logits from a `PatchHead`.
        batch: with the labels.
        word_weight: of the words, beside 1 of things and colours.
    """
    assert batch.what is not None
    assert batch.hue is not None
    assert batch.word is not None
    weights = torch.ones(len(WHAT))
    weights[0] = _NOTHING_WEIGHT
    shown, worded = batch.what > 0, batch.word > 0
    what = functional.cross_entropy(
        found.what.float().flatten(0, 1), batch.what.flatten(), weight=weights
    )
    hue = functional.cross_entropy(found.hue.float()[shown], batch.hue[shown])
    word = functional.cross_entropy(
        found.word.float()[worded], batch.word[worded], reduction="sum"
    ) / worded.sum().clamp(min=1)
    return what + hue + word_weight * word


def patch_accuracy(name: str, found: Seen, batch: Batch) -> dict[str, float]:
    """Return the share of patches whose thing, and of letters whose word, is named right.

    Args:
        name: of the task that the batch is of; "<name> words" has the second share, if any.
        found: logits from a `PatchHead`.
        batch: with the labels.
    """
    assert batch.what is not None
    assert batch.word is not None
    shown, worded = batch.what > 0, batch.word > 0
    right = found.what.argmax(-1)[shown] == batch.what[shown]
    shares = {name: float(right.float().mean())}
    if worded.any():
        read = found.word.argmax(-1)[worded] == batch.word[worded]
        shares[f"{name} words"] = float(read.float().mean())
    return shares


def name_loss(
    model: PreTrainedModel, picture: Tensor, labels: Tensor, words: Tensor, side: int
) -> Tensor:
    """Return the mean cross-entropy of words for what the patches below a visual token show.

    The patch head may read a token in any way; this asks for the language model's own words, so
    that it knows them in a picture as it knows them in a sentence. Each patch that shows something
    has an equal part in what is asked of its token.

    Args:
        picture: [B, V, H], the first of them the picture's tokens row by row.
        labels: [B, N], what each patch shows, row by row; 0 is nothing.
        words: [K], the token of each label's name, −1 where it has none of its own.
        side: visual tokens in a row.
    """
    num_pictures, num_patches = labels.shape
    inner = int(num_patches**0.5) // side
    below = labels.view(num_pictures, side, inner, side, inner).transpose(2, 3)
    below = below.reshape(num_pictures * side * side, inner * inner)
    named = words >= 0
    place = named.cumsum(0) - 1
    scores = _word_scores(model, picture[:, : side * side], words[named]).flatten(0, 1)
    found = scores.log_softmax(-1).gather(1, place[below].clamp(min=0))
    return -found[named[below]].sum() / named[below].sum().clamp(min=1)


def _word_scores(model: PreTrainedModel, states: Tensor, words: Tensor) -> Tensor:
    """Return the head's scores of some words alone: a real vocabulary has fifty thousand."""
    return functional.linear(states, model.lm_head.weight[words]).float()


def size_loss(model: PreTrainedModel, looked: Tensor) -> Tensor:
    """Return the mean square of how many times as long as a word's embedding visual tokens are.

    As a logarithm. Nothing else holds them: what layers add to a token twelve times as long as a
    word is drowned by it, and no token can be told what stands beside it.

    Args:
        looked: [B, V, H], as the projector gives them.
    """
    return (looked.float().norm(dim=-1) / _word_length(model)).log().square().mean()


def _word_length(model: PreTrainedModel) -> Tensor:
    return model.lm_head.weight.detach().square().sum(dim=-1).mean().sqrt()


def in_words(model: PreTrainedModel, looked: Tensor) -> Tensor:
    """Return visual tokens scaled so that the head scores a word's own embedding with its length.

    Asked at the language model's input: what looks up words there finds them in a picture from the
    first layer on.

    Args:
        looked: [B, V, H], as the projector gives them.
    """
    return looked / _word_length(model)


def place_loss(picture: Tensor, codes: Tensor) -> Tensor:
    """Return the mean cross-entropy of the row and the column that visual tokens stand in.

    Rotary positions say where two tokens stand to each other; where in the picture a thing is has
    to be worked out before anything can be said of it, and this asks for that alone.

    Args:
        picture: [B, V, H], the first of them the picture's tokens row by row.
        codes: [H, 2 × side], a direction for each row and each column.
    """
    side = codes.shape[1] // 2
    scores = (picture[:, : side * side] @ codes.to(picture)).float().flatten(0, 1)
    place = torch.arange(side * side).repeat(len(picture))
    rows, columns = scores.split(side, dim=1)
    return functional.cross_entropy(rows, place // side) + functional.cross_entropy(
        columns, place % side
    )


def place_word_loss(model: PreTrainedModel, picture: Tensor, words: Tensor, side: int) -> Tensor:
    """Return the mean cross-entropy of the words for where visual tokens stand.

    As `place_loss`, but in the language model's own words, so that what answers "red" of a token
    answers "upper left" of it in the same way.

    Args:
        picture: [B, V, H], the first of them the picture's tokens row by row.
        words: [5], the tokens of upper, middle, lower, left, right. A token has a word for its row
            and one for its column, with an equal part each; "middle" is both.
        side: visual tokens in a row.
    """
    scores = _word_scores(model, picture[:, : side * side], words)
    third = (torch.arange(side) * 2 + 1) * 3 // (2 * side)
    rows = torch.tensor([0, 1, 2])[third].repeat_interleave(side)
    columns = torch.tensor([3, 1, 4])[third].repeat(side)
    wanted = torch.stack((rows, columns), dim=1).expand(len(picture), -1, -1)
    return -scores.log_softmax(-1).gather(2, wanted).mean()


def place_codes(size: int, side: int, seed: int) -> Tensor:
    """Return the directions of `place_loss`, which stay as they are drawn."""
    generator = torch.Generator().manual_seed(seed)
    return _CODE_SCALE * torch.randn(size, 2 * side, generator=generator) / size**0.5
