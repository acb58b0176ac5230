"""The true minus, and one rule for what is lost and gained."""

from __future__ import annotations

import math

import pytest

from narrowtune.core import numbers
from narrowtune.core.results import Estimate


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (numbers.number(-0.04), "0.0"),
        (numbers.number(-1234.56), "−1,234.6"),
        (numbers.number(math.inf), "∞"),
        (numbers.number(math.nan), "not a number"),
        (numbers.signed(0.04), "0.0"),
        (numbers.signed(3.14), "+3.1"),
        (numbers.signed(-3.14), "−3.1"),
        (numbers.moved(4.24), "lost 4.2 points"),
        (numbers.moved(-8.333, 2), "gained 8.33 points"),
        (numbers.moved(-0.04), "changed by 0.0 points"),
        (numbers.loss_range(4.2, 1.1, 7.6), "1.1 to 7.6"),
        (numbers.loss_range(4.2, -2.0, 9.1), "2.0 gained to 9.1 lost"),
        (numbers.loss_range(-8.3, -31.3, 13.5), "13.5 lost to 31.3 gained"),
        (numbers.loss_range(-8.3, -9.0, -2.0), "2.0 to 9.0"),
        (numbers.loss_range(0.0, 0.0, 0.0), "0.0 to 0.0"),
        (numbers.loss_range(math.inf, 1.0, math.inf), "1.0 to ∞"),
        (numbers.worst_case(3.2), "at most 3.2 lost"),
        (numbers.worst_case(-1.0), "at least 1.0 gained"),
        (numbers.best_case(3.2), "at least 3.2 lost"),
        (numbers.best_case(-1.0), "at most 1.0 gained"),
        (numbers.digits_beside(1.0, 0.3, 4.2), 1),
        (numbers.digits_beside(0.28, 0.26), 2),
        (numbers.digits_beside(1.0, -3.0, 1.04), 2),
        (numbers.digits_beside(0.25, 0.25), 1),
        (numbers.digits_beside(1.0, math.inf), 1),
        (numbers.rounded_up(1.9), 1.9),
        (numbers.rounded_up(0.07), 0.07),
        (numbers.rounded_up(0.0412), 0.05),
    ],
)
def test_numbers(shown, expected):
    assert shown == expected


def test_the_interval_of_a_change_has_its_signs():
    change = Estimate(value=1, low=-2, high=4, lower_bound=-1, upper_bound=3, method="")
    assert numbers.interval(change) == "−2.0 to +4.0"
