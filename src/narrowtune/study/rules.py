"""How a claim is put as parts, each a figure beside a limit, and what parts say together.

Owns: the limits, which were fixed before anything ran (docs/decisions/0012).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from narrowtune.core.results import Value
from narrowtune.study.effects import Effect, Interval, over_seeds
from narrowtune.study.formulas import LEAST_LOSS
from narrowtune.study.presets import REFERENCE
from narrowtune.study.readings import (
    Part,
    Reading,
    Setting,
    Verdict,
    above,
    below,
    combined,
    judged,
    minus,
)
from narrowtune.study.results import StageResult
from narrowtune.study.tables import frontier, matched

MUCH = 10.0
"""Points learned from which it is much."""

LEAST_RHO, NO_RHO = 0.5, 0.2
"""Rank correlations from which a measure tracks forgetting, and below which it does not."""

NEARLY = 0.9
"""Share of the language model's learning that is nearly as much."""

SHARE_LOST = 0.25
"""Share of the language model's loss up to which a loss is little."""


class Claim(Value):
    """A claim and what the study says of it.

    Attributes:
        number, text: of the checklist.
        rule: when it agrees and when it disagrees, for people.
        readings: one for each setting.
        verdict: of all readings together.
    """

    number: str
    text: str
    rule: str
    readings: tuple[Reading, ...]
    verdict: Verdict


def make_claim(number: str, text: str, rule: str, readings: Sequence[Reading]) -> Claim:
    """Return a claim with the verdict that its readings have together."""
    verdict = combined(readings)
    return Claim(number=number, text=text, rule=rule, readings=tuple(readings), verdict=verdict)


def given(premise: Part, part: Part) -> tuple[Part, Part]:
    """Return both; where the premise does not hold, the part says nothing."""
    if premise.holds:
        return premise, part
    return premise.model_copy(update={"holds": None}), part.model_copy(update={"holds": None})


def either(parts: Sequence[Part], *, higher: bool) -> Part:
    """Return the part of the best figure: it holds if any does, and fails if all do.

    Args:
        parts: with one limit.
        higher: whether a higher figure is the better.
    """

    def rank(part: Part) -> tuple[bool, float]:
        mean = part.figure.mean if part.figure is not None else -math.inf
        return part.holds is True, mean if higher or part.figure is None else -mean

    holds = [part.holds for part in parts]
    best = max(parts, key=rank)
    if True in holds or all(value is False for value in holds):
        return best
    return best.model_copy(update={"holds": None})


def more_than(setting: Setting, arm: str, share: float) -> Part:
    """Claim that an arm learns more than a share of what the reference does."""
    more = minus(setting.learned(arm), setting.learned(REFERENCE), share)
    return above(f"learned by {arm}, less {share:g} of {REFERENCE}'s > 0", more, 0)


def little(setting: Setting, arm: str) -> Part:
    """Claim that an arm learns less than half of what the reference does."""
    more = minus(setting.learned(arm), setting.learned(REFERENCE), 0.5)
    return below(f"learned by {arm}, less half of {REFERENCE}'s < 0", more, 0)


def fewer(setting: Setting, arm: str) -> Part:
    """Claim that an arm loses less than `SHARE_LOST` of what the reference does."""
    more = minus(setting.lost(arm), setting.lost(REFERENCE), SHARE_LOST)
    return below(f"lost by {arm}, less {SHARE_LOST:g} of {REFERENCE}'s < 0", more, 0)


def distinct(settings: Sequence[Setting], arm: str) -> list[Setting]:
    """Return the settings an arm is read in: those with the very runs of an earlier one left out.

    The one rate is the reference's best rate: its runs must not be read twice.
    """
    found: list[Setting] = []
    for setting in settings:
        runs = setting.runs.get(arm)
        if runs is None or all(s.runs.get(arm) != runs for s in found):
            found.append(setting)
    return found


def forgot(setting: Setting, arm: str) -> Part:
    """Claim that an arm loses more than `LEAST_LOSS`, in the mean over stages."""
    return above(f"lost by {arm} > {LEAST_LOSS:g}", setting.lost(arm), LEAST_LOSS)


def forgot_at(setting: Setting, arm: str, stage: int) -> Part:
    """Claim that one stage takes more than `LEAST_LOSS` from an arm, whatever was lost before."""
    what = f"lost by {arm} at stage {stage} > {LEAST_LOSS:g}"
    return above(what, added_loss(setting, arm, stage), LEAST_LOSS)


def added_loss(setting: Setting, arm: str, stage: int) -> Effect | None:
    """Return what a stage adds to an arm's loss."""
    after = setting.lost(arm, stage)
    return after if stage == 1 else minus(after, setting.lost(arm, stage - 1))


def tracks(what: str, rho: float | None) -> Part:
    """Claim a rank correlation of at least `LEAST_RHO`; `NO_RHO` and less is none."""
    if rho is None:
        return Part(what=what, figure=None, holds=None)
    holds = True if rho >= LEAST_RHO else False if rho <= NO_RHO else None
    figure = Interval(mean=rho, low=rho, high=rho, seeds=())
    return Part(what=f"{what} ≥ {LEAST_RHO:g}", figure=figure, holds=holds)


def on_frontier(
    results: Sequence[StageResult], seeds: Sequence[int], arm: str, share: float
) -> tuple[Part, ...]:
    """Claim that where an arm learns a share of the reference's best, it loses `SHARE_LOST` of it.

    Args:
        results: of runs at several rates.
        seeds: of them; each gives one value, between rates in a straight line.
        arm: whose.
        share: of the reference's best learning, one of `tables.SHARES`.

    Returns:
        The premise that the reference loses `LEAST_LOSS` there, and the part; one that can't be
        told where not every seed reaches the share.
    """
    wide: list[float | None] = []
    narrow: list[float | None] = []
    for seed in seeds:
        points = frontier(results, "default", seed)
        found = matched(points, REFERENCE) if REFERENCE in points else {}
        wide.append(found.get(REFERENCE, {}).get(share))
        narrow.append(found.get(arm, {}).get(share))
    pairs = [(w, n) for w, n in zip(wide, narrow, strict=True) if w is not None and n is not None]
    if len(pairs) < len(narrow) or not pairs:
        # Whether enough is learned is judged elsewhere; without it, nothing is lost at it either.
        number = sum(n is not None for n in narrow)
        reached = "not reached" if not number else f"reached by {number} of {len(narrow)} seeds"
        what = f"{share:.0%} of {REFERENCE}'s learning by {arm}: {reached}"
        return (Part(what=what, figure=None, holds=None),)
    lost = over_seeds([w for w, _ in pairs])
    premise = judged(f"lost by {REFERENCE} there > {LEAST_LOSS:g}", lost, LEAST_LOSS)
    rest = over_seeds([SHARE_LOST * w - n for w, n in pairs])
    part = judged(f"{SHARE_LOST:g} of that, less what {arm} loses there > 0", rest, 0)
    return given(premise, part)
