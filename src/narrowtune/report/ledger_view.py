"""A ledger on the terminal: every skill and kept task after every stage."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from narrowtune.core.ledger import Ledger, view
from narrowtune.core.numbers import number, signed
from narrowtune.report.terminal import cell, table
from narrowtune.report.text import visible


def render_ledger(ledger: Ledger) -> Group:
    """Return the matrix of scores, what was learned and lost, and what the states are."""
    found = view(ledger)
    # States are numbered: names of many skills would not fit beside each other.
    matrix = table("score, %", *(str(place) for place in range(len(found.states))))
    for task, scores in zip(found.tasks, zip(*found.matrix, strict=True), strict=True):
        shown = ["–" if score is None else number(100 * score) for score in scores]
        matrix.add_row(cell(task), *shown)
    parts: list[RenderableType] = [
        Text(visible(f"{ledger.model}, {len(ledger.skills)} skills; 0 is the base")),
    ]
    if found.tasks:
        parts += ["", matrix]
    if ledger.skills:
        stages = table("", "skill", "recipe", "learned", "held-out", "regained", "state", texts=3)
        rows = zip(ledger.skills, found.held_out, [None, *found.recovery], strict=True)
        for place, (entry, lost, regained) in enumerate(rows, 1):
            learned = found.learning[entry.name]
            stages.add_row(
                str(place),
                cell(entry.name),
                cell(entry.recipe),
                "–" if learned is None else signed(learned),
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
            said = (
                f"{entry.name} was taught on top of {names}, taken out since: nobody has scored "
                "what is left."
            )
            parts.append(Text(visible(said), style="dim"))
    if ledger.undone:
        names = ", ".join(entry.name for entry in ledger.undone)
        parts.append(Text(visible(f"Undone, still on the disk: {names}"), style="dim"))
    return Group(*parts)
