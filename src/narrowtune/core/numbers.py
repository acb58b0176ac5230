"""How numbers are written for people: the true minus, and one rule for signs.

Where a sign is shown, in a table or on an axis, it is that of a change, after − before: plus was
gained, minus was lost. Where a sentence says "lost" or "gained", the amount beside it has no sign.
"""

from __future__ import annotations

import math

from narrowtune.core.results import Estimate

MINUS = "\u2212"

_MOST_DIGITS = 15  # that a float holds


def number(value: float, digits: int = 1) -> str:
    """A number with a true minus sign; non-finite values in words."""
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "∞" if value > 0 else MINUS + "∞"
    rounded = f"{abs(value):,.{digits}f}"
    negative = value < 0 and float(rounded.replace(",", "")) != 0
    return (MINUS if negative else "") + rounded


def digits_beside(limit: float, *values: float) -> int:
    """How many digits values need to stay on their sides of a limit that is shown unrounded.

    0.26 beside a limit of 0.28 must not become 0.3.
    """
    enough = (
        digits
        for digits in range(1, _MOST_DIGITS)
        if all((round(value, digits) > limit) == (value > limit) for value in values)
    )
    return next(enough, _MOST_DIGITS)


def rounded_up(value: float) -> float:
    """The next number of two digits: a limit that is just reachable stays so as it is shown."""
    rounded = round(value, 2)
    return rounded if rounded >= value else round(rounded + 0.01, 2)


def signed(value: float, digits: int = 1) -> str:
    """A number that always shows its direction; zero has none."""
    text = number(value, digits)
    return f"+{text}" if value > 0 and text.strip("0.") else text


def interval(estimate: Estimate, digits: int = 1) -> str:
    """The two-sided interval of a change, "−0.1 to +0.9"."""
    return f"{signed(estimate.low, digits)} to {signed(estimate.high, digits)}"


def moved(loss: float, digits: int = 1) -> str:
    """A loss as a verb and an amount: "lost 4.2 points", "changed by 0.0 points"."""
    if not number(loss, digits).strip("0."):
        return f"changed by {number(0.0, digits)} points"
    return f"{_verb(loss, digits)} {number(abs(loss), digits)} points"


def loss_range(loss: float, low: float, high: float, digits: int = 1) -> str:
    """The ends of a loss, in the direction of its value: "1.1 to 7.6", "2.0 gained to 9.1 lost"."""
    gain = _verb(loss, digits) == "gained"
    ends = (high, low) if gain else (low, high)
    amounts = [number(abs(end), digits) for end in ends]
    if (high <= 0) if gain else (low >= 0):
        return " to ".join(amounts)
    verbs = [_verb(end, digits) for end in ends]
    return " to ".join(f"{amount} {verb}" for amount, verb in zip(amounts, verbs, strict=True))


def worst_case(upper_bound: float, digits: int = 1) -> str:
    """The upper bound of a loss: "at most 3.2 lost", or "at least 1.0 gained"."""
    verb = _verb(upper_bound, digits)
    word = "at least" if verb == "gained" else "at most"
    return f"{word} {number(abs(upper_bound), digits)} {verb}"


def best_case(lower_bound: float, digits: int = 1) -> str:
    """The lower bound of a loss: "at least 1.2 lost", or "at most 3.0 gained"."""
    verb = _verb(lower_bound, digits)
    word = "at most" if verb == "gained" else "at least"
    return f"{word} {number(abs(lower_bound), digits)} {verb}"


def _verb(loss: float, digits: int) -> str:
    """The word beside the amount of a loss that is shown with so many digits."""
    return "gained" if number(loss, digits).startswith(MINUS) else "lost"
