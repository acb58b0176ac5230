"""A verdict on two models' answers to the same items, whoever trained and scored them.

Owns: reading a folder of scored items, one file of lines per task.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, model_validator

from narrowtune.core.errors import DataError, UsageError
from narrowtune.core.results import ItemResult, Role, TaskChange, TaskResult, Value, Verdict
from narrowtune.core.run_folder import REFUSED
from narrowtune.evaluate.statistics import mean_score
from narrowtune.evaluate.verdict import compare_results, decide


class Judgement(Value):
    """Two evaluations held against a budget.

    Attributes:
        tasks: every task before and after.
        verdict: what they decide.
    """

    tasks: list[TaskChange]
    verdict: Verdict


class _Line(BaseModel):
    """A scored item as `evaluate` and `teach` write it, or as anyone's own scorer does."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    id: str = Field(min_length=1)
    strict: float = Field(ge=0, le=1, validation_alias=AliasChoices("strict", "score"))
    lenient: float = Field(ge=0, le=1)
    valid_format: bool = True
    question: str = ""
    answer: str = ""
    reference: list[str] = []
    group: str | None = None
    tie: bool = False

    @model_validator(mode="before")
    @classmethod
    def _one_score(cls, value: Any) -> Any:
        """A scorer with one reading has no lenient one."""
        if not isinstance(value, dict) or "lenient" in value:
            return value
        return {**value, "lenient": value.get("strict", value.get("score"))}


def judge(
    before: Path,
    after: Path,
    *,
    skills: Collection[str],
    budget: float,
    budget_task: float | None = None,
    min_learning: float = 0.0,
) -> Judgement:
    """Hold what changed between two folders of scored items against a budget.

    Args:
        before: folder with a file NAME.jsonl for each task: a line per item with `id` and `strict`
            (or `score`), 0 to 1, and what else `ItemResult` has.
        after: the same of the other model.
        skills: tasks that were taught; all others are to be kept. Without any, learning is not
            asked about, and all decide: what a taught task gained hides what others lost.
        budget, budget_task, min_learning: as in `evaluate.verdict.decide`.

    Raises:
        DataError: a folder or a line can't be read.
        EvaluationError: the two don't pair up, item by item.
        UsageError: a skill is none of the tasks.
    """
    tasks = [_read(folder, skills) for folder in (before, after)]
    names = [task.name for task in tasks[0]]
    strangers = sorted(set(skills) - set(names))
    if strangers:
        raise UsageError(
            asked=f"{', '.join(strangers)} as what was taught",
            found=f"the tasks {', '.join(names)} in {before}",
            do="name one of these (--skill)",
        )
    verdict = decide(
        *tasks,
        budget=budget,
        budget_task=budget_task,
        min_learning=min_learning,
        learning_asked=bool(skills),
    )
    return Judgement(tasks=compare_results(*tasks), verdict=verdict)


def _read(folder: Path, skills: Collection[str]) -> list[TaskResult]:
    if not folder.is_dir():
        raise DataError(
            asked=f"scored items in {folder}",
            found="no such folder" if not folder.exists() else "a file",
            do="give the --output of `narrowtune evaluate`, or a run's before/ and after/",
        )
    files = sorted(path for path in folder.glob("*.jsonl") if path.name != REFUSED)
    if not files:
        raise DataError(
            asked=f"scored items in {folder}",
            found="no .jsonl file",
            do="put one file per task there, a line per item with `id` and `strict`",
        )
    return [_read_task(path, "target" if path.stem in skills else "held_out") for path in files]


def _read_task(path: Path, role: Role) -> TaskResult:
    items = []
    # Only "\n" ends a line: texts may hold other marks that str.splitlines() cuts at.
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if line.strip():
            items.append(_read_item(line, f"{path}, line {number}"))
    if not items:
        raise DataError(
            asked=f"scored items from {path}",
            found="no line",
            do="score the task, or take the file away",
        )
    groups = [item.group for item in items]
    return TaskResult(
        name=path.stem,
        role=role,
        metric="as scored",
        num_items=len(items),
        num_groups=len(set(groups) - {None}) + groups.count(None),
        num_ties=sum(item.tie for item in items),
        strict=mean_score([item.strict for item in items], groups),
        lenient=mean_score([item.lenient for item in items], groups),
        valid_format=sum(item.valid_format for item in items) / len(items),
        seconds=0.0,
        items=items,
    )


def _read_item(line: str, where: str) -> ItemResult:
    try:
        return ItemResult(**_Line.model_validate(json.loads(line)).model_dump())
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the whole line"
        found = f"{key}: {first['msg']}"
    except ValueError as error:
        found = str(error)
    raise DataError(
        asked=f"a scored item from {where}",
        found=found,
        do='write lines such as {"id": "invoice-17", "score": 1}, scores from 0 to 1',
    )
