"""The order in which rows are learned from, where it is not any order at all.

Owns: rows about one picture one after the other, so that a step computes what they share once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from narrowtune.data.collate import Encoded


class PictureSampler(Sampler[int]):
    """Draws pictures in a new order every epoch, and all rows about each of them together.

    A row without a picture is a group of its own; a row with several shares its step with rows that
    have the same ones.

    Args:
        rows: what is learned from.
        seed: of the order.

    Attributes:
        groups: numbers of rows that share their pictures.
        epoch: the one that is drawn next, from 0; each has an order of its own.
    """

    def __init__(self, rows: Sequence[Encoded], seed: int) -> None:
        self.groups = _groups(rows)
        self.epoch = 0
        self._num_rows, self._seed = len(rows), seed

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._num_rows

    def __iter__(self) -> Iterator[int]:
        """Yield every row's number once."""
        # Of seed and epoch alone: a resumed run does not draw the epochs that it skips.
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self.epoch)
        for group in torch.randperm(len(self.groups), generator=generator).tolist():
            yield from self.groups[group]


class EpochOrder(TrainerCallback):
    """Tells a sampler which epoch it is: the Trainer's own way does not reach every sampler."""

    def __init__(self, sampler: PictureSampler) -> None:
        self.sampler = sampler

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Set the epoch before its rows are drawn; it is a fraction where one was resumed."""
        self.sampler.epoch = int((state.epoch or 0.0) + 1e-6)


def _groups(rows: Sequence[Encoded]) -> list[list[int]]:
    """Return the numbers of rows that have the same pictures."""
    groups: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(row.picture_digest or f"row {number}", []).append(number)
    return list(groups.values())
