"""The miniature study's summary as a page of Markdown: claims first, then every figure.

Owns: the order and the layout; all numbers are those of `summary.Summary`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from narrowtune.core.numbers import number, signed
from narrowtune.study.choices import Choices
from narrowtune.study.correlations import Correlation
from narrowtune.study.effects import Interval
from narrowtune.study.presets import CHAIN_SHARE, REFERENCE
from narrowtune.study.rules import Claim
from narrowtune.study.summary import ArmFigures, Matched, Summary
from narrowtune.study.tables import SHARES

_HOLDS = {True: "holds", False: "fails", None: "untold"}


def summary_page(summary: Summary, choices: Mapping[str, Choices]) -> str:
    """Return the page."""
    runs = ", ".join(
        f"{name} {count}"
        + ("" if count >= summary.planned[name] else f" of {summary.planned[name]}")
        for name, count in summary.phases.items()
    )
    parts = [
        f"# {summary.preset}\n\nStages run: {runs} (a phase counts those that it took over from an "
        "earlier one). Points of accuracy unless said otherwise; means over seeds with 95 % t "
        "intervals over seeds and items, then every seed. Of one seed the interval is of items "
        "alone, and decides nothing. Rules and formulas: "
        "docs/decisions/0012-the-protocol-of-the-miniature-study.md.\n",
        "## Claims\n",
        _table(
            ("claim", "verdict", "what the paper says"),
            ((claim.number, claim.verdict, claim.text) for claim in summary.claims),
        ),
        *(_claim(claim) for claim in summary.claims),
        *(_setting(name, arms, summary) for name, arms in summary.settings.items()),
        *(_matched(name, arms) for name, arms in summary.matched.items()),
        *(_correlations(name, found) for name, found in summary.correlations.items()),
        *(_choices(name, made) for name, made in choices.items()),
    ]
    return "\n".join(parts)


def _claim(claim: Claim) -> str:
    rows = [
        (
            reading.setting if place == 0 else "",
            reading.verdict if place == 0 else "",
            part.what,
            _interval(part.figure, part.digits),
            _HOLDS[part.holds],
        )
        for reading in claim.readings
        for place, part in enumerate(reading.parts)
    ]
    head = f"\n### {claim.number}: {claim.verdict}\n\n{claim.text} Rule: {claim.rule}.\n"
    if not rows:
        return f"{head}\nNothing was run that bears on it.\n"
    return f"{head}\n" + _table(("setting", "reads", "part", "figure", ""), rows)


def _setting(name: str, arms: Sequence[ArmFigures], summary: Summary) -> str:
    text = f"\n## {name}\n\n" + _table(
        ("arm", "rate", "learned", "held-out lost, mean over stages", "after the last"),
        (
            (
                arm.arm,
                f"{arm.rate:g}",
                _interval(arm.learned),
                _interval(arm.lost),
                _interval(arm.last),
            )
            for arm in arms
        ),
    )
    reasons = summary.left_out.get(name, {})
    if reasons:
        said = "; ".join(f"{arm} ({reason})" for arm, reason in reasons.items())
        text += f"\nClaims are not read here from: {said}.\n"
    if not any(recovery for arm in arms for recovery in arm.recovery):
        return text
    return (
        text
        + "\nPoints regained at each stage after the first, by seed; in brackets the share of the "
        "loss before, where that was over 2 points.\n\n"
        + _table(
            ("arm", "left of learning at the end, by seed", "regained"),
            ((arm.arm, ", ".join(map(signed, arm.kept_skills)), _recovery(arm)) for arm in arms),
        )
    )


def _recovery(arm: ArmFigures) -> str:
    return "; ".join(
        ", ".join(
            signed(points) + (f" ({number(100 * share, 0)} %)" if share is not None else "")
            for points, share in zip(recovery, shares, strict=True)
        )
        for recovery, shares in zip(arm.recovery, arm.shares, strict=True)
    )


def _matched(name: str, arms: Sequence[Matched]) -> str:
    if not arms:
        return f"\n## {name}: {REFERENCE} was not run yet\n"
    shares = [f"{share:.0%}" for share in SHARES]
    (reference,) = (arm for arm in arms if arm.arm == REFERENCE)
    best = ", ".join(map(number, reference.best))
    return (
        f"\n## {name}: held-out lost at a share of {REFERENCE}'s best learning\n\n{REFERENCE} "
        f"learned {best} points at its best rate, by seed. Between the rates that were run, in a "
        "straight line; not reached is: not at these rates.\n\n"
        + _table(
            ("arm", "rates", *shares),
            (
                (arm.arm, str(max(arm.num_rates)), *(_at(arm, share) for share in SHARES))
                for arm in arms
            ),
        )
    )


def _at(arm: Matched, share: float) -> str:
    mean = arm.means[share]
    if mean is not None and len(mean.seeds) > 1:
        return _interval(mean)
    values = arm.lost[share]
    return ", ".join("not reached" if value is None else number(value) for value in values)


def _correlations(name: str, found: Sequence[Correlation]) -> str:
    text = f"\n## Rank correlation with the held-out loss: {name}\n\n"
    text += _table(
        ("measure", "stages", "over all", "within a rate, median", "lowest with an arm left out"),
        (
            (c.measure, str(c.stages), *map(_rho, (c.overall, c.within_median, c.lowest_without)))
            for c in found
        ),
    )
    for correlation in found:
        within = ", ".join(f"{rate:g}: {_rho(r)}" for rate, r in correlation.within.items())
        without = ", ".join(f"{arm}: {_rho(r)}" for arm, r in correlation.without.items())
        text += f"\n{correlation.measure}, within each rate: {within or 'too few arms'}.\n"
        text += f"\n{correlation.measure}, with an arm left out: {without or 'too few stages'}.\n"
    return text


def _choices(name: str, made: Choices) -> str:
    return (
        f"\n## Rates chosen: {name}\n\nOn {made.made_on}, from {made.made_from}; the base has "
        f"{number(made.base)} %. Skills in a row are taught at the rate near {CHAIN_SHARE:.0%}.\n\n"
        + _table(
            ("arm", "rate: validation accuracy", "best", "near 50, 75, 90 %", "one rate"),
            (
                (
                    arm,
                    ", ".join(f"{rate:g}: {number(v)}" for rate, v in choice.tried.items()),
                    f"{choice.best:g}" + (" (at the edge)" if choice.at_edge else ""),
                    ", ".join(f"{rate:g}" for rate in choice.near.values()),
                    f"{choice.paper:g}",
                )
                for arm, choice in made.arms.items()
            ),
        )
    )


def _interval(figure: Interval | None, digits: int = 1) -> str:
    if figure is None:
        return "no runs"
    seeds = ", ".join(signed(seed, digits) for seed in figure.seeds)
    if figure.low is None or figure.high is None:
        return f"{signed(figure.mean, digits)} (no interval): {seeds}"
    if figure.low == figure.high and not seeds:
        return signed(figure.mean, 2)
    mean, low, high = (signed(end, digits) for end in (figure.mean, figure.low, figure.high))
    return f"{mean} ({low} to {high}): {seeds}"


def _rho(value: float | None) -> str:
    return "none" if value is None else signed(value, 2)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)
