"""What is found about deltas: a file, a place on the way to one, an adapter near one."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from narrowtune.core.values import Estimate, Value


class DeltaInfo(Value):
    """A delta file, described.

    In records of before they were kept, `family` is empty and `dense_bytes`, the size of the bits
    when they are not packed, is 0.
    """

    path: str
    num_tensors: int
    num_parameters: int
    num_changed: int
    file_bytes: int
    dense_bytes: int = 0
    dtype: str
    base_fingerprint: str
    tuned_fingerprint: str
    recipe: str
    family: str = ""
    notes: list[str] = Field(default_factory=list)


class Kept(Value):
    """What an adapter keeps of a delta.

    Attributes:
        rank: of every matrix.
        energy: share of the delta's squared values that the adapter holds, 0 to 1, tensors without
            an adapter counted as lost.
        by_tensor: the same of each matrix, by name in memory.
        left_out: tensors of the delta that are no matrix, with their share of the squared values.
        needed: smallest rank that keeps "90 %" and "99 %" of the matrices' squares; None where
            more is needed than was looked at.
    """

    rank: int
    energy: float
    by_tensor: dict[str, float]
    left_out: dict[str, float]
    needed: dict[str, int | None]


DialWay = Literal["linear", "largest"]
"""The way from the base to the trained weights: all elements together, or those that moved furthest
first."""


class DialStep(Value):
    """One place between the base and the trained weights.

    Attributes:
        alpha: 0 is the base, 1 all that was trained; between, as the dial's way has it.
        learning: change of the skill's score, percentage points.
        forgetting: mean loss over the keep items that are looked at, percentage points.
        expected: what the other keep items can be expected to show as the upper bound of that
            loss, with four chances in five.
        stopped_by: what could not be expected to be kept here, the mean or a task by its name;
            empty where both budgets were.
        after_decision: looked at when α had been taken and confirmed, to draw the whole curve.
    """

    alpha: float
    learning: Estimate | None
    forgetting: Estimate
    expected: float
    stopped_by: str = ""
    after_decision: bool = False

    @property
    def within(self) -> bool:
        """Whether the dial may go on from here."""
        return not self.stopped_by


class DialResult(Value):
    """How far a budget allowed to go.

    Attributes:
        alpha: the last step before the first at which a budget could not be expected to be kept.
        steps: those that were tried, in order, and those that were looked at afterwards.
        num_items: keep items that they were tried on, over all tasks.
        num_confirming: the other keep items, which the verdict is of.
        way: on which α lies.
    """

    alpha: float
    steps: list[DialStep]
    num_items: int
    num_confirming: int
    way: DialWay = "linear"

    @property
    def walked(self) -> list[DialStep]:
        """The steps that α was found by."""
        return [step for step in self.steps if not step.after_decision]

    @property
    def beyond(self) -> list[DialStep]:
        """The steps that were looked at when α had been found and confirmed."""
        return [step for step in self.steps if step.after_decision]

    @property
    def symbol(self) -> str:
        """What α is called on the dial's way."""
        return "α" if self.way == "linear" else "density"

    @property
    def place(self) -> str:
        """How far it went, for people."""
        if self.way == "linear":
            return f"{self.alpha:g} of what was trained"
        return f"the {100 * self.alpha:g} % of elements that moved furthest"
