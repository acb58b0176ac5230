"""Which of several runs to take: the Pareto front, and a recommendation with its reason.

Owns: that choice. It rests on the runs' verdicts; what is best of many by the same items is
flattered by them, which the reason says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from narrowtune.core.numbers import moved, signed, worst_case
from narrowtune.core.results import RunRecord, Verdict
from narrowtune.report.text import tick


@dataclass(frozen=True)
class Advice:
    """What to take.

    Attributes:
        chosen: place of the run among those given; None where none is recommended.
        reason: why, or why none.
    """

    chosen: int | None
    reason: str


def pareto_front(records: Sequence[RunRecord]) -> set[int]:
    """Return the places of runs that no other beats in both: more learned, less lost.

    Point values count, not intervals; runs that lack one of both are left out.
    """
    known = {
        place: (record.verdict.learning.value, record.verdict.forgetting.value)
        for place, record in enumerate(records)
        if record.verdict and record.verdict.learning and record.verdict.forgetting
    }
    return {
        place
        for place, (learned, lost) in known.items()
        if not any(
            more >= learned and less <= lost and (more, less) != (learned, lost)
            for more, less in known.values()
        )
    }


def advise(records: Sequence[RunRecord]) -> Advice:
    """Recommend a run: of those that may ship, the one that is sure to have learned most.

    Runs that are equal to that are told apart by what they can have lost at most.
    """
    shipping = [
        (-verdict.learning.lower_bound, verdict.forgetting.upper_bound, place)
        for place, record in enumerate(records)
        if (verdict := record.verdict) is not None
        and verdict.outcome == "ship"
        and verdict.learning is not None
        and verdict.forgetting is not None
    ]
    if shipping:
        place = min(shipping)[2]
        return Advice(place, _why(records[place], len(shipping), len(records)))
    nearest = [
        (max(excess for excess, _ in _excesses(verdict)), place)
        for place, record in enumerate(records)
        if (verdict := record.verdict) is not None
        and verdict.forgetting is not None
        and verdict.learning is not None
        and verdict.learning.lower_bound > verdict.min_learning
    ]
    if any(record.verdict is not None and record.verdict.nothing_to_lose for record in records):
        return Advice(
            None,
            "The base fails at what is kept, so that no loss could show: none can be recommended. "
            "Look at what it answers there, and correct the keep sets.",
        )
    if not nearest:
        return Advice(None, "No run is shown to have learned the skill: none can be recommended.")
    _, place = min(nearest)
    record = records[place]
    assert record.verdict is not None
    _, where = max(_excesses(record.verdict))
    needed = record.verdict.items_needed
    more = f" About {needed:,} keep items a task would decide." if needed else ""
    return Advice(
        None,
        f"No run is shown to keep its budget. {record.name} is nearest: {where}. Lower learning "
        f"rates, the anchor or the dial lose less.{more}",
    )


def _excesses(verdict: Verdict) -> list[tuple[float, str]]:
    """Return by how much each loss may be over its budget, in points and in words."""
    found = []
    if verdict.forgetting is not None:
        bound, budget = verdict.forgetting.upper_bound, verdict.budget
        found.append((bound - budget, f"{worst_case(bound)} where {tick(budget)} may be"))
    worst, limit = verdict.worst_task_forgetting, verdict.budget_task
    if worst is not None and limit is not None:
        bound = worst.upper_bound
        words = f"{verdict.worst_task} {worst_case(bound)} where {tick(limit)} of a task may be"
        found.append((bound - limit, words))
    return found


def _why(record: RunRecord, num_shipping: int, num_runs: int) -> str:
    verdict = record.verdict
    assert verdict is not None
    assert verdict.learning is not None
    assert verdict.forgetting is not None
    found = (
        f"the skill changed by {signed(verdict.learning.value)} points, at least "
        f"{signed(verdict.learning.lower_bound)}; the held-out tasks "
        f"{moved(verdict.forgetting.value)}, {worst_case(verdict.forgetting.upper_bound)}"
    )
    if num_shipping == 1:
        return f"{record.name}, the only one of {num_runs} that may ship: {found}."
    return (
        f"{record.name} is surest to have learned most of the {num_shipping} of {num_runs} that "
        f"may ship: {found}. It was picked by these items, which flatters it a little."
    )
