"""Reading a run folder: every file checked before a word of the report is written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from narrowtune.core.errors import ReportError
from narrowtune.core.results import (
    SCHEMA_VERSION,
    DriftResult,
    ItemResult,
    Plan,
    RunRecord,
    TaskChange,
)
from narrowtune.core.run_folder import RunFolder

TEACH = "run `narrowtune teach` with this folder as its output_dir"


class LoggedStep(BaseModel):
    """One line of train.jsonl: what was logged at a step; a validation has a line of its own.

    `loss` is all that a step makes smaller, the anchor's term and others among it; `cross_entropy`
    is the answers' part of it, nats per answer token, unless an earlier version logged.
    `drift` is KL(base‖tuned), nats per token, where it was measured during training; beside it
    stand the number-token bias, the base's, and the share of prompts that are still answered in the
    form of the base's answer, unless an earlier version measured.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    step: int
    loss: float | None = None
    cross_entropy: float | None = None
    eval_loss: float | None = None
    anchor_kl: float | None = None
    grad_norm: float | None = None
    learning_rate: float | None = None
    seconds: float | None = None
    drift: float | None = None
    number_bias: float | None = None
    base_number_bias: float | None = None
    format_valid: float | None = None

    @property
    def answer_loss(self) -> float | None:
        """Nats per answer token; of earlier versions the whole loss, an anchor's term in it."""
        return self.loss if self.cross_entropy is None else self.cross_entropy


@dataclass(frozen=True)
class Pair:
    """One item of one task, before and after."""

    task: str
    before: ItemResult
    after: ItemResult


@dataclass(frozen=True)
class RunFiles:
    """What a run left behind. `pairs` is None where item texts are not to be read."""

    path: Path
    record: RunRecord
    plan: Plan | None
    drift: DriftResult | None
    steps: list[LoggedStep]
    pairs: list[Pair] | None


Model = TypeVar("Model", bound=BaseModel)


def read_record(path: Path) -> RunRecord:
    """Read `record.json` of the run folder `path`.

    Raises:
        ReportError: the file is missing, is damaged, or was written by a newer narrowtune.
    """
    return _read_value(RunFolder(path).record, RunRecord, TEACH)


def read_run(path: Path, *, items: bool = True) -> RunFiles:
    """Read everything that a report shows; with `items=False` no item text is opened.

    Raises:
        ReportError: a file is missing (the message names the command that makes it), is
            damaged, is newer than this version, or its items do not pair up.
    """
    record = read_record(path)
    plan, drift = record.plan, record.drift
    folder = RunFolder(path)
    if plan is None and folder.plan.exists():
        plan = _read_value(folder.plan, Plan, "run `narrowtune plan`")
    if drift is None and folder.drift.exists():
        drift = _read_value(folder.drift, DriftResult, "run `narrowtune probe`")
    steps: list[LoggedStep] = []
    if record.training is not None and record.training.num_steps > 0:
        steps = list(_read_lines(RunFolder(path).log, LoggedStep, TEACH))
    pairs = None
    if items:
        pairs = [pair for task in record.tasks for pair in _pairs(path, task)]
    return RunFiles(path, record, plan, drift, steps, pairs)


def _pairs(path: Path, task: TaskChange) -> list[Pair]:
    sides = []
    for side in ("before", "after"):
        file = RunFolder(path).items(side, task.name)
        if not file.resolve().is_relative_to((path / side).resolve()):
            raise ReportError(
                asked=f"the answers of task {task.name!r}",
                found=f"a task name that leads out of {path / side}",
                do="give the task a plain name in run.yaml and run it again",
            )
        do = f"{TEACH} (it evaluates before and after), or leave item texts out with --no-gallery"
        items = {item.id: item for item in _read_lines(file, ItemResult, do)}
        if len(items) != task.num_items:
            raise ReportError(
                asked=f"the {task.num_items} items of task {task.name!r} from {file}",
                found=f"{len(items)} items with names of their own",
                do=do,
            )
        sides.append(items)
    before, after = sides
    if before.keys() != after.keys():
        missing = sorted(before.keys() ^ after.keys())
        raise ReportError(
            asked=f"task {task.name!r} before and after, item by item",
            found=f"{len(missing)} items on one side only, such as {missing[0]!r}",
            do="evaluate both sides on the same items: " + TEACH,
        )
    return [Pair(task.name, item, after[name]) for name, item in before.items()]


def _read_text(file: Path, do: str) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        found = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise ReportError(asked=f"a report from {file}", found=found, do=do) from None


def _read_value(file: Path, model: type[Model], do: str) -> Model:
    text = _read_text(file, do)
    return _parse(text, model, str(file), do, check_version=True)


def _read_lines(file: Path, model: type[Model], do: str) -> Iterator[Model]:
    # Only "\n" ends a row: text may hold U+2028 and other marks that str.splitlines() cuts at.
    for row, line in enumerate(_read_text(file, do).split("\n"), start=1):
        if line.strip():
            yield _parse(line, model, f"{file}, line {row}", do)


def _parse(
    text: str, model: type[Model], where: str, do: str, *, check_version: bool = False
) -> Model:
    try:
        values: Any = json.loads(text)
    except ValueError as error:
        raise ReportError(asked=f"a report from {where}", found=str(error), do=do) from None
    if check_version and isinstance(values, dict):
        version = values.get("schema_version", SCHEMA_VERSION)
        if not isinstance(version, int) or version > SCHEMA_VERSION:
            raise ReportError(
                asked=f"a report from {where}",
                found=f"schema version {version!r}; this narrowtune reads up to {SCHEMA_VERSION}",
                do="update narrowtune, or use the version that record.json names",
            )
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the whole value"
        raise ReportError(
            asked=f"a report from {where}",
            found=f"{error.error_count()} wrong fields, the first {key}: {first['msg']}",
            do=do,
        ) from None
