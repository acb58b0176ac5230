"""The dial: how far towards the trained weights a budget allows to go.

After one training, α walks up from the base in equal steps, W = W_base + α (W_tuned − W_base), on a
part of the keep items, and stops at the first step that does not show the budget kept. What
is right before it is confirmed on the other items, once: looking for the largest α that passes on
all of them would make a good figure out of chance.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from narrowtune.core.config import DialSettings, RunConfig
from narrowtune.core.delta_results import DialResult, DialStep
from narrowtune.core.errors import UsageError
from narrowtune.core.numbers import rounded_up
from narrowtune.core.results import TaskResult
from narrowtune.evaluate.evaluate import summarise
from narrowtune.evaluate.statistics import (
    effective_items,
    mean_change,
    mean_loss,
    smallest_provable_budget,
    worst_loss,
)
from narrowtune.evaluate.tasks import Task
from narrowtune.evaluate.verdict import pair_results


class Halves:
    """The tasks of a run, with each keep set's items in two parts; the skill's are in both.

    Items of one group (a picture, an entity) stay together. Which part an item is in depends on the
    seed and on nothing that is measured.

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
        for task in tasks:
            if task.role == "target":
                self.searched.append(task)
                self.confirming.append(task)
                continue
            chosen = _draw(task, settings.share, seed)
            parts = ([e for e in task.examples if (e.id in chosen) == own] for own in (True, False))
            for part, whole in zip(parts, (self.searched, self.confirming), strict=True):
                if not part:
                    raise UsageError(
                        asked=f"a dial on a share of {settings.share:g} of {task.name}",
                        found=f"{len(task.examples)} items that can't be parted",
                        do="give more keep items, of more than one group, or another dial.share",
                    )
                whole.append(replace(task, examples=tuple(part)))

    def check(self, config: RunConfig) -> None:
        """See that the budget can be shown to be kept at all, before anything is trained.

        Raises:
            UsageError: one of the parts has too few items.
        """
        for part, tasks in (("finds α", self.searched), ("confirms it", self.confirming)):
            kept = [task for task in tasks if task.role == "held_out"]
            provable = smallest_provable_budget([effective_items(t.groups) for t in kept])
            if provable > config.budget:
                raise UsageError(
                    asked=f"a dial within a budget of {config.budget:g} points",
                    found=f"{min(len(t.examples) for t in kept)} items a task in the part that "
                    f"{part}, which show no less than {rounded_up(provable):g}, even if nothing is "
                    "lost",
                    do="give more keep items, raise the budget, or leave the dial out",
                )


def _draw(task: Task, share: float, seed: int) -> set[str]:
    """Return the ids of the items that α is found on."""
    # What stands alone is a group of its own.
    groups: dict[str, list[str]] = {}
    for example in task.examples:
        key = f"item {example.id}" if example.group is None else f"group {example.group}"
        groups.setdefault(key, []).append(example.id)
    order = sorted(groups, key=lambda key: hashlib.sha256(f"{seed} {key}".encode()).digest())
    chosen: set[str] = set()
    for key in order:
        if len(chosen) >= share * len(task.examples):
            break
        chosen.update(groups[key])
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
    """Walk up from the base until the budget is no longer shown to be kept.

    Args:
        halves: the tasks in two parts.
        before: the base's results on all items.
        score: from α and tasks to results there.
        config: the run, with its dial and budgets.
    """
    assert config.dial is not None
    first, steps, reached = restrict(before, halves.searched), list[DialStep](), 0.0
    for number in range(1, config.dial.num_steps + 1):
        alpha = number / config.dial.num_steps
        pairs = pair_results(first, score(alpha, halves.searched))
        kept = [pair for pair in pairs if pair.role == "held_out"]
        taught = [pair for pair in pairs if pair.role == "target"]
        loss = mean_loss(kept)
        within = loss.upper_bound <= config.budget
        if config.budget_task is not None:
            within = within and worst_loss(kept)[1].upper_bound <= config.budget_task
        learning = mean_change(taught) if taught else None
        steps.append(DialStep(alpha=alpha, learning=learning, forgetting=loss, within=within))
        if not within:
            break
        reached = alpha
    return DialResult(
        alpha=reached,
        steps=steps,
        num_items=_num_kept(halves.searched),
        num_confirming=_num_kept(halves.confirming),
    )


def _num_kept(tasks: Iterable[Task]) -> int:
    return sum(len(task.examples) for task in tasks if task.role == "held_out")
