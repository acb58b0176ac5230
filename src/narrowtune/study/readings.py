"""One setting of the miniature study to read claims from: an arm's runs by seed.

Owns: which runs stand for an arm in a setting, and how a limit is held against an interval.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from narrowtune.core.results import Value
from narrowtune.study.effects import Effect, Interval, learned, lost, lost_in_form
from narrowtune.study.results import StageResult, base_of, by_chain

Verdict = Literal["agrees", "disagrees", "can't be told here"]
UNTOLD: Verdict = "can't be told here"


class Part(Value):
    """One figure of a claim beside its limit.

    Attributes:
        what: what is measured and what has to hold.
        figure: None where there are no runs for it.
        holds: True where the whole interval is on the claimed side of the limit, False where it is
            on the other, None in between.
        digits: of the figure, behind the point, for people.
    """

    what: str
    figure: Interval | None
    holds: bool | None
    digits: int = 1


class Reading(Value):
    """A claim in one setting.

    Attributes:
        setting: which runs.
        parts: all have to hold.
    """

    setting: str
    parts: tuple[Part, ...]

    @property
    def verdict(self) -> Verdict:
        """Disagrees if a part doesn't hold, agrees if all do."""
        if any(part.holds is False for part in self.parts):
            return "disagrees"
        if self.parts and all(part.holds for part in self.parts):
            return "agrees"
        return UNTOLD


def combined(readings: Sequence[Reading]) -> Verdict:
    """Return the verdict that some readings have and none contradicts."""
    told = {reading.verdict for reading in readings} - {UNTOLD}
    return told.pop() if len(told) == 1 else UNTOLD


def above(what: str, effect: Effect | None, limit: float) -> Part:
    """Claim that an effect is above a limit."""
    return judged(what, effect.interval() if effect is not None else None, limit)


def below(what: str, effect: Effect | None, limit: float) -> Part:
    """Claim that an effect is below a limit."""
    part = above(what, effect, limit)
    if part.figure is None or part.holds is None:
        return part
    return part.model_copy(update={"holds": not part.holds})


def judged(what: str, figure: Interval | None, limit: float, *, digits: int = 1) -> Part:
    """Hold a limit against an interval that has to be above it; one seed decides nothing."""
    holds = None
    if figure is not None and len(figure.seeds) > 1:
        if figure.low is not None and figure.low > limit:
            holds = True
        elif figure.high is not None and figure.high < limit:
            holds = False
    return Part(what=what, figure=figure, holds=holds, digits=digits)


@dataclass(frozen=True)
class Setting:
    """The runs of one setting.

    Attributes:
        name: for people.
        base: scores before any stage.
        runs: stages by arm and seed; all chains are finished.
        left_out: arm → why claims are not read from its runs.
    """

    name: str
    base: StageResult
    runs: Mapping[str, Mapping[int, Sequence[StageResult]]]
    left_out: Mapping[str, str] = field(default_factory=dict)

    def readable(self, num_seeds: int, idle: Collection[str]) -> Setting:
        """Return the runs that claims are read from; of others it is said why not.

        Args:
            num_seeds: that every arm is to have; a mean over fewer is of other seeds.
            idle: arms that learn nothing at any rate: a "best rate" of theirs is the lowest that
                was tried, and what was run at it is the base.
        """
        left_out = {}
        for arm, runs in self.runs.items():
            if len(runs) < num_seeds:
                left_out[arm] = f"{len(runs)} of {num_seeds} seeds"
            elif arm in idle:
                left_out[arm] = "learns nothing at any rate"
        kept = {arm: runs for arm, runs in self.runs.items() if arm not in left_out}
        return replace(self, runs=kept, left_out=left_out)

    def learned(self, arm: str) -> Effect | None:
        """Return what an arm learned of each skill at its own stage."""
        if arm not in self.runs:
            return None
        return Effect({seed: learned(self.base, run) for seed, run in self.runs[arm].items()})

    def lost(self, arm: str, stage: int | None = None) -> Effect | None:
        """Return the held-out loss after one stage (from 1), or the mean over all.

        None where the arm or the stage was not run.
        """
        runs = self.runs.get(arm, {})
        if not runs or (stage is not None and any(len(run) < stage for run in runs.values())):
            return None
        return Effect(
            {
                seed: lost(self.base, run if stage is None else run[stage - 1 : stage])
                for seed, run in runs.items()
            }
        )

    def lost_in_form(self, arm: str) -> Effect | None:
        """Return the loss after the last stage with answers held to the right form."""
        found = {
            seed: terms
            for seed, run in self.runs.get(arm, {}).items()
            if (terms := lost_in_form(self.base, run[-1])) is not None
        }
        return Effect(found) if found else None

    def balance(self, arm: str) -> Effect | None:
        """Return what was learned less what was lost."""
        return minus(self.learned(arm), self.lost(arm))

    def kl(self, arm: str) -> dict[int, float]:
        """Return the mean KL(base‖tuned) over stages, by seed."""
        return {
            seed: sum(stage.drift.kl_base_tuned for stage in run if stage.drift) / len(run)
            for seed, run in self.runs.get(arm, {}).items()
        }


def minus(left: Effect | None, right: Effect | None, factor: float = 1.0) -> Effect | None:
    """Return a difference; None where a side is missing."""
    return left.plus(right, -factor) if left is not None and right is not None else None


def setting_of(
    name: str,
    results: Sequence[StageResult],
    order: str,
    num_skills: int,
    rates: Mapping[str, float],
) -> Setting:
    """Return the finished chains of an order at one rate per arm.

    Args:
        name: for people.
        results: of a phase.
        order: its name.
        num_skills: how many it teaches.
        rates: by arm; others are left out.
    """
    runs: dict[str, dict[int, Sequence[StageResult]]] = {}
    for key, stages in by_chain(results).items():
        wanted = key.order == order and rates.get(key.arm) == key.learning_rate
        if wanted and len(stages) == num_skills:
            runs.setdefault(key.arm, {})[key.seed] = stages
    return Setting(name, base_of(results), runs)
