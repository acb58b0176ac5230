"""A study on the terminal: a line per stage as it comes, and tables at the end.

Owns: which of a study's numbers a person reads first. Every seed has a row of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from narrowtune.core.numbers import number, signed
from narrowtune.report.terminal import cell, table
from narrowtune.report.text import percent, small
from narrowtune.study.results import BASE, StageResult, base_of, by_chain
from narrowtune.study.summary import Summary
from narrowtune.study.tables import make_point, sequences


def stage_line(result: StageResult, missing: int) -> Text:
    """Return what has just been measured, and how much is still to come."""
    scores = ", ".join(
        f"{name} {percent(task.mean)}"
        for name, task in result.tasks.items()
        if task.role == "target" or result.chain.arm == BASE
    )
    kept = [task.mean for task in result.tasks.values() if task.role == "held_out"]
    what = "base" if result.chain.arm == BASE else f"{result.chain}: {result.skill}"
    return cell(f"{what}: {scores}; kept {percent(sum(kept) / len(kept))}; {missing} to come")


def frontier_table(results: Sequence[StageResult], order: str, skill: str) -> Table:
    """Return what each arm learned of an order's first skill, and lost, at each rate and seed.

    Learning and loss are in points of test accuracy.
    """
    made = table(
        "arm", "rate", "seed", f"{skill} learned", "held-out lost", "KL", "numbers", texts=1
    )
    made.title = f"after the first skill, order {order}"
    made.title_justify = "left"
    base = base_of(results)
    chains = by_chain(results)
    for key in sorted(chains, key=lambda key: (key.arm, key.learning_rate, key.seed)):
        if key.order == order:
            point = make_point(base, chains[key][0])
            before, after = point.number_bias
            made.add_row(
                cell(key.arm),
                f"{key.learning_rate:g}",
                str(key.seed),
                signed(point.learning),
                number(point.forgetting),
                small(point.kl),
                f"{small(before)} → {small(after)}",
            )
    return made


def chain_table(results: Sequence[StageResult], order: str, skills: Sequence[str]) -> Table:
    """Return finished chains: learning, what is left of it, and the loss after each skill."""
    made = table("arm", "rate", "seed", "learned", "left at the end", *skills, texts=1)
    made.title = f"order {order}; points of held-out accuracy lost after each skill"
    made.title_justify = "left"
    found = sequences(results, order, len(skills))
    for key in sorted(found, key=lambda key: (key.arm, key.learning_rate, key.seed)):
        scores = found[key]
        made.add_row(
            cell(key.arm),
            f"{key.learning_rate:g}",
            str(key.seed),
            signed(scores.target_learning),
            signed(scores.target_overall),
            *(number(lost) for lost in scores.held_out),
        )
    return made


def claims_table(summary: Summary) -> Table:
    """Return the paper's claims with what a miniature study says of them."""
    made = table("claim", "verdict", "what the paper says", texts=3)
    for claim in summary.claims:
        made.add_row(claim.number, cell(claim.verdict), cell(claim.text))
    return made
