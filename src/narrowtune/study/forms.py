"""What comes back of a held-out loss where answers are held to the right form.

Owns: losses of free and of constrained answers, each against the base asked the same way. What
constraining regains was not forgotten: the model answered in another form.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from narrowtune.study.formulas import LEAST_LOSS
from narrowtune.study.results import StageResult, TaskScores


@dataclass(frozen=True)
class FormLoss:
    """A mean loss over the held-out tasks, in points.

    Attributes:
        free: of the scores as everywhere else.
        constrained: where base and tuned model choose among a task's answers.
    """

    free: float
    constrained: float

    @property
    def returned(self) -> float | None:
        """Share of the free loss that comes back; None where that was `LEAST_LOSS` or less."""
        return (self.free - self.constrained) / self.free if self.free > LEAST_LOSS else None


def form_loss(base: StageResult, stage: StageResult) -> FormLoss | None:
    """Return a stage's losses; None unless base and stage have constrained scores."""
    if not base.constrained or not stage.constrained:
        return None
    names = [name for name in base.constrained if name in stage.constrained]
    return FormLoss(
        free=_lost(base.tasks, stage.tasks, names),
        constrained=_lost(base.constrained, stage.constrained, names),
    )


def _lost(
    before: Mapping[str, TaskScores], after: Mapping[str, TaskScores], names: list[str]
) -> float:
    return 100 * math.fsum(before[name].mean - after[name].mean for name in names) / len(names)
