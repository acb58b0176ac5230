"""What is kept of the base's distributions, and how far a tuned model's are from them.

Owns: which outcomes are told apart: all words of the vocabulary, or the words that are likeliest
for the base and, as one outcome, all others. Where outcomes are put together KL can only become
smaller (the data-processing inequality), so what is held this way is a lower bound of the whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Distributions:
    """The base's, at N positions.

    Attributes:
        log_probs: fp32; [N, V] of all words or, with `tokens`, [N, k + 1] of these and, last, of
            all others together.
        tokens: [N, k], int32: the base's likeliest words, the first the likeliest; None where all
            words are kept.
    """

    log_probs: Tensor
    tokens: Tensor | None = None

    @classmethod
    def of(cls, logits: Tensor, top_k: int | None) -> Distributions:
        """Return what is kept of the base's logits [N, V]; everything where `top_k` >= V."""
        if top_k is None or top_k >= logits.shape[-1]:
            return cls(_log_probs(logits))
        tokens = logits.topk(top_k, dim=-1).indices
        return cls(_log_probs(logits, tokens), tokens.int())

    @classmethod
    def join(cls, parts: Sequence[Distributions]) -> Distributions:
        """Return positions of several, which keep as many words each, one after the other."""
        tokens = [part.tokens for part in parts if part.tokens is not None]
        log_probs = torch.cat([part.log_probs for part in parts])
        return cls(log_probs, torch.cat(tokens) if tokens else None)

    def split(self, sizes: Sequence[int]) -> Iterator[Distributions]:
        """Yield the first positions, the next and so on, each with memory of its own."""
        log_probs = self.log_probs.split(sizes)
        tokens = [None] * len(sizes) if self.tokens is None else self.tokens.split(sizes)
        for part, words in zip(log_probs, tokens, strict=True):
            yield Distributions(part.clone(), None if words is None else words.clone())

    def to(self, device: torch.device | str) -> Distributions:
        """Return the same on `device`."""
        tokens = None if self.tokens is None else self.tokens.to(device)
        return Distributions(self.log_probs.to(device), tokens)

    def __len__(self) -> int:
        """Return the number of positions."""
        return len(self.log_probs)


def position_bytes(vocabulary: int, top_k: int | None) -> int:
    """Return the bytes that are kept of one position."""
    if top_k is None or top_k >= vocabulary:
        return torch.float32.itemsize * vocabulary
    return torch.float32.itemsize * (top_k + 1) + torch.int32.itemsize * top_k


def kl_base_tuned(base: Distributions, logits: Tensor) -> Tensor:
    """Return KL(base‖tuned) over the outcomes that `base` tells apart, summed over N positions.

    Args:
        base: of N positions.
        logits: [N, V] of the tuned model, same positions, on any device.

    Returns:
        Nats.
    """
    base = base.to(logits.device)
    log_q = _log_probs(logits, None if base.tokens is None else base.tokens.long())
    return nn.functional.kl_div(log_q, base.log_probs, reduction="sum", log_target=True)


def _log_probs(logits: Tensor, tokens: Tensor | None = None) -> Tensor:
    """Return log-probabilities, fp32: of all words or of `tokens` and, last, of all others.

    The others are summed word by word. As one minus the rest they would be nothing but rounding,
    and have no gradient, where the model is sure.
    """
    logits = logits.float()
    if tokens is not None:
        others = logits.scatter(-1, tokens, -torch.inf).logsumexp(dim=-1, keepdim=True)
        logits = torch.cat([logits.gather(-1, tokens), others], dim=-1)
    return logits.log_softmax(dim=-1)
