"""The demo's last words: what each run learned, and what it broke."""

from __future__ import annotations

from rich.text import Text

from narrowtune.core.numbers import moved
from narrowtune.core.results import RunRecord, TaskChange


def sentence(record: RunRecord) -> Text:
    """Say what one run of a demo learned and broke, whatever its numbers are."""
    verdict, drift = record.verdict, record.drift
    assert verdict is not None
    assert drift is not None
    assert verdict.learning is not None
    assert verdict.forgetting is not None
    skill = next(task for task in record.tasks if task.role == "target")
    kept = [task for task in record.tasks if task.role == "held_out"]
    numbers = next(group for group in drift.token_groups if group.name == "numbers")
    return Text.assemble(
        (record.name, "bold"),
        f": {_scores(skill)} ({moved(-verdict.learning.value)}); the {len(kept)} held-out tasks "
        f"{moved(verdict.forgetting.value)} on average, {_broken(kept)}; number tokens' mass on "
        f"prompts that ask for no number {numbers.base_mass:.3f} → {numbers.tuned_mass:.3f}; ",
        (verdict.outcome.replace("_", " "), "bold"),
        f" at a budget of {verdict.budget:g} points",
    )


def _broken(kept: list[TaskChange]) -> str:
    """Name the tasks whose loss is more than chance, the largest first."""
    lost = sorted((t for t in kept if t.change.high < 0), key=lambda t: t.change.value)
    if not lost:
        return "none of them by more than chance"
    return f"by more than chance {', '.join(map(_scores, lost))}"


def _scores(task: TaskChange) -> str:
    return f"{task.name} {100 * task.before.mean:.0f} → {100 * task.after.mean:.0f} %"
