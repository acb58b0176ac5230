"""A run's rows as the model will be given them, without the model.

Owns: `check_rows`. Everything is read, split, encoded and compared as in a run; weights are neither
read nor fetched, so that mistakes in rows show in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from narrowtune.core.config import RunConfig
from narrowtune.core.row_check import Piece, RefusedLine, RowCheck, ScoredTask, TokenCounts
from narrowtune.data.collate import IGNORE_INDEX, Encoded
from narrowtune.evaluate.clusters import effective_items_together
from narrowtune.evaluate.statistics import smallest_provable_budget
from narrowtune.evaluate.tasks import Task
from narrowtune.models.load import load_reader
from narrowtune.pipeline.checks import check_run
from narrowtune.pipeline.dial import Halves
from narrowtune.pipeline.inputs import make_encoder, read_inputs
from narrowtune.pipeline.pitfalls import cannot_ship, check_eyes, pitfalls, unused_rows
from narrowtune.train.arguments import planned_steps

_REPEATED = 4  # times that a token stands in a row of itself before it is counted instead


def check_rows(
    config: RunConfig, *, num_shown: int = 1, refused_path: Path | None = None
) -> RowCheck:
    """Read and encode all rows of a run. Loads no weights, and writes nothing else.

    What depends on weights or on the machine is not looked at: memory, devices, room on the disk,
    and which matrices the recipe finds.

    Args:
        config: the run.
        num_shown: rows that come back as the model is given them.
        refused_path: gets the rows that can't be used, those for which this fails among them.

    Raises:
        NarrowtuneError: as a run would, for its settings and rows.
    """
    check_run(config)
    reader = load_reader(
        config.model, revision=config.revision, processor_kwargs=config.processor_kwargs
    )
    encoder = make_encoder(reader, config)
    inputs = read_inputs(config, encoder, refused_path)
    check_eyes(reader.family, config, inputs)
    kept = [task.groups for task in inputs.tasks if task.role == "held_out"]
    worth = effective_items_together(kept)
    provable = smallest_provable_budget(worth) if worth else None
    if config.dial is not None:
        # Only a part of the keep items decides, and the other one has to confirm it.
        halves = Halves(inputs.tasks, config.dial, config.seed)
        halves.check(config)
        provable, _ = halves.provable()
    return RowCheck(
        model=config.model,
        family=reader.family.title,
        data=inputs.summaries,
        refused=[RefusedLine(**vars(row)) for row in inputs.refused],
        num_steps=planned_steps(config, len(inputs.rows)),
        tokens=count_tokens(inputs.rows, encoder.image_token_id),
        tasks=_tasks(inputs.tasks, worth),
        num_anchor=len(inputs.anchor_prompts),
        num_drift=len(inputs.drift_prompts),
        smallest_budget=provable,
        shown=[pieces(reader.tokenizer, row) for row in islice(inputs.rows, num_shown)],
        notes=[
            *reader.notes,
            *encoder.notes,
            *inputs.notes,
            *pitfalls(reader.family, inputs, encoder),
            *cannot_ship(config, provable),
            *unused_rows(config),
        ],
    )


def count_tokens(rows: Sequence[Encoded], placeholder: int | None) -> TokenCounts:
    """Count what is learned from.

    Args:
        rows: all of them, at least one.
        placeholder: the token that stands for a part of a picture, where there is one.
    """
    lengths, labelled, pictured, shown = [], 0, 0, 0
    for row in rows:
        lengths.append(len(row.input_ids))
        labelled += sum(label != IGNORE_INDEX for label in row.labels)
        pictured += bool(row.picture_digest)
        shown += sum(token == placeholder for token in row.input_ids)
    ordered = sorted(lengths)
    return TokenCounts(
        num_rows=len(ordered),
        num_pictured=pictured,
        median=ordered[(len(ordered) - 1) // 2],
        high=ordered[math.ceil(0.95 * len(ordered)) - 1],
        longest=ordered[-1],
        labelled=labelled,
        total=sum(ordered),
        pictures=None if placeholder is None and pictured else shown,
    )


def pieces(tokenizer: Any, row: Encoded) -> list[Piece]:
    """Return a row as text, cut where labels begin and end."""
    found: list[Piece] = []
    before: list[int] = []
    marked = zip(row.input_ids, row.labels, strict=True)
    for learned, run in groupby(marked, key=lambda pair: pair[1] != IGNORE_INDEX):
        text = ""
        for repeated, ids in _repetitions([token for token, _ in run]):
            text += _continued(tokenizer, before, ids) + (f" × {repeated}" if repeated else "")
            before += ids
        found.append(Piece(text=text, learned=learned))
    return found


def _repetitions(tokens: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    """Yield tokens as they come, with 0; one that is repeated often once, with how often."""
    waiting: list[int] = []
    for token, same in groupby(tokens):
        times = len(list(same))
        if times < _REPEATED:
            waiting += [token] * times
            continue
        if waiting:
            yield 0, waiting
        yield times, [token]
        waiting = []
    if waiting:
        yield 0, waiting


def _continued(tokenizer: Any, before: Sequence[int], ids: Sequence[int]) -> str:
    """Decode tokens behind others: by themselves some tokenizers drop the space they begin with."""
    earlier = tokenizer.decode(before)
    text: str = tokenizer.decode([*before, *ids])
    # A character of several tokens may be cut between them.
    return text[len(earlier) :] if text.startswith(earlier) else tokenizer.decode(ids)


def _tasks(tasks: Sequence[Task], worth: Sequence[float]) -> list[ScoredTask]:
    kept = iter(worth)
    return [
        ScoredTask(
            name=task.name,
            role=task.role,
            metric=task.metric,
            mode=task.mode,
            num_items=len(task.examples),
            effective_items=next(kept) if task.role == "held_out" else _alone(task),
        )
        for task in tasks
    ]


def _alone(task: Task) -> float:
    [worth] = effective_items_together([task.groups])
    return worth
