"""What a run would work on: its rows, its batches, and how much of them is padding."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

from torch import Tensor

from narrowtune.core.config import DialSettings, RunConfig
from narrowtune.core.errors import DataError
from narrowtune.core.results import Role
from narrowtune.data.collate import IGNORE_INDEX, Encoded, collate, padding_id
from narrowtune.engine.arithmetic import Arithmetic
from narrowtune.engine.attention import MOST_TOKENS
from narrowtune.engine.forward import label_positions
from narrowtune.engine.packing import LayoutSize, layout_size
from narrowtune.engine.padding import attends
from narrowtune.engine.pictures import PICTURE_KINDS
from narrowtune.models.load import LoadedModel
from narrowtune.train.arguments import accumulation_steps, per_device_batch_size, planned_steps
from narrowtune.train.order import PictureSampler

EXAMPLE_ROWS, EXAMPLE_TOKENS, EXAMPLE_LABELS = 16, 128, 16
"""Number and length of made-up rows where none are given."""

_EVALUATIONS = 2  # before and after
_DRAWS = 50  # batches drawn to see how much of them is padding
_DRAWS_OF_LONGEST = 10
_FEWEST_DRAWS, _PICTURED_ROWS = 4, 64  # rows drawn in all, where they have pictures


@dataclass(frozen=True)
class TaskLoad:
    """What evaluating one task takes.

    Attributes:
        role: only held-out tasks count for the budget.
        num_items: items of the task.
        num_groups: how many items that stand alone they are worth as evidence, beside the other
            held-out tasks; of no use for the skill.
        prompts: some items' prompts, to measure on (mode `generate`).
        options: some items' encoded options, to measure on (mode `options`).
        max_new_tokens: decode limit.
    """

    role: Role
    num_items: int
    num_groups: float
    prompts: Sequence[Encoded] = ()
    options: Sequence[Sequence[Encoded]] = ()
    max_new_tokens: int = 0

    def passes(self, dial: DialSettings | None) -> float:
        """Return how often an item is answered; at most, if a dial has not the whole curve."""
        if dial is None:
            return _EVALUATIONS
        target = self.role == "target"
        searched, last = (1.0, 1.0) if target else (dial.share, 1 - dial.share)
        return 1 + dial.num_steps * searched + last


@dataclass(frozen=True)
class Workload:
    """What a run would work on.

    Attributes:
        rows: encoded training rows: all, or a sample; made-up rows of text if there are none.
        num_samples: rows in an epoch; None if not known, and then the run has no totals.
        tasks: what is evaluated before and after.
        anchor_prompts: encoded prompts of the anchor, if there is one: general ones, then those
            that earlier skills were taught with.
        num_taught: how many of the latter.
        looked_at_once: how many different pictures there are, where what a frozen tower makes of
            them is kept while training; None where it looks at them in every pass.
    """

    rows: Sequence[Encoded] = ()
    num_samples: int | None = None
    tasks: Sequence[TaskLoad] = ()
    anchor_prompts: Sequence[Encoded] = ()
    num_taught: int = 0
    looked_at_once: int | None = None


class Batches:
    """The batches that a run would draw.

    Attributes:
        rows: of the task; made-up ones if the workload has none.
        anchor_rows: as long as the base's answers may become.
        batch_size: task rows of a micro-batch; `num_anchor_rows` more hold the model to the base.
        micro_batches: how many make an optimiser step on one process.
        num_steps: optimiser steps of the run; None if the number of samples is not known.
        anchor_labels: label positions of one anchor row.

    Args:
        device_kind: of the device that would compute them; the model's own unless given.

    Raises:
        UsageError: the batch sizes don't fit each other.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        config: RunConfig,
        workload: Workload,
        num_processes: int,
        device_kind: str | None = None,
    ) -> None:
        self._loaded = loaded
        self._device_kind = device_kind or loaded.model.device.type
        self.rows = workload.rows or _example_rows(loaded)
        self._seed = config.seed
        training = config.training
        self.batch_size = per_device_batch_size(training, num_processes)
        self.micro_batches = accumulation_steps(
            training.global_batch_size, self.batch_size, num_processes
        )
        grouped = training.group_by_picture
        self._order = list(PictureSampler(self.rows, self._seed)) if grouped else []
        samples = workload.num_samples
        self.num_steps = None if samples is None else planned_steps(config, samples)
        self.anchor_rows: list[Encoded] = []
        self._num_taught = workload.num_taught
        self.num_anchor_rows = self.anchor_labels = 0
        if config.anchor is not None and config.anchor.weight:
            self.anchor_labels = config.anchor.max_new_tokens
            self.anchor_rows = [
                _answered(prompt, self.anchor_labels) for prompt in workload.anchor_prompts
            ]
            wanted = min(config.anchor.rows_per_step, len(self.anchor_rows))
            self.num_anchor_rows = math.ceil(wanted / (self.micro_batches * num_processes))

    @cached_property
    def tokens_per_sample(self) -> float:
        """Mean length of the task's rows."""
        return statistics.fmean(len(row.input_ids) for row in self.rows)

    @cached_property
    def labels_per_sample(self) -> float:
        """Mean number of label positions of the task's rows."""
        return statistics.fmean(_num_labels(row) for row in self.rows)

    @cached_property
    def typical(self) -> Encoded:
        """The task row whose length is nearest to the mean."""
        typical = self._nearest(self.rows)
        assert typical is not None
        return typical

    @cached_property
    def typical_pictured(self) -> Encoded | None:
        """The same among rows with pictures; None if there is none."""
        return self._nearest(row for row in self.rows if row.picture_digest)

    @property
    def labels_per_pass(self) -> float:
        """Mean number of label positions of a micro-batch, the anchor's among them."""
        return self.batch_size * self.labels_per_sample + self.num_anchor_rows * self.anchor_labels

    def _nearest(self, rows: Iterable[Encoded]) -> Encoded | None:
        mean = self.tokens_per_sample
        return min(rows, key=lambda row: abs(len(row.input_ids) - mean), default=None)

    def draw(self, generator: random.Random, size: int) -> list[Encoded]:
        """Draw a micro-batch of `size` task rows and its share of anchor rows."""
        share = math.ceil(self.num_anchor_rows * size / self.batch_size)
        # Earlier skills have every other place, however many prompts there are of them.
        taught = (share + generator.randrange(2)) // 2 if self._num_taught else 0
        border = len(self.anchor_rows) - self._num_taught
        parts = ((self.anchor_rows[:border], share - taught), (self.anchor_rows[border:], taught))
        drawn = [
            row for rows, number in parts for row in generator.sample(rows, min(number, len(rows)))
        ]
        return self.draw_task(generator, size) + drawn

    def draw_task(self, generator: random.Random, size: int) -> list[Encoded]:
        """Draw `size` task rows, those about one picture together where the run does so."""
        if self._order:
            start = size * generator.randrange(math.ceil(len(self._order) / size))
            places = range(start, start + size)
            return [self.rows[self._order[place % len(self._order)]] for place in places]
        enough = size <= len(self.rows)
        return generator.sample(self.rows, size) if enough else generator.choices(self.rows, k=size)

    def width(self, rows: Sequence[Encoded]) -> int:
        """Return how many positions the model computes for `rows`: laid out anew, or padded."""
        return self.size(rows).positions

    def size(self, rows: Sequence[Encoded]) -> LayoutSize:
        """Return what the model computes for `rows`: laid out anew, or padded."""
        try:
            batch = collate(rows, padding_id(self._loaded.tokenizer))
        except DataError:  # pictures that can't be joined: the run itself will say so
            return self.size_plain(rows)
        mask, _ = label_positions(batch.pop("labels"))
        return layout_size(self._loaded.model, batch, mask, self._device_kind)

    def size_plain(self, rows: Sequence[Encoded]) -> LayoutSize:
        """Return the same row by row."""
        lengths = _lengths(rows)
        pictured = [row for row in rows if row.picture_digest]
        masked = len(set(lengths)) > 1
        masked |= bool(pictured) and PICTURE_KINDS in pictured[0].features
        return LayoutSize(len(rows), max(lengths), len(pictured), masked=masked)

    @cached_property
    def sizes(self) -> list[tuple[LayoutSize, LayoutSize]]:
        """What the model computes for some drawn micro-batches, and what it would row by row."""
        return [(self.size(batch), self.size_plain(batch)) for batch in self._drawn()]

    def positions(self) -> float:
        """Return the mean number of positions of a micro-batch."""
        return statistics.fmean(size.positions for size, _ in self.sizes)

    def most_positions(self) -> int:
        """Return the positions of the largest of some micro-batches, each with the longest row."""
        longest = max(chain(self.rows, self.anchor_rows), key=lambda row: len(row.input_ids))
        drawn = self._drawn()[:_DRAWS_OF_LONGEST]
        return max(self.width([longest, *batch[1:]]) for batch in drawn)

    def attention_bytes(self, arithmetic: Arithmetic, *, checkpointing: bool) -> int:
        """Return what attention by products holds for the backward pass: a layout's squares."""
        if not arithmetic.packing or arithmetic.attention != "products":
            return 0
        config: Any = self._loaded.model.config
        text = config.get_text_config()
        if not attends(text):
            return 0
        squares = (s.rows * s.length**2 for s, _ in self.sizes if s.length <= MOST_TOKENS)
        layers = 1 if checkpointing else text.num_hidden_layers
        item = arithmetic.torch_dtype.itemsize
        return int(item * layers * text.num_attention_heads * max(squares, default=0))

    def _drawn(self) -> list[list[Encoded]]:
        generator = random.Random(self._seed)
        number = _DRAWS
        if any(row.picture_digest for row in self.rows):  # to compare pixels, they are prepared
            number = max(_FEWEST_DRAWS, min(_DRAWS, _PICTURED_ROWS // self.batch_size))
        return [self.draw(generator, self.batch_size) for _ in range(number)]


def _example_rows(loaded: LoadedModel) -> list[Encoded]:
    """Return rows of text that share nothing: ordinary tokens of the middle of the vocabulary."""
    embedding = loaded.model.get_input_embeddings().weight
    assert isinstance(embedding, Tensor)
    size = len(embedding)
    special = set(loaded.tokenizer.all_special_ids)
    ids = [token for token in range(size // 4, size) if token not in special]
    nothing = [IGNORE_INDEX] * (EXAMPLE_TOKENS - EXAMPLE_LABELS)
    rows = []
    for start in range(EXAMPLE_ROWS):
        row = [ids[(start + place) % len(ids)] for place in range(EXAMPLE_TOKENS)]
        rows.append(Encoded(input_ids=row, labels=nothing + row[-EXAMPLE_LABELS:]))
    return rows


def _answered(prompt: Encoded, num_tokens: int) -> Encoded:
    """Return an anchor row as long as the base's answer may become."""
    answer = [prompt.input_ids[-1]] * num_tokens
    labels = [IGNORE_INDEX] * len(prompt.input_ids) + answer
    return Encoded([*prompt.input_ids, *answer], labels, prompt.features)


def _lengths(rows: Sequence[Encoded]) -> list[int]:
    return [len(row.input_ids) for row in rows]


def _num_labels(row: Encoded) -> int:
    return sum(label != IGNORE_INDEX for label in row.labels[1:])


def shortened(rows: Iterable[Encoded], num_tokens: int) -> list[Encoded]:
    """Return rows with the last tokens of those of text, where labels are as a rule."""
    return [
        row
        if row.picture_digest
        else Encoded(row.input_ids[-num_tokens:], row.labels[-num_tokens:])
        for row in rows
    ]
