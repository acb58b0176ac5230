"""The forward pass of a reference model where every picture has the same size.

Owns: a path without the bookkeeping that pictures of any size need, so that it compiles to a few
graphs; a test holds it to the model's own forward pass.

Shapes: B samples, V visual tokens, P and T tokens before and after them, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from narrowtune.data.collate import IGNORE_INDEX
from narrowtune.miniature.reference.batches import Batch
from narrowtune.miniature.reference.eyes import place


class States(NamedTuple):
    """What the layers make of a batch, as the head would read it.

    Attributes:
        last: [B, T, H] of what follows the picture, after all layers.
        middle: [B, T, H] of the same after two thirds of them, where `hint_loss` asks.
        picture: [B, V, H] of the picture after a third of them, where `place_loss` asks.
    """

    last: Tensor
    middle: Tensor
    picture: Tensor


def hidden_states(model: PreTrainedModel, batch: Batch, looked: Tensor) -> States:
    """Return the states of a batch.

    Args:
        looked: [B, V, H], the visual tokens.
    """
    embed = model.get_input_embeddings()
    before = embed(batch.before).expand(len(looked), -1, -1)
    inputs = torch.cat((before, looked.to(before), embed(batch.after)), dim=1)
    first = len(batch.before) + looked.shape[1]
    language_model = model.model.language_model
    positions = place(model, len(batch.before), looked.shape[1], batch.offset)
    turns, seen = language_model.rotary_emb(inputs, positions), sees(first, batch.question)
    states, passed = inputs, [inputs]
    for layer in language_model.layers:
        states = layer(states, attention_mask=seen, position_embeddings=turns, use_cache=False)
        passed.append(states)
    third = len(language_model.layers) // 3
    return States(
        last=language_model.norm(states)[:, first:],
        middle=language_model.norm(passed[2 * third][:, first:]),
        picture=language_model.norm(passed[third][:, len(batch.before) : first]),
    )


def hint_loss(model: PreTrainedModel, middle: Tensor, hints: Tensor) -> Tensor:
    """Return the cross-entropy of how an answer begins, asked between the layers, over answers.

    What is known there can be looked up in the layers that are left.

    Args:
        middle: [B, T, H], states between the layers.
        hints: [B, T], the token to be known where an answer begins.
    """
    logits, wanted = answer_logits(model, middle, hints)
    return nn.functional.cross_entropy(logits.float(), wanted, reduction="sum")


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
    return nn.functional.cross_entropy(rows, place // side) + nn.functional.cross_entropy(
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
    scores = model.lm_head(picture[:, : side * side])[..., words].float()
    third = (torch.arange(side) * 2 + 1) * 3 // (2 * side)
    rows = torch.tensor([0, 1, 2])[third].repeat_interleave(side)
    columns = torch.tensor([3, 1, 4])[third].repeat(side)
    wanted = torch.stack((rows, columns), dim=1).expand(len(picture), -1, -1)
    return -scores.log_softmax(-1).gather(2, wanted).mean()


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
    scores = model.lm_head(picture[:, : side * side])[..., words[named]].float().flatten(0, 1)
    found = scores.log_softmax(-1).gather(1, place[below].clamp(min=0))
    return -found[named[below]].mean()


def place_codes(size: int, side: int, seed: int) -> Tensor:
    """Return the directions of `place_loss`, which stay as they are drawn."""
    generator = torch.Generator().manual_seed(seed)
    return _CODE_SCALE * torch.randn(size, 2 * side, generator=generator) / size**0.5


@torch.compiler.disable
def sees(first: int, question: Tensor) -> Tensor:
    """Return what is added to scores of attention [B, 1, L, L]: a tree whose trunk is the picture.

    Questions about one picture see it and themselves, not each other: each is answered as if it
    had been asked alone.

    Args:
        first: tokens up to the first question.
        question: [B, T], which question a token is of.
    """
    # Not compiled: torch 2.13 makes a kernel of this that reads in front of its input on a CPU.
    # The trunk counts as part of every question.
    whole = nn.functional.pad(question, (first, 0), value=-1)
    own = (whole[:, :, None] == whole[:, None, :]) | (whole[:, None, :] < 0)
    length = whole.shape[1]
    seen = own & torch.ones(length, length, dtype=torch.bool).tril()
    scores = torch.zeros(seen.shape)
    return scores.masked_fill(~seen, torch.finfo(scores.dtype).min)[:, None]


_CODE_SCALE = 4.0  # of a score's deviation before anything is learned


@contextmanager
def plain_attention() -> Iterator[None]:
    """Attend by two matrix products and a softmax inside the block.

    A CPU's flash kernel takes a third of a training step at this size, most of it going back.
    """
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    # Named after CUDA, but it is what keeps the products in bf16 on a CPU, too.
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)


def answer_loss(logits: Tensor, labels: Tensor, all_labels: Tensor) -> Tensor:
    """Return the cross-entropy of each answer, per token of it, summed over answers.

    A caption's twelve tokens count as much as a letter and its end of turn: otherwise the
    captions have most of the loss.

    Args:
        logits, labels: of `answer_logits`.
        all_labels: [B, T] that these came from.
    """
    lengths = answer_lengths(all_labels)
    each = nn.functional.cross_entropy(logits.float(), labels, reduction="none")
    return (each / lengths.repeat_interleave(lengths)).sum()


def answer_lengths(labels: Tensor) -> Tensor:
    """Return how many tokens each answer in `labels` has, row by row.

    An answer is a run of labels; a question stands before each.
    """
    wanted = nn.functional.pad(labels != IGNORE_INDEX, (0, 1))
    starts = wanted[:, 1:] & ~wanted[:, :-1]
    number = starts.flatten().cumsum(0)
    return torch.bincount(number[wanted[:, 1:].flatten()] - 1)


def answer_logits(model: PreTrainedModel, states: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits [n, vocabulary] and labels [n] of the answers' tokens, row by row."""
    ahead = labels[:, 1:]
    wanted = ahead != IGNORE_INDEX
    return model.lm_head(states[:, :-1][wanted]), ahead[wanted]


class PatchHead(nn.Module):
    """Names what each patch of 8 pixels below a visual token shows, and its colour."""

    def __init__(
        self, size: int, tokens_per_side: int, patches_per_side: int, num_what: int, num_hue: int
    ) -> None:
        super().__init__()
        self.tokens_per_side = tokens_per_side
        self.patches_per_side, self.num_what, self.num_hue = patches_per_side, num_what, num_hue
        self.norm = nn.LayerNorm(size)
        self.classify = nn.Linear(size, patches_per_side**2 * (num_what + num_hue))

    def forward(self, looked: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits of what [B, N, num_what] and of hue [B, N, num_hue], row by row.

        Args:
            looked: [B, V, H], the first of them the visual tokens row by row.
        """
        side, inner = self.tokens_per_side, self.patches_per_side
        found = self.classify(self.norm(looked[:, : side * side]))
        num_pictures = len(found)
        grid = found.view(num_pictures, side, side, inner, inner, -1)
        flat = grid.transpose(2, 3).reshape(num_pictures, (side * inner) ** 2, -1)
        what, hue = flat.split((self.num_what, self.num_hue), dim=-1)
        return what, hue
