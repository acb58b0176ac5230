"""A ledger on the terminal: every skill and kept task after every stage."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from narrowtune.core.ledger import Ledger, view
from narrowtune.core.numbers import signed
from narrowtune.report.terminal import cell, table
from narrowtune.report.text import percent, visible


def render_ledger(ledger: Ledger) -> Group:
    """Return the matrix of scores, what was learned and lost, and what the states are."""
    found = view(ledger)
    matrix = table("after", *found.tasks)
    for state, scores in zip(found.states, found.matrix, strict=True):
        matrix.add_row(cell(state), *["–" if score is None else percent(score) for score in scores])
    parts: list[RenderableType] = [
        Text(visible(f"{ledger.model}, {len(ledger.skills)} skills")),
        "",
        matrix,
    ]
    if ledger.skills:
        stages = table("skill", "recipe", "learned", "held-out", "regained", "state", texts=2)
        recovery = [None, *found.recovery]
        for entry, lost, regained in zip(ledger.skills, found.held_out, recovery, strict=True):
            stages.add_row(
                cell(entry.name),
                cell(entry.recipe),
                signed(found.learning[entry.name]),
                "–" if lost is None else signed(-lost),
                "–" if regained is None else signed(regained),
                entry.tuned_fingerprint[:12],
            )
        parts += ["", stages]
    if found.target_forgetting is not None:
        lost = found.target_forgetting
        parts += ["", f"Earlier skills moved by {signed(-lost)} points on average since their own."]
    for entry in ledger.skills:
        if entry.without:
            names = ", ".join(entry.without)
            said = f"{entry.name} was taught on top of {names}, taken out since: scored with it."
            parts.append(Text(visible(said), style="dim"))
    if ledger.undone:
        names = ", ".join(entry.name for entry in ledger.undone)
        parts.append(Text(visible(f"Undone, still on the disk: {names}"), style="dim"))
    return Group(*parts)
