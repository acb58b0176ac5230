"""Rows on the terminal, as `narrowtune check` found them: counts, and what is learned of a row."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from narrowtune.core.numbers import rounded_up
from narrowtune.core.row_check import Piece, RowCheck
from narrowtune.report.sections import Fact
from narrowtune.report.terminal import cell, fact_table, table
from narrowtune.report.text import count, percent, plural, visible
from narrowtune.report.verdict import points

_LEARNED = "bold green"
_MOST_REFUSED = 20


def render_check(found: RowCheck) -> Group:
    """Everything that was found as one renderable."""
    parts: list[RenderableType] = [
        Text.assemble(
            (f"{plural(found.tokens.num_rows, 'row')} to learn from", "bold"),
            f", as {visible(found.model)} ({visible(found.family)}) will be given them",
        ),
        "",
        _source_table(found),
        "",
        _task_table(found),
        "",
        fact_table(_counts(found)),
    ]
    if found.refused:
        parts += ["", Text(f"{plural(len(found.refused), 'row')} can't be used:")]
        parts += [
            cell(f"{row.path}, row {row.row}: {row.reason}")
            for row in found.refused[:_MOST_REFUSED]
        ]
        if len(found.refused) > _MOST_REFUSED:
            parts.append(Text(f"and {len(found.refused) - _MOST_REFUSED} more (--json has all)"))
    for number, row in enumerate(found.shown, start=1):
        head = Text.assemble((f"Row {number}", "bold"), "; what is learned is in ")
        parts += ["", head.append("[[double brackets]]", style=_LEARNED), as_text(row)]
    told = [f"{data.name}: {note}" for data in found.data for note in data.notes]
    parts.extend(cell(f"Note: {note}", "dim") for note in (*told, *found.notes))
    return Group(*parts)


def as_text(row: Sequence[Piece]) -> Text:
    """Return a row whose learned parts can be told from others without colours too."""
    made = Text()
    for piece in row:
        text = "\n".join(map(visible, piece.text.split("\n")))
        made.append(f"[[{text}]]" if piece.learned else text, _LEARNED if piece.learned else "")
    return made


def _source_table(found: RowCheck) -> Table:
    made = table("source", "role", "rows", "used", "refused", "split", texts=2)
    for data in found.data:
        numbers = (data.num_rows, data.num_used, data.num_refused)
        splits = ", ".join(f"{count(number)} {name}" for name, number in data.splits.items())
        role = data.role.replace("_", " ")
        made.add_row(cell(data.name), role, *map(count, numbers), splits)
    return made


def _task_table(found: RowCheck) -> Table:
    made = table("scored before and after", "metric", "mode", "items", "worth", texts=3)
    for task in found.tasks:
        # Never more than there are.
        worth = count(int(task.effective_items))
        made.add_row(cell(task.name), task.metric, task.mode, count(task.num_items), worth)
    return made


def _counts(found: RowCheck) -> list[Fact]:
    tokens = found.tokens
    learned = percent(tokens.labelled / tokens.total)
    facts = [
        Fact("optimiser steps", count(found.num_steps)),
        Fact(
            "tokens of a row",
            f"{count(tokens.median)} (median), {count(tokens.high)} (95 in 100 have no more), "
            f"{count(tokens.longest)} at most",
        ),
        Fact(
            "tokens that are learned",
            f"{count(tokens.labelled)} of {count(tokens.total)} ({learned})",
        ),
    ]
    if tokens.num_pictured:
        said = f"in {count(tokens.num_pictured)} of {count(tokens.num_rows)} rows"
        if tokens.pictures is not None:
            said += f", {percent(tokens.pictures / tokens.total)} of all tokens"
        facts.append(Fact("pictures", said))
    facts.append(
        Fact(
            "prompts", f"{count(found.num_anchor)} of the anchor, {count(found.num_drift)} of drift"
        )
    )
    if found.smallest_budget is not None:
        facts.append(
            Fact(
                "smallest budget",
                f"{points(rounded_up(found.smallest_budget))}: losses below can't be ruled out "
                "with these keep items",
            )
        )
    return facts
