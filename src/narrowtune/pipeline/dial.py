"""The dial: how far towards the trained weights a budget allows to go.

After one training, α walks up from the base in equal steps: W_base + α (W_tuned − W_base), or all
of the way for the share α of each tensor's elements that moved furthest (`models.blended`). It is
tried on a part of the keep items, and stops at the first step at which the other part can't be
expected to show the budget kept. What is right before it is confirmed on the other part, once:
looking for the largest α that passes on all items would make a good figure out of chance. What lies
beyond is looked at when all that is over, to draw the whole curve; nothing depends on it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from statistics import NormalDist

from narrowtune.core.config import DialSettings, RunConfig
from narrowtune.core.delta_results import DialResult, DialStep
from narrowtune.core.errors import UsageError
from narrowtune.core.numbers import rounded_up
from narrowtune.core.results import TaskResult
from narrowtune.core.values import Estimate
from narrowtune.data.spilled import pick
from narrowtune.evaluate.clusters import effective_items, effective_items_together
from narrowtune.evaluate.evaluate import summarise
from narrowtune.evaluate.statistics import (
    PairedTask,
    mean_change,
    mean_loss,
    smallest_provable_budget,
    worst_loss,
)
from narrowtune.evaluate.tasks import Task
from narrowtune.evaluate.verdict import pair_results, that_can_lose

CHANCE = 0.8
"""Chance of being confirmed that a step must have, as far as the searched items tell."""

_BOUND, _MARGIN = NormalDist().inv_cdf(0.95), NormalDist().inv_cdf(CHANCE)


class Halves:
    """The tasks of a run, with each keep set's items in two parts; the skill's are in both.

    Items of one group (a picture, an entity) are in one part, in whichever tasks they are. Which
    part that is depends on the seed and the tasks' sizes, and on nothing that is measured.

    Args:
        tasks: the skill's and those that are kept.
        settings: of the dial.
        seed: of the parts.

    Attributes:
        searched: what α is found on.
        confirming: what the verdict is of.

    Raises:
        UsageError: a keep set has too few items, or groups of items, to be parted.
    """

    def __init__(self, tasks: Sequence[Task], settings: DialSettings, seed: int) -> None:
        self.searched: list[Task] = []
        self.confirming: list[Task] = []
        self._share = settings.share
        chosen = _draw([task for task in tasks if task.role == "held_out"], settings.share, seed)
        for task in tasks:
            for whole, own in ((self.searched, True), (self.confirming, False)):
                if task.role == "target":
                    whole.append(task)
                    continue
                part = [n for n, key in enumerate(_keys(task)) if (key in chosen) == own]
                if not part:
                    raise UsageError(
                        asked=f"a dial on a share of {settings.share:g} of {task.name}",
                        found=f"{len(task.examples)} items that can't be parted",
                        do="give more keep items, of more than one group, or another dial.share",
                    )
                whole.append(replace(task, examples=pick(task.examples, part)))

    def provable(self) -> tuple[float, float]:
        """Return the smallest mean loss, and loss of one task, that a dial can be held to, points.

        That is what a step without any loss is expected to show.
        """
        parts = [
            [task.groups for task in part if task.role == "held_out"]
            for part in (self.searched, self.confirming)
        ]
        wide = [smallest_provable_budget(effective_items_together(part)) for part in parts]
        each = [
            _expected(0.0, *(smallest_provable_budget([effective_items(own)]) for own in pair))
            for pair in zip(*parts, strict=True)
        ]
        return _expected(0.0, *wide), max(each)

    def check(self, config: RunConfig) -> None:
        """See that the budgets can be shown to be kept at all, before anything is trained.

        Raises:
            UsageError: one of the parts has too few items.
        """
        mean, worst = self.provable()
        for what, limit, provable in (
            ("a budget", config.budget, mean),
            ("a budget for single tasks", config.budget_task, worst),
        ):
            if limit is not None and provable > limit:
                kept = [t for t in (*self.searched, *self.confirming) if t.role == "held_out"]
                fewest = math.floor(min(effective_items(task.groups) for task in kept))
                raise UsageError(
                    asked=f"a dial within {what} of {limit:g} points",
                    found=f"keep items of which a task has {fewest} in one part (items of one "
                    "group count as less), which are expected to show no less than "
                    f"{rounded_up(provable):g}, even if nothing is lost",
                    do="give more keep items, raise the budget, or leave the dial out",
                )


def _keys(task: Task) -> list[str]:
    """Return what each item must stay together with."""
    return [example.cluster for example in task.examples]


def _draw(tasks: Sequence[Task], share: float, seed: int) -> set[str]:
    """Return the groups that α is found on: about `share` of every task's items."""
    members: dict[str, dict[str, int]] = {}
    for task in tasks:
        for key in _keys(task):
            own = members.setdefault(key, {})
            own[task.name] = own.get(task.name, 0) + 1
    chosen: set[str] = set()
    # By task: items drawn so far, less those that should have been.
    over = {task.name: 0.0 for task in tasks}
    order = sorted(members, key=lambda key: hashlib.sha256(f"{seed} {key}".encode()).digest())
    for key in order:
        own = members[key]
        with_it = sum((over[name] + (1 - share) * n) ** 2 for name, n in own.items())
        without = sum((over[name] - share * n) ** 2 for name, n in own.items())
        taken = with_it <= without
        if taken:
            chosen.add(key)
        for name, n in own.items():
            over[name] += (1 - share) * n if taken else -share * n
    return chosen


def restrict(results: Iterable[TaskResult], tasks: Sequence[Task]) -> list[TaskResult]:
    """Return the results on the items that `tasks` have."""
    by_name = {result.name: result for result in results}
    found = []
    for task in tasks:
        wanted = {example.id for example in task.examples}
        items = [item for item in by_name[task.name].items if item.id in wanted]
        found.append(summarise(task, items, by_name[task.name].seconds))
    return found


def turn(
    halves: Halves,
    before: Sequence[TaskResult],
    score: Callable[[float, Sequence[Task]], list[TaskResult]],
    config: RunConfig,
) -> DialResult:
    """Walk up from the base until the budget can't be expected to be shown to be kept.

    A step passes where the other part's upper bound is expected to be within the budget with a
    chance of `CHANCE`: for a bound alone, that chance would be about a half at the last step.

    Args:
        halves: the tasks in two parts.
        before: the base's results on all items.
        score: from α and tasks to results there.
        config: the run, with its dial and budgets.
    """
    assert config.dial is not None
    first, steps, reached = restrict(before, halves.searched), list[DialStep](), 0.0
    for alpha in _alphas(config.dial):
        step = _step(alpha, pair_results(first, score(alpha, halves.searched)), halves, config)
        steps.append(step)
        if step.stopped_by:
            break
        reached = alpha
    return DialResult(
        alpha=reached,
        steps=steps,
        num_items=_num_kept(halves.searched),
        num_confirming=_num_kept(halves.confirming),
        way=config.dial.way,
    )


def look_beyond(
    dial: DialResult,
    halves: Halves,
    before: Sequence[TaskResult],
    score: Callable[[float, Sequence[Task]], list[TaskResult]],
    config: RunConfig,
) -> DialResult:
    """Score the steps that the walk did not come to, on the same items, for the drawing alone.

    Args:
        dial: what was decided; its α and the steps that it took stay as they are.
        halves: as `turn` had them, and so the rest.
        before: the base's results on all items.
        score: from α and tasks to results there.
        config: the run, with its dial and budgets.
    """
    assert config.dial is not None
    first = restrict(before, halves.searched)
    beyond = [
        _step(alpha, pair_results(first, score(alpha, halves.searched)), halves, config)
        for alpha in _alphas(config.dial)[len(dial.steps) :]
    ]
    marked = [step.model_copy(update={"after_decision": True}) for step in beyond]
    return dial.model_copy(update={"steps": [*dial.steps, *marked]})


def _alphas(settings: DialSettings) -> list[float]:
    return [number / settings.num_steps for number in range(1, settings.num_steps + 1)]


def _step(alpha: float, pairs: Sequence[PairedTask], halves: Halves, config: RunConfig) -> DialStep:
    assert config.dial is not None
    kept = [pair for pair in pairs if pair.role == "held_out"]
    taught = [pair for pair in pairs if pair.role == "target"]
    # The other part's width, from this one's and the number of items.
    ratio = math.sqrt(_num_kept(halves.searched) / _num_kept(halves.confirming))

    def expected(loss: Estimate) -> float:
        wide = loss.upper_bound - loss.value
        return _expected(loss.value, wide, ratio * wide)

    loss = mean_loss(that_can_lose(kept, config.budget) or kept)
    stopped_by = "" if expected(loss) <= config.budget else "the mean of the held-out tasks"
    if config.budget_task is not None and not stopped_by:
        name, worst = worst_loss(kept)
        if expected(worst) > config.budget_task:
            stopped_by = name
    return DialStep(
        alpha=alpha,
        learning=mean_change(taught) if taught else None,
        forgetting=loss,
        expected=expected(loss),
        stopped_by=stopped_by,
    )


def _expected(loss: float, wide: float, other_wide: float) -> float:
    """Return the upper bound that the other part stays below with a chance of `CHANCE`.

    Args:
        loss: found on the searched part, points.
        wide: of its one-sided 95 % bound beyond it.
        other_wide: the same of the other part.
    """
    return loss + other_wide + _MARGIN / _BOUND * math.hypot(wide, other_wide)


def _num_kept(tasks: Iterable[Task]) -> int:
    return sum(len(task.examples) for task in tasks if task.role == "held_out")
