"""Commands that do one thing: plan, evaluate, probe."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from narrowtune.core.config import (
    ModelSettings,
    RunConfig,
    parse_data_settings,
    parse_settings,
)
from narrowtune.core.data_settings import EVAL_BATCH_SIZE, PromptSettings
from narrowtune.core.errors import UsageError
from narrowtune.core.results import DriftResult, Plan, TaskResult
from narrowtune.core.run_folder import REFUSED, check_output
from narrowtune.data.collate import Encoded
from narrowtune.data.examples import RefusedRow
from narrowtune.data.rows import write_refused
from narrowtune.delta.apply import apply
from narrowtune.delta.store import Delta
from narrowtune.engine.arithmetic import Arithmetic, apply_arithmetic, measure_arithmetic
from narrowtune.engine.features import changes_eyes
from narrowtune.evaluate.own_metrics import identity
from narrowtune.models.fingerprint import fingerprint
from narrowtune.models.load import LoadedModel, load_reader
from narrowtune.models.swap import WeightSwap
from narrowtune.pipeline.checks import Named, check_paths, check_run, check_stage
from narrowtune.pipeline.inputs import (
    load,
    make_encoder,
    read_inputs,
)
from narrowtune.pipeline.layouts import check_packing, packable_batches, prompts_as_batches
from narrowtune.pipeline.pitfalls import (
    cannot_ship,
    check_eyes,
    limits_too_short,
    pitfalls,
    unused_rows,
)
from narrowtune.pipeline.prompts import read_free_prompts
from narrowtune.pipeline.sources import read_task
from narrowtune.pipeline.stages import (
    make_store,
    measuring,
    plan_run,
    score_tasks,
)
from narrowtune.probe.drift import measure_drift
from narrowtune.train.masters import copy_tensors

logger = logging.getLogger(__name__)


@dataclass
class Evaluation:
    """What `evaluate` found.

    Attributes:
        tasks: one result per set of rows.
        refused: rows that were not used.
    """

    tasks: list[TaskResult] = field(default_factory=list)
    refused: list[RefusedRow] = field(default_factory=list)


def plan(config: RunConfig, *, with_skill: bool, measure_time: bool) -> Plan:
    """Plan a run. Writes nothing.

    Args:
        config: the run.
        with_skill: False plans for made-up rows to learn from, and for the rest as it is given.
        measure_time: as for `make_plan`.
    """
    if config.mix and not with_skill:
        raise UsageError(
            asked="a plan with general rows mixed in",
            found="no skill whose rows they are a share of",
            do="give --skill too, or leave mix out",
        )
    check_run(config, with_skill=with_skill)
    check_stage(config.training)
    loaded = load(config)
    encoder = make_encoder(loaded, config)
    inputs = read_inputs(config, encoder, with_skill=with_skill)
    check_eyes(loaded.family, config, inputs)
    told = pitfalls(loaded.family, inputs, encoder)
    arithmetic = check_packing(
        measure_arithmetic(loaded.model, requested=config.training.compute_dtype),
        loaded,
        packable_batches(inputs, encoder),
        allowed=config.training.packing,
    )
    with apply_arithmetic(arithmetic):
        made = plan_run(
            loaded, config, inputs, encoder, arithmetic, measure_time=measure_time, notes=told
        )
    if not with_skill:
        return made
    more = [*cannot_ship(config, made.smallest_budget), *unused_rows(config)]
    return made.model_copy(update={"notes": [*made.notes, *more]})


def evaluate(
    model: ModelSettings,
    tasks: Sequence[dict[str, Any]],
    delta_path: Path | None,
    *,
    batch_size: int,
    output: Path,
    overwrite: bool = False,
) -> Evaluation:
    """Score a model, or the same model with a delta applied in memory, on rows with answers.

    Args:
        model: which one, and how it is loaded and spoken to.
        tasks: fields of `DataSettings`, one set each.
        delta_path: applied first, unless None.
        output: folder that gets one file of items per task, and rows_refused.jsonl where rows
            can't be used.
        overwrite: replace what is there already; never rows that are read.

    Raises:
        NarrowtuneError: before weights are loaded, where what is asked for can't be.
    """
    settings = [parse_data_settings(task, f"to evaluate {task['path']}") for task in tasks]
    labels = [each.label for each in settings]
    if len(set(labels)) < len(labels):
        raise UsageError(
            asked=f"to evaluate {', '.join(labels)}",
            found="two files of one name, whose answers would go to one file",
            do="rename one of them",
        )
    rows = [("--tasks", each.path) for each in settings]
    check_paths(model.model, rows, [("--delta", delta_path)])
    for each in settings:
        identity(each.metric)
    files = [f"{label}.jsonl" for label in labels]
    _check_rows_stay([Path(each.path) for each in settings], [output / name for name in files])
    check_output(output, [*files, REFUSED], overwrite=overwrite)
    delta = None if delta_path is None else Delta.load(delta_path)
    # Rows first: a column that is not there shows before weights are read.
    reader = load_reader(
        model.model, revision=model.revision, processor_kwargs=model.processor_kwargs
    )
    encoder = make_encoder(reader, model)
    found = Evaluation()
    (output / REFUSED).unlink(missing_ok=True)
    try:
        made = [read_task(each, encoder, found.refused) for each in settings]
    finally:
        if found.refused:
            output.mkdir(parents=True, exist_ok=True)
            write_refused(output / REFUSED, found.refused)
    for text in limits_too_short(made, encoder):
        logger.warning(text)
    loaded = load(model)
    if delta is not None:
        apply(loaded.model, delta)
    prompts = (example.prompt for task in made for example in task.examples)
    arithmetic = _choose(loaded, prompts_as_batches(prompts, encoder))
    with apply_arithmetic(arithmetic):
        found.tasks = score_tasks(
            loaded,
            made,
            encoder,
            batch_size=batch_size,
            fingerprint=fingerprint(loaded.model),
            arithmetic=arithmetic,
            folder=output,
            features=make_store(loaded, remember=model.remember_pictures),
        )
    return found


def _check_rows_stay(rows: Sequence[Path], written: Sequence[Path]) -> None:
    """See that no answers would replace the rows that they answer."""
    places = {os.path.realpath(path): path for path in rows}
    for path in written:
        if os.path.realpath(path) in places:
            raise UsageError(
                asked=f"answers in {path.parent}",
                found=f"{path.name} there is one of the sets of rows, which would be replaced",
                do="choose another --output",
            )


def _choose(loaded: LoadedModel, batches: Sequence[Sequence[Encoded]]) -> Arithmetic:
    """Measure which arithmetic is fastest here; say so where rows can't be packed."""
    arithmetic = check_packing(measure_arithmetic(loaded.model), loaded, batches, allowed=True)
    if not arithmetic.packing:
        logger.warning(arithmetic.note)
    return arithmetic


def probe(
    model: ModelSettings,
    delta_path: Path,
    prompts: str | None,
    *,
    max_prompts: int,
    max_new_tokens: int,
    image_root: str | None = None,
    rows: Mapping[str, Mapping[str, str | None]] | None = None,
) -> DriftResult:
    """Measure the drift that a delta causes, on prompts from a file or on those of the package.

    Args:
        model: the base.
        delta_path: what is measured.
        prompts: of the file; those of the package unless given.
        max_prompts: how many of them.
        max_new_tokens: length of an answer.
        image_root: that the pictures' paths stay under.
        rows: `columns` and `defaults` of the prompts.
    """
    if image_root is not None and prompts is None:
        raise UsageError(
            asked="--image-root",
            found="the package's own prompts, whose pictures are where they are",
            do="give --prompts too, or leave it out",
        )
    values = {"prompts": prompts, "image_root": image_root, **(rows or {})}
    given = parse_settings(PromptSettings, values, "the prompts of a probe")
    files: list[Named] = [("--delta", delta_path), ("--image-root", image_root)]
    check_paths(model.model, [("--prompts", prompts)], files)
    loaded = load(model)
    delta = Delta.load(delta_path)
    base = copy_tensors(loaded.model, delta.metadata.tensors)
    apply(loaded.model, delta)
    encoder = make_encoder(loaded, model)
    found = read_free_prompts(given, encoder, max_prompts, "--prompts")
    if prompts is not None:
        found = [(Path(prompts).stem, asked) for _, asked in found]
    arithmetic = _choose(loaded, prompts_as_batches((asked for _, asked in found), encoder))
    # Base and tuned would look through other eyes, and be given what one of them saw.
    same_eyes = not changes_eyes(loaded, base)
    features = make_store(loaded, remember=model.remember_pictures) if same_eyes else None
    with apply_arithmetic(arithmetic), measuring(loaded, features):
        return measure_drift(
            loaded,
            WeightSwap(loaded.model, base),
            found,
            encoder,
            max_new_tokens=max_new_tokens,
            batch_size=EVAL_BATCH_SIZE,
        ).result
