"""`narrowtune judge`: a verdict as an exit code, of a run or of any two models' scored items."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from narrowtune.cli.flags import AsJson, option
from narrowtune.cli.printing import open_console


def judge(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN | BEFORE AFTER",
            help="A run's folder; or two folders with the same scored items of two models.",
        ),
    ],
    skill: Annotated[
        list[str] | None,
        option("NAME", "Of BEFORE and AFTER: a task that was taught; may be repeated."),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(metavar="POINTS", min=0, help="Accepted mean loss; 1 unless given."),
    ] = None,
    budget_task: Annotated[
        float | None, typer.Option(metavar="POINTS", min=0, help="Accepted loss of any task.")
    ] = None,
    min_learning: Annotated[
        float | None, option("POINTS", "Least learning, where a skill is named.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say whether a model may ship, and leave with 0 (ship), 3 (over budget) or 4 (not enough).

    With one folder, what that run of `teach` decided. With two, what `evaluate`, or any scorer of
    your own, found for two models: one file NAME.jsonl per task in each, with lines such as
    {"id": "invoice-17", "score": 1}. Without --skill every task counts as kept: name the one that
    was taught, or what it gained hides what others lost.
    """
    from narrowtune.core.errors import UsageError
    from narrowtune.core.results import EXIT_CODES
    from narrowtune.pipeline.judge import Judgement
    from narrowtune.pipeline.judge import judge as decide
    from narrowtune.report.terminal import judgement_lines

    given = {
        "--skill": skill,
        "--budget": budget,
        "--budget-task": budget_task,
        "--min-learning": min_learning,
    }
    flags = [name for name, value in given.items() if value is not None]
    if len(folders) == 1:
        from narrowtune.report.folder import read_record

        record = read_record(folders[0])
        if flags:
            taught = next((task.name for task in record.tasks if task.role == "target"), None)
            anew = ["judge", str(folders[0] / "before"), str(folders[0] / "after")]
            anew += ["--skill", taught] if taught is not None else []
            raise UsageError(
                asked=f"the verdict of {folders[0]} with {', '.join(flags)}",
                found="one folder: a run, which has its verdict",
                do=f"leave that out; or judge anew: narrowtune {shlex.join(anew)}, with what else "
                "you ask for",
            )
        if record.verdict is None:
            raise UsageError(
                asked=f"the verdict of {folders[0]}",
                found="a run that was not held against a budget",
                do="teach with a skill and with keep sets",
            )
        found = Judgement(tasks=record.tasks, verdict=record.verdict)
    elif len(folders) == 2:
        from narrowtune.core.config import RunConfig

        found = decide(
            *folders,
            skills=skill or [],
            budget=RunConfig.model_fields["budget"].default if budget is None else budget,
            budget_task=budget_task,
            min_learning=min_learning or 0.0,
        )
    else:
        raise UsageError(
            asked=f"a verdict on {len(folders)} folders",
            found="more than before and after",
            do="give one run, or two folders of scored items",
        )
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        console = open_console()
        for line in judgement_lines(found.verdict, found.tasks):
            console.print(line)
    raise typer.Exit(EXIT_CODES[found.verdict.outcome])
