"""Tables of a study's probes: what answers lean to, and what comes back in the right form.

Owns: which of the probes' numbers a person reads. Every seed has a row of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from narrowtune.core.numbers import number
from narrowtune.report.terminal import cell, table
from narrowtune.report.text import percent, small
from narrowtune.study.forms import form_loss
from narrowtune.study.results import ChainKey, StageResult, base_of, by_chain


def probe_tables(results: Sequence[StageResult], order: str) -> list[Table]:
    """Return the tables that an order's results have numbers for."""
    chains = by_chain(results)
    keys = [key for key in chains if key.order == order]
    keys.sort(key=lambda key: (key.arm, key.learning_rate, key.seed))
    stages = [chains[key] for key in keys]
    made = [
        _token_table([found[0] for found in stages], order),
        _form_table(base_of(results), [stage for found in stages for stage in found], order),
    ]
    return [found for found in made if found.row_count]


def _token_table(stages: Sequence[StageResult], order: str) -> Table:
    """Probability mass of each group of tokens on the models' own answers, base → tuned."""
    shown = [stage for stage in stages if stage.drift is not None and stage.drift.token_groups]
    names = list(dict.fromkeys(g.name for s in shown if s.drift for g in s.drift.token_groups))
    made = table("arm", "rate", "seed", *(name.replace("_", " ") for name in names), texts=1)
    made.title = f"token mass on free prompts after the first skill, order {order}"
    made.title_justify = "left"
    for stage in shown:
        assert stage.drift is not None
        groups = {group.name: group for group in stage.drift.token_groups}
        masses = (
            f"{small(groups[name].base_mass)} → {small(groups[name].tuned_mass)}"
            if name in groups
            else "–"
            for name in names
        )
        made.add_row(*_chain_cells(stage.chain), *masses)
    return made


def _form_table(base: StageResult, stages: Sequence[StageResult], order: str) -> Table:
    """Held-out loss of free and of constrained answers after each stage."""
    made = table("arm", "rate", "seed", "after", "lost, free", "constrained", "returns", texts=1)
    made.title = f"points lost on held-out tasks, answers free or in the right form, order {order}"
    made.title_justify = "left"
    for stage in stages:
        lost = form_loss(base, stage)
        if lost is not None:
            share = "–" if lost.returned is None else percent(lost.returned, 0)
            figures = (number(lost.free), number(lost.constrained), share)
            made.add_row(*_chain_cells(stage.chain), cell(stage.skill), *figures)
    return made


def _chain_cells(key: ChainKey) -> tuple[Text, str, str]:
    return cell(key.arm), f"{key.learning_rate:g}", str(key.seed)
