"""Results as tables for the terminal: the end of a run, and what single commands found.

Foreign text is never read as rich markup. Colours are rich styles, which a console leaves out
where its output is no terminal; words and marks say the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from narrowtune.core.delta_results import DeltaInfo, Kept
from narrowtune.core.numbers import interval, loss_range, moved, number, signed
from narrowtune.core.results import DriftResult, RunRecord, TaskChange, TaskResult, Verdict
from narrowtune.report.advice import pareto_front
from narrowtune.report.charts import drift_bars, token_groups, training_seconds
from narrowtune.report.sections import Fact, delta_facts
from narrowtune.report.text import count, duration, p_value, percent, small, visible
from narrowtune.report.verdict import (
    MARKS,
    TITLES,
    TONES,
    Tone,
    dial_sentence,
    headline,
    points,
)

STYLES: dict[Tone, str] = {"good": "bold green", "bad": "bold red", "unsure": "bold yellow"}


def summary_lines(record: RunRecord) -> list[RenderableType]:
    """Return what a person reads at the end of a run, for `rich.console.Console.print`."""
    head = headline(record)
    lines: list[RenderableType] = [
        Text(f"{head.mark} {head.title}", style=STYLES[head.tone]),
        Text(visible(head.meaning)),
    ]
    if record.tasks:
        lines.append(change_table(record.tasks))
    if record.dial is not None:
        lines.append(Text(dial_sentence(record.dial)))
    if record.verdict is not None and record.verdict.forgetting is not None:
        loss = record.verdict.forgetting
        lines.append(
            Text(
                f"Held-out tasks {moved(loss.value)} on average "
                f"(95 %: {loss_range(loss.value, loss.low, loss.high)}), "
                f"budget {points(record.verdict.budget)} lost"
            )
        )
    lines.append(Text.assemble(("Next: ", "bold"), visible(head.next_step)))
    lines.extend(Text(f"Note: {visible(note)}", style="dim") for note in record.notes)
    return lines


def judgement_lines(verdict: Verdict, tasks: Sequence[TaskChange]) -> list[RenderableType]:
    """Return a verdict and what it was read from, for `rich.console.Console.print`."""
    tone = TONES[verdict.outcome]
    head = Text(f"{MARKS[tone]} {TITLES[verdict.outcome]}", style=STYLES[tone])
    return [head, change_table(tasks), *(Text(visible(reason)) for reason in verdict.reasons)]


def table(*names: str, texts: int = 1) -> Table:
    """A plain table whose first `texts` columns hold text and the others numbers."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for place, name in enumerate(names):
        if place < texts:
            made.add_column(name, overflow="fold")
        else:
            made.add_column(name, justify="right", no_wrap=True)
    return made


def cell(text: str, style: str = "") -> Text:
    """Foreign text as one line."""
    return Text(visible(text).replace("\n", " ⏎ "), style=style)


def fact_table(facts: Sequence[Fact]) -> Table:
    """Names and values, without a head."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for fact in facts:
        made.add_row(cell(fact.name), cell(fact.value))
    return made


def change_table(tasks: Sequence[TaskChange]) -> Table:
    """Tasks before and after, skills first; p of the sign test (McNemar's)."""
    made = table("task", "", "before", "after", "change", "95 %", "n", "p", texts=2)
    for task in sorted(tasks, key=lambda task: task.role != "target"):
        lost, gained = task.change.high < 0, task.change.low > 0
        made.add_row(
            cell(task.name),
            "skill" if task.role == "target" else "kept",
            percent(task.before.mean),
            percent(task.after.mean),
            Text(signed(task.change.value), style="red" if lost else "green" if gained else ""),
            interval(task.change),
            f"{task.num_items:,}",
            p_value(task),
        )
    return made


def comparison_table(records: Sequence[RunRecord]) -> Table:
    """Runs side by side: what each learned, lost and cost, and whether it is on the front."""
    made = table("run", "verdict", "skill", "held-out", "at worst", "KL", "time", "front", texts=2)
    front = pareto_front(records)
    for place, record in enumerate(records):
        head, verdict = headline(record), record.verdict
        learned = verdict.learning if verdict else None
        lost = verdict.forgetting if verdict else None
        made.add_row(
            cell(record.name),
            Text(f"{head.mark} {head.title}", style=STYLES[head.tone]),
            signed(learned.value) if learned else "–",
            signed(-lost.value) if lost else "–",
            signed(-lost.upper_bound) if lost else "–",
            small(record.drift.kl_base_tuned) if record.drift else "–",
            duration(training_seconds(record)),
            "yes" if place in front else "",
        )
    return made


def task_table(results: Sequence[TaskResult]) -> Table:
    """Tasks evaluated once: strict and lenient score with standard error, valid form, n, ties."""
    made = table("task", "metric", "strict", "lenient", "valid form", "n", "ties", texts=2)
    for result in results:
        made.add_row(
            cell(result.name),
            cell(result.metric),
            f"{percent(result.strict.mean)} ± {number(100 * result.strict.stderr)}",
            f"{percent(result.lenient.mean)} ± {number(100 * result.lenient.stderr)}",
            percent(result.valid_format),
            f"{result.num_items:,}",
            f"{result.num_ties:,}",
        )
    return made


def drift_table(drift: DriftResult) -> Group:
    """How far the output distribution moved: all prompts, by source, and by token group."""
    kl = f"{small(drift.kl_base_tuned)} ± {small(drift.kl_stderr)}"
    parts: list[RenderableType] = [
        fact_table(
            [
                Fact("KL(base‖tuned), nats per token", kl),
                Fact("same top-1 token", percent(drift.top1_agreement)),
                Fact("prompts / tokens", f"{drift.num_prompts:,} / {drift.num_tokens:,}"),
            ]
        )
    ]
    if drift.tasks:
        by_source = table("source", "KL", "same top-1", "prompts / tokens")
        for name, _, nats, agreement, amount in drift_bars(drift):
            by_source.add_row(cell(name), nats, agreement, amount)
        parts.extend(["", by_source])
    if drift.token_groups:
        groups = table("probability on", "of", "base", "tuned", texts=2)
        for group in token_groups(drift):
            groups.add_row(cell(group.name), group.detail, group.base_label, group.tuned_label)
        parts.extend(["", groups])
    return Group(*parts)


def kept_facts(kept: Kept) -> list[Fact]:
    """What an adapter keeps of a delta."""
    name, lowest = min(kept.by_tensor.items(), key=lambda item: item[1])
    needed = ", ".join(
        f"{share}: {'more than was looked at' if rank is None else rank}"
        for share, rank in kept.needed.items()
    )
    facts = [
        Fact("rank", count(kept.rank)),
        Fact("kept of the delta's squared values", percent(kept.energy)),
        Fact("least of one matrix", f"{percent(lowest)} ({name})"),
        Fact("rank that would keep", needed),
    ]
    if kept.left_out:
        share = small(100 * sum(kept.left_out.values()))
        names = ", ".join(list(kept.left_out)[:3]) + ", …" * (len(kept.left_out) > 3)
        facts.append(
            Fact("left out", f"{len(kept.left_out)} tensors, {share} % of the squares: {names}")
        )
    return facts


def delta_table(delta: DeltaInfo) -> Table:
    """A delta file, described."""
    return fact_table(delta_facts(delta))
