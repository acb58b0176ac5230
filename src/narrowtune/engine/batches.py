"""Which rows are computed together: of like length, and within bounds of memory."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

from narrowtune.engine.forward import LOGITS_AT_ONCE

TOKENS_AT_ONCE = 2**14
"""Most tokens of a batch, padding and answers included; bounds memory where rows are long."""

_NEAR = 0.5
"""Of the length of the longest of its kin: a shorter item is not kept beside it."""


def rows_at_once(batch_size: int, tokens: int, logits: int = 0) -> int:
    """Return how many rows of so many tokens and logits are computed together; one at least."""
    fit = TOKENS_AT_ONCE // max(1, tokens), LOGITS_AT_ONCE // max(1, logits)
    return max(1, min(batch_size, *fit))


def length_batches(
    lengths: Sequence[int],
    batch_size: int,
    counts: Sequence[int] | None = None,
    kin: Sequence[int] | None = None,
) -> Iterator[list[int]]:
    """Yield indices in batches of like length, longest first: too little memory shows at once.

    Args:
        lengths: tokens of each item's longest row, its answer's included.
        batch_size: most rows of a batch; fewer where these would be over `TOKENS_AT_ONCE`.
        counts: rows of each item, which stay together however many they are; one each unless given.
        kin: a number of each item's that those share which share computation when they are
            together; such items follow each other where their lengths are near (`_NEAR`).
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    if kin is not None:
        order = _beside_kin(order, lengths, kin)
    batch: list[int] = []
    rows = longest = 0
    for index in order:
        count = 1 if counts is None else counts[index]
        longest = max(longest, lengths[index])
        if batch and rows + count > rows_at_once(batch_size, longest):
            yield batch
            batch, rows, longest = [], 0, lengths[index]
        batch.append(index)
        rows += count
    if batch:
        yield batch


def _beside_kin(order: Sequence[int], lengths: Sequence[int], kin: Sequence[int]) -> list[int]:
    """Move each item forward to the longest of its kin that it is near."""
    parts: dict[int, list[list[int]]] = {}
    for index in order:
        own = parts.setdefault(kin[index], [])
        if not own or lengths[index] < _NEAR * lengths[own[-1][0]]:
            own.append([])
        own[-1].append(index)
    leading = {part[0]: part for own in parts.values() for part in own}
    return [each for index in order for each in leading.get(index, ())]


def spread_kin(kin: Sequence[Hashable], wanted: int, of_each: int) -> list[int]:
    """Up to `wanted` indices, evenly over what they share, at most `of_each` that share the same.

    Args:
        kin: what each item shares with others.
    """
    groups: dict[Hashable, list[int]] = {}
    for index, shared in enumerate(kin):
        groups.setdefault(shared, []).append(index)
    parts = [group[:of_each] for group in groups.values()]
    number = -(-wanted * len(parts) // sum(map(len, parts))) if parts else 0
    return sorted([i for place in spread(len(parts), number) for i in parts[place]][:wanted])


def spread(count: int, wanted: int) -> list[int]:
    """Up to `wanted` indices, evenly over `range(count)`."""
    return sorted({round(i * (count - 1) / max(wanted - 1, 1)) for i in range(wanted)})
