"""What `narrowtune check` found in a run's rows, as data."""

from __future__ import annotations

from narrowtune.core.results import SCHEMA_VERSION, DataSummary, Value


class TokenCounts(Value):
    """Tokens of the rows that are learned from.

    Attributes:
        num_rows: that there are.
        num_pictured: that have a picture.
        median, high, longest: tokens of a row, pictures included; `high` is that of 95 in 100.
        labelled: tokens of all rows that are learned, ends of turn included.
        total: tokens of all rows.
        pictures: tokens of all rows that stand for pictures; None where they can't be told.
    """

    num_rows: int
    num_pictured: int
    median: int
    high: int
    longest: int
    labelled: int
    total: int
    pictures: int | None


class Piece(Value):
    """Part of a row as the model is given it.

    Attributes:
        text: of its tokens; a token that is repeated stands there once, with how often.
        learned: whether it is labelled.
    """

    text: str
    learned: bool


class ScoredTask(Value):
    """What is scored before and after.

    Attributes:
        name: of the task.
        role: `target` or `held_out`.
        metric, mode: how it is scored.
        num_items: questions.
        effective_items: what they are worth as evidence, rows about one thing taken together.
    """

    name: str
    role: str
    metric: str
    mode: str
    num_items: int
    effective_items: float


class RefusedLine(Value):
    """A row that can't be used.

    Attributes:
        path: of its source.
        row: its number there.
        reason: why.
    """

    path: str
    row: int
    reason: str


class RowCheck(Value):
    """A run's rows, read and encoded as a run does it, without the model's weights.

    Attributes:
        model: what was asked for.
        family: of the model.
        data: every source, what was used and how it was split.
        refused: rows that can't be used, and why.
        num_steps: optimiser steps of the run.
        tokens: of the rows that are learned from.
        tasks: what is scored.
        num_anchor, num_drift: prompts.
        smallest_budget: points; losses below it can't be ruled out with these keep items. None
            without any.
        shown: the first rows that are learned from.
        notes: what the user should know.
    """

    schema_version: int = SCHEMA_VERSION
    model: str
    family: str
    data: list[DataSummary]
    refused: list[RefusedLine]
    num_steps: int
    tokens: TokenCounts
    tasks: list[ScoredTask]
    num_anchor: int
    num_drift: int
    smallest_budget: float | None
    shown: list[list[Piece]]
    notes: list[str]
