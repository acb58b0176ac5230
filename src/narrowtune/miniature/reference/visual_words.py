"""Visual tokens are asked in the language model's own words: what they show, where, beside what.

Owns: which token of the tokenizer each name is, and these losses together.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel, Qwen2Tokenizer

from narrowtune.miniature.marks import HUES, WHAT, WRITTEN
from narrowtune.miniature.reference.batches import Batch
from narrowtune.miniature.reference.losses import (
    in_words,
    name_loss,
    place_codes,
    place_loss,
    place_word_loss,
)
from narrowtune.miniature.reference.neighbours import NAMES, beside_loss, neighbours

_PLACES = ("upper", "middle", "lower", "left", "right")


class VisualWords:
    """The losses of visual tokens in a language model.

    Args:
        tokenizer: of the model.
        width: its hidden size.
        side: visual tokens in a row.
        seed: of the codes for rows and columns.
    """

    def __init__(self, tokenizer: Qwen2Tokenizer, *, width: int, side: int, seed: int) -> None:
        self._tokenizer, self.side = tokenizer, side
        self.codes = place_codes(width, side, seed)
        self.places, self.beside, *self.seen = (
            torch.tensor([self._word(name) for name in names])
            for names in (_PLACES, NAMES, WHAT, HUES, WRITTEN)
        )

    def shown(self, model: PreTrainedModel, looked: Tensor, part: Batch) -> Tensor:
        """Return the loss of words for what tokens show, their colour and what is written.

        Args:
            looked: [B, V, H], as the projector gives them.
        """
        total, said = torch.zeros(()), in_words(model, looked)
        for labels, words in zip((part.what, part.hue, part.word), self.seen, strict=True):
            assert labels is not None
            total = total + name_loss(model, said, labels, words, self.side)
        return total

    def placed(self, model: PreTrainedModel, picture: Tensor, part: Batch) -> Tensor:
        """Return the loss of where tokens stand, and beside what.

        Args:
            picture: [B, V, H], states between the layers, normalised.
        """
        assert part.what is not None
        assert part.word is not None
        found = neighbours(part.what, part.word, self.side)
        return (
            place_loss(picture, self.codes)
            + place_word_loss(model, picture, self.places, self.side)
            + beside_loss(model, picture, found, self.beside, self.side)
        )

    def _word(self, name: str) -> int:
        """Return the token of a word where it stands in a sentence, or −1 if it has parts."""
        space = self._tokenizer.encode(" ", add_special_tokens=False)
        tokens = self._tokenizer.encode(f" {name}", add_special_tokens=False)
        own = [token for token in tokens if [token] != space]
        return own[0] if len(own) == 1 and name not in (WHAT[0], HUES[0]) else -1
