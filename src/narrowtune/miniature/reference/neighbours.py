"""What stands beside a visual token: the relation that questions about rows and columns ask for.

Owns: what is left of and above each token, and the loss that asks for it.

Shapes: B samples, V visual tokens of which S x S are the picture's, H hidden size, N patches.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from narrowtune.miniature.marks import CHARACTERS, SHAPES, THINGS, WHAT, WRITTEN

_FIRST_CHARACTER = WHAT.index(CHARACTERS[0])
_NUM_NAMED = len(SHAPES) + len(THINGS)

NAMES = (*WHAT[: 1 + _NUM_NAMED], *WRITTEN[1:])
"""What a token may be said to stand beside: nothing, shapes and things, and words."""


def neighbours(what: Tensor, word: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Return the place in `NAMES` of what is left of each token, and of what is above it.

    The nearest in its row or column that is something else than what the token itself shows. 0
    where nothing is, and for tokens that show nothing.

    Args:
        what, word: [B, N], what each patch shows, row by row.
        side: visual tokens in a row.

    Returns:
        Both [B, side * side].
    """
    things, words = _by_token(what, side), _by_token(word, side)
    thing = torch.where(things <= _NUM_NAMED, things, 0).amax(dim=-1)
    written = words.amax(dim=-1)
    label = torch.where(written > 0, written + _NUM_NAMED, thing)
    shown = (label > 0) | (things >= _FIRST_CHARACTER).any(dim=-1)
    left = _before(label, shown)
    above = _before(label.transpose(1, 2), shown.transpose(1, 2)).transpose(1, 2)
    return left.flatten(1), above.flatten(1)


def beside_loss(
    model: PreTrainedModel, picture: Tensor, beside: tuple[Tensor, Tensor], words: Tensor, side: int
) -> Tensor:
    """Return the mean cross-entropy of the words for what is left of and above visual tokens.

    In a width of three heads, a third is for what a token is, one for what stood before it and one
    for the one two before (`first_weights.look_up`): there, heads look for what stands beside a
    word. What is left of a token is asked of the second third, what is above it of the last, in the
    numbers that a word has in the first.

    Args:
        picture: [B, V, H], states between the layers, normalised.
        beside: of `neighbours`.
        words: [K], the token of each of `NAMES`, −1 where it has none of its own.
        side: visual tokens in a row.
    """
    named = words >= 0
    place = named.cumsum(0) - 1
    size = picture.shape[-1] // 3
    table = model.lm_head.weight[words[named], :size]
    total = torch.zeros(())
    for third, wanted in enumerate(beside, 1):
        states = picture[:, : side * side, third * size : (third + 1) * size].flatten(0, 1)
        # A third of the numbers gives a third of a score.
        scores = 3 * (states @ table.T.to(states)).float()
        asked = named[wanted] & (wanted > 0)
        wished = place[wanted].clamp(min=0).flatten()
        losses = functional.cross_entropy(scores, wished, reduction="none")
        total = total + losses[asked.flatten()].sum() / asked.sum().clamp(min=1)
    return total


def _by_token(labels: Tensor, side: int) -> Tensor:
    """Return labels [B, N] as those below each token: [B, side, side, patches of a token]."""
    inner = int(labels.shape[1] ** 0.5) // side
    grid = labels.view(len(labels), side, inner, side, inner).transpose(2, 3)
    return grid.reshape(len(labels), side, side, inner * inner)


def _before(label: Tensor, shown: Tensor) -> Tensor:
    """Return for each place [B, rows, columns] the last label before it in its row, if another."""
    last = before = torch.zeros_like(label[:, :, 0])
    found = []
    for column in range(label.shape[2]):
        own = label[:, :, column]
        other = torch.where(own == last, before, last)
        found.append(torch.where(shown[:, :, column], other, 0))
        new = (own > 0) & (own != last)
        before, last = torch.where(new, last, before), torch.where(new, own, last)
    return torch.stack(found, dim=2)
