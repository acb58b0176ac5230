"""Which rows are computed together: of like length, and within bounds of memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from narrowtune.engine.forward import LOGITS_AT_ONCE

TOKENS_AT_ONCE = 2**14
"""Most tokens of a batch, padding and answers included; bounds memory where rows are long."""


def rows_at_once(batch_size: int, tokens: int, logits: int = 0) -> int:
    """Return how many rows of so many tokens and logits are computed together; one at least."""
    fit = TOKENS_AT_ONCE // max(1, tokens), LOGITS_AT_ONCE // max(1, logits)
    return max(1, min(batch_size, *fit))


def length_batches(
    lengths: Sequence[int], batch_size: int, counts: Sequence[int] | None = None
) -> Iterator[list[int]]:
    """Yield indices in batches of like length, longest first: too little memory shows at once.

    Args:
        lengths: tokens of each item's longest row, its answer's included.
        batch_size: most rows of a batch; fewer where these would be over `TOKENS_AT_ONCE`.
        counts: rows of each item, which stay together however many they are; one each unless given.
    """
    batch: list[int] = []
    rows = most = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        count = 1 if counts is None else counts[index]
        if batch and rows + count > most:
            yield batch
            batch, rows = [], 0
        if not batch:
            most = rows_at_once(batch_size, lengths[index])
        batch.append(index)
        rows += count
    if batch:
        yield batch


def spread(count: int, wanted: int) -> list[int]:
    """Up to `wanted` indices, evenly over `range(count)`."""
    return sorted({round(i * (count - 1) / max(wanted - 1, 1)) for i in range(wanted)})
