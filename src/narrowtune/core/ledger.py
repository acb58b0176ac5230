"""A ledger as plain values: the skills that one base was taught in order, and every score.

Scores are shares between 0 and 1; learning, loss and recovery are percentage points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from pydantic import Field, model_validator

from narrowtune.core.data_settings import SkillSettings
from narrowtune.core.results import Role
from narrowtune.core.values import Value

SCHEMA_VERSION = 1
"""Of ledger.json. A reader refuses a newer one."""


class TaskScore(Value):
    """A task's score in one state.

    `items` is a hash of what was asked and what is accepted, `scoring` the metric, mode and length
    of answers: scores with others of these are not subtracted from each other. Ledgers of before
    2026-11-28 have no `scoring`.
    """

    role: Role
    mean: float
    stderr: float
    num_items: int
    items: str
    scoring: str = ""


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
        taught_sha256: of the rows that it was taught with; ledgers of before 2026-11-30 have none.
        before: scores in the state that it was taught in, by task; earlier skills among them.
        after: the same after it.
        without: earlier skills that were taken out from below it: its scores had them, and are of
            no state that the ledger has.
    """

    number: int
    name: str
    recipe: str
    created: str
    run: str
    delta: str = Field(pattern=r"^(deltas/[^/\\\x00]+\.safetensors)?$")
    sha256: str
    base_fingerprint: str
    tuned_fingerprint: str
    skill: SkillSettings
    seed: int
    rows_sha256: str
    taught_sha256: str = ""
    before: dict[str, TaskScore]
    after: dict[str, TaskScore]
    without: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _is_of_its_skill(self) -> Entry:
        scored = self.before.keys() & self.after.keys()
        if self.name != self.skill.label or self.name not in scored:
            raise ValueError(f"{self.name!r} is not what it was taught and scored on")
        return self


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
        learning: of each skill at its own stage, points; None where that state is gone.
        target_forgetting: mean over the skills before the last of what was lost since their
            stage, points; None where none was measured in both states on the same items.
        held_out: mean loss over the kept tasks since the base after each stage, points; None
            where no task was measured in both states on the same items.
        recovery: points of that loss regained at each stage after the first, over tasks that were
            measured in the base and in both states.
    """

    tasks: list[str]
    states: list[str]
    matrix: list[list[float | None]]
    learning: dict[str, float | None]
    target_forgetting: float | None
    held_out: list[float | None]
    recovery: list[float | None]


State = dict[str, TaskScore]
"""Scores in one state, by task."""


def view(ledger: Ledger) -> LedgerView:
    """Compute what a ledger's scores come to (docs/ledger.md has the formulas)."""
    states = _states(ledger)
    taught = [entry.name for entry in ledger.skills]
    kept = [name for name in {n: None for s in states for n in s} if name not in taught]
    tasks = [*taught, *kept]
    learning: dict[str, float | None] = {
        entry.name: None
        if entry.without
        else 100 * (entry.after[entry.name].mean - entry.before[entry.name].mean)
        for entry in ledger.skills
    }
    lost = [
        loss
        for number, name in enumerate(taught[:-1], 1)
        if (loss := _mean_loss(states[number], states[-1], [name])) is not None
    ]
    recovery: list[float | None] = []
    for first, second in pairwise(states[1:]):
        common = [name for name in kept if _same(states[0], first, name)]
        # Where one has no `scoring`, both may match the base and not each other.
        common = [
            name for name in common if _same(states[0], second, name) and _same(first, second, name)
        ]
        before, after = (_mean_loss(states[0], state, common) for state in (first, second))
        recovery.append(None if before is None or after is None else before - after)
    return LedgerView(
        tasks=tasks,
        states=["base", *taught],
        matrix=[
            [state[task].mean if task in state else None for task in tasks] for state in states
        ],
        learning=learning,
        target_forgetting=math.fsum(lost) / len(lost) if lost else None,
        held_out=[_mean_loss(states[0], state, kept) for state in states[1:]],
        recovery=recovery,
    )


def _states(ledger: Ledger) -> list[State]:
    """Return what was measured in each state: by the run that led to it, and by the next one."""
    states: list[State] = [{}]
    # The base was scored by every skill that was the first on it, undone ones too.
    for entry in (*ledger.undone, *ledger.skills):
        if not entry.without and entry.base_fingerprint == ledger.base_fingerprint:
            states[0] |= entry.before
    for entry in ledger.skills:
        # Scores of a skill that another one was taken out from below are of no state there is; what
        # a run found before it fills what the run that led to its state did not ask.
        if not entry.without:
            states[-1] = {**entry.before, **states[-1]}
        states.append({} if entry.without else dict(entry.after))
    return states


def _same(first: State, second: State, name: str) -> bool:
    if name not in first or name not in second:
        return False
    one, other = first[name], second[name]
    alike = not one.scoring or not other.scoring or one.scoring == other.scoring
    return one.items == other.items and alike


def _mean_loss(before: State, after: State, names: Sequence[str]) -> float | None:
    both = [name for name in names if _same(before, after, name)]
    if not both:
        return None
    return 100 * math.fsum(before[name].mean - after[name].mean for name in both) / len(both)
