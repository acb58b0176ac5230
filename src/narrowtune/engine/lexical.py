"""Rows in lexical order: what neighbours begin with alike, and which belong in one line.

Owns: the tree that rows of tokens form by their beginnings, told by the order alone. In it every
row shares more with its neighbour than with any row further away.

Shapes: B rows of T tokens, padding included.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor


class LexicalOrder(NamedTuple):
    """Rows in lexical order.

    Attributes:
        rows: numbers of the batch's rows.
        alike: how many tokens each begins with like the one before it; the first with none.
    """

    rows: list[int]
    alike: list[int]

    def starts_of(self, places: Sequence[int]) -> list[int]:
        """Return how many tokens each of some rows, by place, begins with like the one before."""
        first = places[0]
        return [
            0 if place == first else min(self.alike[before + 1 : place + 1])
            for before, place in zip([first, *places], places, strict=False)
        ]

    def num_tokens(self, tokens: Sequence[int], places: Sequence[int]) -> int:
        """Return how many tokens some rows are, by place, with what they share counted once.

        Args:
            tokens: of each row of the batch.
            places: in ascending order.
        """
        return sum(tokens[self.rows[place]] for place in places) - sum(self.starts_of(places))

    def families(
        self, tokens: Sequence[int], pictures: Mapping[int, int] | None = None
    ) -> list[list[int]]:
        """Return places of rows that lose much by being parted.

        Each shares with the one before it a picture, or half or more of what it has beside the
        beginning of all.

        Args:
            tokens: of each row of the batch.
            pictures: where in a row its picture begins, by the row's number.
        """
        starts = pictures or {}
        common = min(self.alike[1:], default=0)
        families: list[list[int]] = []
        for place, (row, alike) in enumerate(zip(self.rows, self.alike, strict=True)):
            is_near = 2 * (alike - common) >= tokens[row] - common
            if place and (is_near or alike > starts.get(row, alike)):
                families[-1].append(place)
            else:
                families.append([place])
        return families


def in_order(ids: Tensor, valid: Tensor) -> LexicalOrder:
    """Put rows [B, T] in lexical order.

    Args:
        ids: tokens, padded on the right.
        valid: [B, T] bool, false at padding.
    """
    counts = valid.sum(dim=1).tolist()
    tokens = [row[:count] for row, count in zip(ids.tolist(), counts, strict=True)]
    rows = sorted(range(len(tokens)), key=tokens.__getitem__)
    own, real = ids[rows], valid[rows]
    same = (own[1:] == own[:-1]) & real[1:] & real[:-1]
    return LexicalOrder(rows, [0, *same.long().cumprod(dim=1).sum(dim=1).tolist()])


def shared_out(lengths: Sequence[int], number: int) -> list[list[int]]:
    """Share pieces out over lines of about the same length: the longest first, to the shortest.

    Returns:
        Numbers of the pieces of each of `number` lines, in ascending order.
    """
    lines: list[tuple[int, int, list[int]]] = [(0, line, []) for line in range(number)]
    for piece in sorted(range(len(lengths)), key=lambda piece: -lengths[piece]):
        total, line, pieces = lines[0]
        heapq.heapreplace(lines, (total + lengths[piece], line, [*pieces, piece]))
    return [sorted(pieces) for _, _, pieces in sorted(lines, key=lambda line: line[1])]
