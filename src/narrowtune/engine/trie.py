"""Answers that decoding may give, as a tree of tokens.

Owns: `TokenTrie`. Decoding under it takes, step by step, the most likely of the tokens that still
lead to one of the answers; an answer that free decoding gives anyway is thereby left as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

_Node: TypeAlias = "dict[int, _Node]"

_END = -1
"""Stands in a node where an answer ends."""


class TokenTrie:
    """Token sequences, each followed by a token that ends an answer.

    Args:
        answers: token ids of each, without the end.
        stop: tokens of which any ends an answer.
    """

    def __init__(self, answers: Iterable[Sequence[int]], stop: Collection[int]) -> None:
        self.stop = tuple(stop)
        self.num_steps = 0
        """Steps of the longest answer, its end included."""
        self._root: _Node = {}
        for answer in answers:
            node = self._root
            for token in answer:
                node = node.setdefault(token, {})
            node[_END] = {}
            self.num_steps = max(self.num_steps, len(answer) + 1)
        assert self._root, "a trie without answers allows nothing"

    def following(self, taken: Sequence[int]) -> tuple[int, ...]:
        """Return the tokens that may come after those taken; none after the end of an answer."""
        node = self._root
        for token in taken:
            if token not in node:
                return ()
            node = node[token]
        tokens = tuple(token for token in node if token != _END)
        return tokens + self.stop if _END in node else tokens

    def allow(self, logits: Tensor, taken: Sequence[int]) -> Tensor:
        """Return logits [V] with those of tokens that may not follow at −∞."""
        tokens = list(self.following(taken))
        if not tokens:  # a row that has ended waits for the others of its batch
            return logits
        allowed = torch.full_like(logits, -torch.inf)
        allowed[tokens] = logits[tokens]
        return allowed
