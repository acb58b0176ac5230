"""What every result is made of."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Value(BaseModel):
    """Base of all result values: immutable, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class Estimate(Value):
    """A number with its interval.

    Attributes:
        value: the point estimate.
        low: lower end of the two-sided 95 % interval.
        high: upper end of it.
        lower_bound: one-sided 95 % lower bound.
        upper_bound: one-sided 95 % upper bound.
        method: how the interval was made, for the reader.
    """

    value: float
    low: float
    high: float
    lower_bound: float
    upper_bound: float
    method: str


class SignTest(Value):
    """Did as many get worse as better? Exact McNemar where items stand alone, right or wrong.

    Attributes:
        num_worse: clusters whose items lost more than they gained.
        num_better: clusters whose items gained more.
        p_value: two-sided and exact, for one task by itself; 1 where nothing changed.
        clustered: whether a cluster has several items.
    """

    num_worse: int
    num_better: int
    p_value: float
    clustered: bool
