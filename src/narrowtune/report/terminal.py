"""The end of a run on the terminal: the verdict and one table."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from narrowtune.core.results import RunRecord
from narrowtune.report.text import interval, number, percent, signed, visible
from narrowtune.report.verdict import Tone, headline, points

STYLES: dict[Tone, str] = {"good": "bold green", "bad": "bold red", "unsure": "bold yellow"}


def summary_lines(record: RunRecord) -> list[RenderableType]:
    """Return what a person reads at the end of a run, for `rich.console.Console.print`.

    Foreign text is never read as markup. Colours are rich styles, which a console leaves out
    where its output is no terminal; words and marks say the same.
    """
    head = headline(record)
    lines: list[RenderableType] = [
        Text(f"{head.mark} {head.title}", style=STYLES[head.tone]),
        Text(visible(head.meaning)),
    ]
    if record.tasks:
        lines.append(_task_table(record))
    if record.verdict is not None and record.verdict.forgetting is not None:
        loss = record.verdict.forgetting
        lines.append(
            Text(
                f"Mean held-out loss {number(loss.value)} points ({interval(loss)}), "
                f"budget {points(record.verdict.budget)}"
            )
        )
    lines.append(Text.assemble(("Next: ", "bold"), visible(head.next_step)))
    lines.extend(Text(f"Note: {visible(note)}", style="dim") for note in record.notes)
    return lines


def summary(record: RunRecord) -> Group:
    """The same as one renderable."""
    return Group(*summary_lines(record))


def _task_table(record: RunRecord) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("task", overflow="fold")
    table.add_column("", no_wrap=True)
    for name in ("before", "after", "change", "95 %", "n"):
        table.add_column(name, justify="right", no_wrap=True)
    for task in sorted(record.tasks, key=lambda task: task.role != "target"):
        lost, gained = task.change.high < 0, task.change.low > 0
        table.add_row(
            Text(visible(task.name).replace("\n", " ")),
            "skill" if task.role == "target" else "kept",
            percent(task.before.mean),
            percent(task.after.mean),
            Text(signed(task.change.value), style="red" if lost else "green" if gained else ""),
            interval(task.change, sign=True),
            f"{task.num_items:,}",
        )
    return table
