"""A ledger as plain values: the skills that one base was taught in order, and every score.

Scores are shares between 0 and 1; learning, loss and recovery are percentage points.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from pydantic import Field

from narrowtune.core.data_settings import SkillSettings
from narrowtune.core.results import Role, TaskChange
from narrowtune.core.values import Value

SCHEMA_VERSION = 1
"""Of ledger.json. A reader refuses a newer one."""


class TaskScore(Value):
    """A task's score in one state."""

    role: Role
    mean: float
    stderr: float
    num_items: int


class Entry(Value):
    """One skill that was taught.

    Attributes:
        number: of its files below the ledger's folder; never used twice.
        name: of the skill.
        recipe: what was trained.
        created: when.
        run: name of the run's folder.
        delta: the delta's file below the ledger's folder.
        sha256: of that file.
        base_fingerprint: of the model that it was taught to, which holds the earlier skills.
        tuned_fingerprint: of the model after it.
        skill: the rows that it was taught and tested on.
        seed: of their splits.
        rows_sha256: of the rows that it is tested on.
        before: scores in the state that it was taught in, by task; earlier skills among them.
        after: the same after it.
        without: earlier skills that were taken out from below it; its scores still had them.
    """

    number: int
    name: str
    recipe: str
    created: str
    run: str
    delta: str
    sha256: str
    base_fingerprint: str
    tuned_fingerprint: str
    skill: SkillSettings
    seed: int
    rows_sha256: str
    before: dict[str, TaskScore]
    after: dict[str, TaskScore]
    without: list[str] = Field(default_factory=list)


class Ledger(Value):
    """A base, and the skills that it holds in the order in which they were taught.

    Attributes:
        model: folder or hub id of the base.
        loading: how it is loaded: revision, dtype.
        base_fingerprint: of the base.
        skills: what the latest state holds.
        undone: what was rolled back or taken out, the latest last; the files are still there.
    """

    schema_version: int = SCHEMA_VERSION
    model: str
    loading: dict[str, Any]
    family: str
    base_fingerprint: str
    skills: list[Entry] = Field(default_factory=list)
    undone: list[Entry] = Field(default_factory=list)

    @property
    def fingerprint(self) -> str:
        """Of the latest state."""
        return self.skills[-1].tuned_fingerprint if self.skills else self.base_fingerprint

    @property
    def next_number(self) -> int:
        """The number of the next entry."""
        return 1 + max((entry.number for entry in (*self.skills, *self.undone)), default=0)


class LedgerView(Value):
    """What a ledger's scores come to.

    Attributes:
        tasks: names, skills in order, then what is kept.
        states: "base", then the skill that leads to each state.
        matrix: score of each task in each state; None where it was not measured.
        learning: of each skill at its own stage, points.
        target_forgetting: mean over the skills before the last of what was lost since their
            stage, points; None for fewer than two.
        held_out: mean loss over the kept tasks since the base after each stage, points; None
            where no task was measured in both.
        recovery: points of that loss regained at each stage after the first.
    """

    tasks: list[str]
    states: list[str]
    matrix: list[list[float | None]]
    learning: dict[str, float]
    target_forgetting: float | None
    held_out: list[float | None]
    recovery: list[float | None]


def scores_of(changes: list[TaskChange]) -> tuple[dict[str, TaskScore], dict[str, TaskScore]]:
    """Return a run's scores before and after, by task."""

    def side(task: TaskChange, score: Any) -> TaskScore:
        return TaskScore(
            role=task.role, mean=score.mean, stderr=score.stderr, num_items=task.num_items
        )

    before = {task.name: side(task, task.before) for task in changes}
    return before, {task.name: side(task, task.after) for task in changes}


def view(ledger: Ledger) -> LedgerView:
    """Compute what a ledger's scores come to (docs/ledger.md has the formulas)."""
    entries = ledger.skills
    states: list[dict[str, TaskScore]] = [dict(entries[0].before)] if entries else [{}]
    for entry in entries:
        # What was measured before a skill belongs to the state that it was taught in.
        states[-1] = {**entry.before, **states[-1]}
        states.append(dict(entry.after))
    taught = [entry.name for entry in entries]
    kept = [name for name in {n: None for s in states for n in s} if name not in taught]
    tasks = [*taught, *kept]
    learning = {
        entry.name: 100 * (entry.after[entry.name].mean - entry.before[entry.name].mean)
        for entry in entries
    }
    lost = [
        100 * (entry.after[entry.name].mean - states[-1][entry.name].mean)
        for entry in entries[:-1]
        if entry.name in states[-1]
    ]
    held_out = [_mean_loss(states[0], state, kept) for state in states[1:]]
    return LedgerView(
        tasks=tasks,
        states=["base", *taught],
        matrix=[
            [state[task].mean if task in state else None for task in tasks] for state in states
        ],
        learning=learning,
        target_forgetting=math.fsum(lost) / len(lost) if lost else None,
        held_out=held_out,
        recovery=[
            None if first is None or second is None else first - second
            for first, second in pairwise(held_out)
        ],
    )


def _mean_loss(
    base: dict[str, TaskScore], state: dict[str, TaskScore], kept: list[str]
) -> float | None:
    both = [name for name in kept if name in base and name in state]
    if not both:
        return None
    return 100 * math.fsum(base[name].mean - state[name].mean for name in both) / len(both)
