"""The verdict in words: what it is called, what it means, and what to do next."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from narrowtune.core.delta_results import DialResult, DialStep
from narrowtune.core.numbers import digits_beside, loss_range, moved, signed, worst_case
from narrowtune.core.recipes import get_recipe
from narrowtune.core.results import (
    DriftResult,
    DriftTask,
    Estimate,
    Outcome,
    RunRecord,
    TaskChange,
    Verdict,
)
from narrowtune.report.text import percent, plural, small, tick

Tone = Literal["good", "bad", "unsure"]

TITLES: dict[Outcome, str] = {
    "ship": "Ship",
    "over_budget": "Over budget",
    "not_enough_evidence": "Not enough evidence",
}
TONES: dict[Outcome, Tone] = {
    "ship": "good",
    "over_budget": "bad",
    "not_enough_evidence": "unsure",
}
_MOST_NAMED = 2
"""Tasks that an advice names."""

MARKS: dict[Tone, str] = {"good": "✓", "bad": "✕", "unsure": "?"}


@dataclass(frozen=True)
class Headline:
    """What a reader sees first.

    Attributes:
        title: the verdict's name.
        tone: which colour and mark go with it.
        meaning: one or two plain sentences.
        next_step: what to do now.
        reasons: the sentences that led to the outcome, as recorded.
    """

    title: str
    tone: Tone
    mark: str
    meaning: str
    next_step: str
    reasons: list[str]


def headline(record: RunRecord) -> Headline:
    """Put the verdict of `record` into words; a run without one says so."""
    verdict = record.verdict
    if verdict is None:
        return Headline(
            title="No verdict",
            tone="unsure",
            mark=MARKS["unsure"],
            meaning="This run was not compared with a budget.",
            next_step="Run narrowtune teach with a skill and with keep sets to get a verdict.",
            reasons=[],
        )
    tone = TONES[verdict.outcome]
    meaning, next_step = {
        "ship": _ship,
        "over_budget": _over_budget,
        "not_enough_evidence": _not_enough,
    }[verdict.outcome](record, verdict)
    return Headline(TITLES[verdict.outcome], tone, MARKS[tone], meaning, next_step, verdict.reasons)


def points(value: float) -> str:
    """ "1 point", "0.25 points": a limit as it was given, or an amount that is rounded already."""
    shown = tick(value)
    return f"{shown} point" + ("" if shown == "1" else "s")


def _amount(loss: Estimate, limit: float) -> str:
    """A loss that is above a limit, so that it reads so."""
    return points(round(loss.value, digits_beside(limit, loss.value)))


def _learned(verdict: Verdict) -> str:
    if verdict.learning is None:
        return "What it learned was not measured"
    by = f"{signed(verdict.learning.value)} points"
    if verdict.learning.lower_bound > verdict.min_learning:
        return f"It learned the skill ({by})"
    return f"The skill's score changed by {by}"


def _ship(record: RunRecord, verdict: Verdict) -> tuple[str, str]:
    loss, kept = verdict.forgetting, "no held-out task was asked for"
    if loss is not None:
        digits = digits_beside(verdict.budget, loss.upper_bound)
        kept = (
            f"elsewhere it {moved(loss.value)} on average, {worst_case(loss.upper_bound, digits)} "
            f"(95 % bound), within the {points(verdict.budget)} allowed"
        )
    next_step = "Apply the delta to the base model; the same delta undoes it bit for bit."
    return f"{_learned(verdict)}, and {kept}.", next_step


def _over_budget(record: RunRecord, verdict: Verdict) -> tuple[str, str]:
    loss = verdict.forgetting
    if loss is not None and loss.lower_bound > verdict.budget:
        what = (
            f"the model lost {_amount(loss, verdict.budget)} on average on what it should keep; "
            f"{points(verdict.budget)} were allowed"
        )
    elif verdict.worst_task_forgetting is not None and verdict.budget_task is not None:
        lost = _amount(verdict.worst_task_forgetting, verdict.budget_task)
        what = (
            f"{verdict.worst_task!r} alone lost {lost}; {points(verdict.budget_task)} were allowed"
        )
    else:
        what = "the loss on what it should keep is above what was allowed"
    return (
        f"{_learned(verdict)}, but {what}.",
        f"Don't apply this delta. Instead, {_how_to_hold(record)}, lower the learning rate, "
        "or choose a narrower recipe.",
    )


_TAKEN_OVER = 0.1
"""Nats per token beyond which questions about the skill's pictures are answered otherwise."""


def _how_to_hold(record: RunRecord) -> str:
    """An anchor first; then what keeps steps off its prompts and weights near, and more prompts.

    These count for more than the weight, which buys little beyond its default (docs/anchor.md).
    """
    training = record.training
    if training is None or training.anchor_weight is None:
        return "train again with the anchor (--anchor)"
    projects = "language_model" in get_recipe(record.recipe).components
    hints = ["set anchor.projection to 10"] if projects and not training.anchor_projection else []
    if training.pull_to_base is None:
        hints.append("set training.pull_to_base to 2")
    if training.step_owner is not None:
        hints = [f"{' and '.join(hints)} (only without {training.step_owner})"]
    if _takes_over(record):
        hints.append("set anchor.skill_pictures to a fifth of the anchor's prompts")
    lost = [t for t in record.tasks if t.role == "held_out" and t.change.high < 0]
    names = " and ".join(t.name for t in sorted(lost, key=lambda t: t.change.value)[:_MOST_NAMED])
    if names:
        hints.append(
            "add prompts to the anchor (anchor.prompts, without answers) that are answered in the "
            f"form of {names}"
        )
    return ", ".join(hints) or "raise training.pull_to_base"


def _takes_over(record: RunRecord) -> bool:
    """Whether the skill's pictures are answered otherwise more than others are, and unheld."""
    training, drift = record.training, record.drift
    near = None if drift is None else drift.about_skill
    if training is None or training.anchor_skill_pictures or drift is None or near is None:
        return False
    return _goes_first(drift, near)


def _goes_first(drift: DriftResult, near: DriftTask) -> bool:
    return near.kl_base_tuned > max(_TAKEN_OVER, drift.kl_base_tuned)


def _not_enough(record: RunRecord, verdict: Verdict) -> tuple[str, str]:
    loss, learning = verdict.forgetting, verdict.learning
    if record.dial is not None and record.dial.alpha == 0:
        return (
            "The dial stayed at the base, so nothing is learned and nothing is lost: its first "
            "step already puts a budget at stake.",
            "Train with the anchor (--anchor), at a lower rate or with a narrower recipe, take "
            "smaller steps (dial.num_steps), or accept a larger budget.",
        )
    if loss is None:
        return (
            f"{_learned(verdict)}, but nothing says what was lost: no held-out task was measured.",
            "Name at least one keep set with --keep and run again.",
        )
    if learning is None or learning.lower_bound <= verdict.min_learning:
        shown = "was not measured" if learning is None else f"is {signed(learning.value)} points"
        goal = f"more than {points(verdict.min_learning)}"
        return (
            f"It is not shown that the model learned the skill: the change {shown}, and its lower "
            f"bound must be {goal}.",
            "Train longer, with more rows or at a higher rate, or test on more skill items.",
        )
    if verdict.nothing_to_lose:
        return (
            f"{_learned(verdict)}, but the base itself fails at what is kept: no loss could show.",
            "Look at what the base answers there (before/), and correct the keep sets' metric, "
            "max_new_tokens or answers; then teach again.",
        )
    kept, larger = _unsure_loss(loss, verdict)
    meaning = f"{_learned(verdict)}. {kept}"
    if verdict.items_needed is None:
        return meaning, f"Evaluate on more held-out items, or accept a larger {larger}."
    if record.dial is not None:
        return meaning, (
            f"About {plural(verdict.items_needed, 'item')} per held-out task beside those that the "
            "dial is turned on would decide; take new ones, and teach again."
        )
    needed = plural(verdict.items_needed, "item")
    return meaning, f"Evaluate on about {needed} per held-out task; that many would decide."


def _unsure_loss(loss: Estimate, verdict: Verdict) -> tuple[str, str]:
    """Which budget is neither kept nor broken for certain, in a sentence and as a name."""
    worst, limit, also = verdict.worst_task_forgetting, verdict.budget_task, ""
    if worst is not None and limit is not None and worst.upper_bound > limit:
        if loss.upper_bound <= verdict.budget:
            return (
                f"The mean loss is within the {points(verdict.budget)} allowed, but "
                f"{verdict.worst_task!r} alone {moved(worst.value)}, and the largest loss of a "
                f"task is somewhere from {_bounds(worst, limit)} (95 % bounds), so these items "
                f"can't tell whether each task stays within {points(limit)}.",
                "budget for single tasks (budget_task)",
            )
        also = f", nor whether each task stays within {points(limit)}"
    return (
        f"On what it should keep it {moved(loss.value)} on average, somewhere from "
        f"{_bounds(loss, verdict.budget)} (95 % bounds), so these items can't tell whether a loss "
        f"stays within {points(verdict.budget)}{also}.",
        "budget",
    )


def _bounds(loss: Estimate, limit: float) -> str:
    ends = (loss.lower_bound, loss.upper_bound)
    return loss_range(loss.value, *ends, digits_beside(limit, *ends))


@dataclass(frozen=True)
class Finding:
    """What happened to one task, in a word and a sentence."""

    task: str
    label: str
    tone: Tone
    sentence: str


SUBSTANTIAL = 5.0
"""Percentage points by which the share of valid answers must fall to be called format drift."""


def findings(record: RunRecord) -> list[Finding]:
    """Tell, for each held-out task that lost, lost knowledge from lost form.

    A task lost where the interval of its strict change lies below 0. The loss is format drift
    where the lenient reading lost less than half as much, forgetting where it lost more.
    """
    found = [_finding(task) for task in record.tasks if task.role == "held_out"]
    return [finding for finding in found if finding is not None]


def _finding(task: TaskChange) -> Finding | None:
    strict, lenient = -task.change.value, -task.change_lenient.value
    invalid = 100 * (task.before_valid - task.after_valid)
    form = f"answers of valid form {percent(task.before_valid, 0)} → {percent(task.after_valid, 0)}"
    if task.change.high < 0:
        both = f"{moved(strict)} as asked, {moved(lenient)} read leniently; {form}."
        if lenient < strict / 2:
            return Finding(
                task.name,
                "Format drift",
                "unsure",
                f"The answers are mostly still there, in another form: {both}",
            )
        also = " The form broke as well." if invalid >= SUBSTANTIAL else ""
        return Finding(
            task.name,
            "Forgetting",
            "bad",
            f"Right answers were lost, whatever their form: {both}{also}",
        )
    if invalid >= SUBSTANTIAL:
        return Finding(
            task.name, "Format drift", "unsure", f"No points lost that can be shown, but {form}."
        )
    return None


_MOST_NATS = 700.0
"""e to more than this has no number; nor has e to a KL that is infinite, or no number."""


def dial_sentence(dial: DialResult) -> str:
    """Say how far the dial went, and why no further."""
    last = dial.walked[-1]
    if dial.alpha == 0:
        return f"The dial stayed at the base. {_at(last)}."
    taken = next(step for step in dial.steps if step.alpha == dial.alpha)
    if last is taken:
        return f"The dial went all the way to what was trained. {_at(taken)}."
    return f"The dial went to {dial.place}. {_at(taken)}. {_at(last)}."


def _at(step: DialStep) -> str:
    loss = step.forgetting
    found = f"At {step.alpha:g} the held-out tasks {moved(loss.value)} where the dial was turned"
    if step.stopped_by:
        return f"{found}: there {step.stopped_by} puts a budget at stake"
    return found


def drift_sentence(drift: DriftResult) -> str:
    """What the drift figures say: how far, how often it matters, where, and towards which tokens.

    e to the KL is the geometric mean, over tokens, of how many times less likely the tuned model
    makes what the base would say; no threshold is needed to read it.
    """
    kl = drift.kl_base_tuned
    if kl == 0:
        return f"Nothing moved: on {plural(drift.num_prompts, 'prompt')} it is the base's, exactly."
    over = f"{plural(drift.num_tokens, 'token')} of {plural(drift.num_prompts, 'prompt')}"
    if kl < _MOST_NATS:
        # Below twice, a percentage shows what "1.00 times" would hide.
        percentage = f"{small(-100 * math.expm1(-kl))}\u00a0%"
        less = percentage if kl < math.log(2) else f"{small(math.exp(kl))} times"
        text = (
            f"What the base would say has become {less} less likely per token "
            f"(KL {small(kl)} nats, geometric mean over {over})"
        )
    else:
        text = f"KL(base‖tuned) is {small(kl)} nats per token, mean over {over}"
    text += (
        f"; the most likely token is still the base's {percent(drift.top1_agreement, 1)} of the "
        "time."
    )
    ranked = sorted(drift.tasks, key=lambda task: task.kl_base_tuned)
    if len(ranked) > 1:
        least, most = ranked[0], ranked[-1]
        text += (
            f" “{most.name}” moved most ({small(most.kl_base_tuned)} nats), "
            f"“{least.name}” least ({small(least.kl_base_tuned)})."
        )
    moved_most = max(
        drift.token_groups, key=lambda group: abs(group.tuned_mass - group.base_mass), default=None
    )
    ends = [] if moved_most is None else [moved_most.base_mass, moved_most.tuned_mass]
    shown = [percent(end) for end in ends]
    if moved_most is not None and shown[0] != shown[1]:
        change = " to ".join(shown)
        text += (
            f" Of the token groups {moved_most.name.replace('_', ' ')} changed most: {change} of "
            "the probability."
        )
    return f"{text}{_about_skill(drift)}"


def _about_skill(drift: DriftResult) -> str:
    """Say what general questions about the skill's own pictures show; they count in no mean."""
    near = drift.about_skill
    if near is None:
        return ""
    text = (
        f" Asked {plural(near.num_prompts, 'general question')} about the skill's own pictures, "
        f"which count in no other figure, it moved by {small(near.kl_base_tuned)} nats per token, "
        f"and the most likely token is the base's {percent(near.top1_agreement)} of the time"
    )
    first = ": what looks like the skill is what goes first." if _goes_first(drift, near) else "."
    return text + first
