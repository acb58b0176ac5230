"""Items that share a group move together: clusters, within a task and across tasks.

Owns: `Clusters`, and which tasks are taken together because they ask about the same groups (four
keep sets about the same pictures are one sample of pictures, not four).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from narrowtune.core.errors import EvaluationError

Floats = NDArray[np.float64]
Groups = Sequence[str | None]


@dataclass(frozen=True)
class Clusters:
    """Net change (after − before, summed over items) and size of each cluster.

    Attributes:
        change: [num_clusters]; of several tasks together, each item weighs 1 / (their number ×
            items of its task), so that the sum is the mean over these tasks.
        size: items of each cluster [num_clusters], by the same weights.
        members: the same for each of several tasks by itself; none for one task.
        level: `change` without what the tasks' means differ by [num_clusters], since drawing items
            anew leaves each task as many as it has; None for one task.
    """

    change: Floats
    size: Floats
    members: tuple[Clusters, ...] = ()
    level: Floats | None = None

    @property
    def num_tasks(self) -> int:
        """How many tasks these are of."""
        return len(self.members) or 1

    @property
    def num_items(self) -> float:
        """Items of the task; the most of several tasks."""
        return max((m.num_items for m in self.members), default=float(self.size.sum()))

    def weight(self, num_items: int | None = None) -> float:
        """Return the weight of the cluster that could change next, unseen.

        That of a typical one, or of one of a task alone: where tasks share few groups or have few
        items, these are the heavier. With `num_items`, as if every task had that many.
        """
        scale = 1.0 if num_items is None else self.num_items / num_items
        alone = (member.weight(num_items) / self.num_tasks for member in self.members)
        return max(min(1.0, scale * self.kish), *alone, 0.0)

    @property
    def mean(self) -> float:
        """Mean change of an item."""
        return float(self.change.sum() / self.size.sum())

    @property
    def kish(self) -> float:
        """Weight of a typical item's cluster: 1 / (effective number of clusters)."""
        return float((self.size**2).sum() / self.size.sum() ** 2)

    @property
    def num_deviating(self) -> int:
        """How many clusters differ from the commonest change per item; the fewest of a task's."""
        if self.members:
            return min(member.num_deviating for member in self.members)
        per_item = np.round(self.change / self.size, 9)
        return len(per_item) - int(np.unique(per_item, return_counts=True)[1].max())


def make_clusters(change: Floats, groups: Groups | None) -> Clusters:
    """Return the clusters of one task from its items' changes [num_items].

    Raises:
        EvaluationError: as many groups as items don't match.
    """
    codes = cluster_codes(len(change), groups)
    return Clusters(change=_sums(codes, change), size=_sums(codes, np.ones(len(codes))))


def make_strata(tasks: Sequence[tuple[Floats, Groups | None]]) -> list[Clusters]:
    """Return clusters that are independent of those of every other part.

    Tasks with no group in common are parts of their own; tasks that share groups, directly or by
    way of others, are one.

    Args:
        tasks: changes [num_items] and groups of each.

    Raises:
        EvaluationError: as many groups as items don't match.
    """
    return [
        make_clusters(*tasks[part[0]]) if len(part) == 1 else _joined([tasks[i] for i in part])
        for part in _connected([groups for _, groups in tasks])
    ]


def effective_items(groups: Groups) -> float:
    """Return how many items that stand alone are worth as much evidence as these groups (Kish)."""
    return 1 / make_clusters(np.zeros(len(groups)), groups).kish


def effective_items_together(tasks: Sequence[Groups]) -> list[float]:
    """Return the same for each of several tasks whose mean is asked for.

    Two tasks about the same hundred pictures are worth fifty items each, not a hundred.
    """
    found = [0.0] * len(tasks)
    for part in _connected(tasks):
        members = [(np.zeros(len(tasks[i])), tasks[i]) for i in part]
        whole = make_clusters(*members[0]) if len(part) == 1 else _joined(members)
        for i in part:
            found[i] = 1 / (whole.weight() * len(part))
    return found


def cluster_codes(num_items: int, groups: Groups | None) -> NDArray[np.int64]:
    """Return the cluster number of each item [num_items], in order of first appearance.

    Raises:
        EvaluationError: as many groups as items don't match.
    """
    if groups is None:
        return np.arange(num_items)
    if len(groups) != num_items:
        raise EvaluationError(
            asked="clustering by group",
            found=f"{num_items} scores and {len(groups)} groups",
            do="give one group (or None) per item",
        )
    codes: dict[object, int] = {}
    keys = ((i,) if group is None else group for i, group in enumerate(groups))
    return np.array([codes.setdefault(key, len(codes)) for key in keys], dtype=np.int64)


def _joined(tasks: Sequence[tuple[Floats, Groups | None]]) -> Clusters:
    """Return the clusters of tasks that share groups."""
    keys: list[str | None] = []
    for change, groups in tasks:
        keys += groups if groups is not None else [None] * len(change)
    codes = cluster_codes(len(keys), keys)
    weights = [np.full(len(change), 1 / (len(tasks) * len(change))) for change, _ in tasks]
    weight = np.concatenate(weights)
    changes = np.concatenate([change for change, _ in tasks])
    whole = float((weight * changes).sum())
    level = np.concatenate([change - change.mean() + whole for change, _ in tasks])
    return Clusters(
        change=_sums(codes, weight * changes),
        size=_sums(codes, weight),
        members=tuple(make_clusters(change, groups) for change, groups in tasks),
        level=_sums(codes, weight * level),
    )


def _sums(codes: NDArray[np.int64], values: Floats) -> Floats:
    """Return the sum of the values of each code."""
    return np.bincount(codes, weights=values).astype(np.float64, copy=False)


def _connected(tasks: Sequence[Groups | None]) -> list[list[int]]:
    """Return the places of tasks that share groups, directly or by way of others, in order."""
    parts: list[tuple[list[int], set[str]]] = []
    for place, groups in enumerate(tasks):
        named = {group for group in groups or () if group is not None}
        members = [place]
        apart = []
        for part in parts:
            if part[1] & named:
                members, named = part[0] + members, part[1] | named
            else:
                apart.append(part)
        parts = [*apart, (sorted(members), named)]
    return sorted(members for members, _ in parts)
