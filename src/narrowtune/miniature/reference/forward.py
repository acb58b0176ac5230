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


class Seen(NamedTuple):
    """Logits of what a `PatchHead` names, row by row of patches: N to a picture.

    Attributes:
        what: [B, N, num_what], what a patch shows.
        hue: [B, N, num_hue], its colour.
        word: [B, N, num_words], the word that it shows a part of.
    """

    what: Tensor
    hue: Tensor
    word: Tensor


class PatchHead(nn.Module):
    """Names what each patch below a visual token shows, its colour and its word."""

    def __init__(
        self, size: int, tokens_per_side: int, patches_per_side: int, kinds: tuple[int, int, int]
    ) -> None:
        super().__init__()
        self.tokens_per_side, self.patches_per_side = tokens_per_side, patches_per_side
        self.kinds = kinds
        self.norm = nn.LayerNorm(size)
        self.classify = nn.Linear(size, patches_per_side**2 * sum(kinds))

    def forward(self, looked: Tensor) -> Seen:
        """Return the logits of all patches.

        Args:
            looked: [B, V, H], the first of them the visual tokens row by row.
        """
        side, inner = self.tokens_per_side, self.patches_per_side
        found = self.classify(self.norm(looked[:, : side * side]))
        num_pictures = len(found)
        grid = found.view(num_pictures, side, side, inner, inner, -1)
        flat = grid.transpose(2, 3).reshape(num_pictures, (side * inner) ** 2, -1)
        return Seen(*flat.split(self.kinds, dim=-1))
