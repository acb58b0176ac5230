"""Several ways to teach one skill, each a run of its own, side by side.

Owns: that the runs of a comparison (`ways`) do the same work, which of them are finished, what
becomes of one that fails, and the trial that leaves some out. Rows are read and encoded once for
all; the base's scores come from the cache after the first run, what a frozen tower sees from the
feature store; all compute in the arithmetic that was measured for the first.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from narrowtune.core.config import RunConfig, parse_config
from narrowtune.core.errors import (
    DeltaError,
    EvaluationError,
    NarrowtuneError,
    TrainingError,
    UsageError,
)
from narrowtune.core.recipes import get_recipe
from narrowtune.core.results import RunRecord
from narrowtune.core.run_folder import RunFolder
from narrowtune.models.fingerprint import fingerprint
from narrowtune.models.select import resolve
from narrowtune.pipeline.checks import check_run
from narrowtune.pipeline.dial import Halves
from narrowtune.pipeline.folder import (
    as_known_now,
    check_batches,
    check_started,
    is_held_to,
    row_hashes,
)
from narrowtune.pipeline.inputs import load
from narrowtune.pipeline.pitfalls import check_eyes
from narrowtune.pipeline.shared import Shared
from narrowtune.pipeline.stopwatch import Stopwatch
from narrowtune.pipeline.teach import teach
from narrowtune.pipeline.ways import Contender
from narrowtune.report.comparison import build_comparison
from narrowtune.report.folder import read_record

_ROUNDS = (0.25, 0.5)
"""Shares of the training rows on which a trial looks before the last round, which has all."""


def run_comparison(
    config: RunConfig, ways: Sequence[Contender], *, trial: bool, console: Console
) -> tuple[list[RunRecord], Path]:
    """Run what is missing of a comparison.

    Started again with the same settings it goes on where it was stopped: finished runs are taken
    as they are, those that failed are tried again.

    Args:
        config: the run that all are variants of; `output_dir` gets a folder for each.
        ways: what is compared.
        trial: rank all on a quarter of the training rows, the better half on half of them, and run
            the better half of those on all: each a whole run of its own, since a checkpoint in
            the middle of a schedule is not a finished run.
        console: where to say what happens.

    Returns:
        The records of the last round in the order of `ways`, without those that failed, and the
        comparison's page.

    Raises:
        NarrowtuneError: of rows, settings, a recipe or a base that can't be, or that are others
            than those of a finished run; these stay. Of trainings that fail, such as one whose loss
            is no number any more, only where all do: then it is the first's.
    """
    if config.ledger is not None:
        raise UsageError(
            asked="a comparison with a ledger",
            found="runs that would each be entered as a skill of its own",
            do="leave it out; compare on the model that narrowtune ledger build writes, then teach "
            "the way that you choose with --ledger",
        )
    # As launchers say it: accelerate's own state is each run's to make, on the device it asks for.
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            asked="a comparison under several processes",
            found="runs that each would have to be started by the launcher",
            do="run narrowtune compare without accelerate launch; each run may use several GPUs "
            "through narrowtune teach",
        )
    if config.training.quantize_frozen:
        _check_something_frozen(ways)
    root, shared = Path(config.output_dir), Shared(several=True)
    trials = [(share, root / f"trial {share:g}") for share in _ROUNDS if trial]
    with Stopwatch(console, loud=True).stage("check the ways"):
        _check_ways(config, ways, [*trials, (1.0, root)], shared)
    left, failed = list(ways), dict[str, str]()
    for share, folder in trials:
        left, records = _round(config, left, folder, share, console, shared, failed)
        best = sorted(range(len(left)), key=lambda place: _rank(records[place]))
        kept = set(best[: max(2, math.ceil(len(left) / 2))])
        for place in best[len(kept) :]:
            console.print(f"Left out after {share:.0%}: {left[place].name}", markup=False)
        left = [way for place, way in enumerate(left) if place in kept]
    left, records = _round(config, left, root, 1.0, console, shared, failed)
    if failed:
        console.print(f"Could not be trained: {'; '.join(failed)}", markup=False, style="bold red")
    return records, build_comparison([root / way.name for way in left], root, failed=failed)


def _check_something_frozen(ways: Sequence[Contender]) -> None:
    """Refuse recipes that leave nothing to quantise, before another is trained."""
    for way in ways:
        recipe = get_recipe(way.changes["recipe"])
        if "language_model" in recipe.components and not recipe.matrices:
            raise UsageError(
                asked=f"{way.name} with training.quantize_frozen",
                found="that it leaves no layer of the language model frozen",
                do=f"leave {way.name} out of --recipes, or quantize_frozen",
            )


def _check_ways(
    config: RunConfig,
    ways: Sequence[Contender],
    rounds: Sequence[tuple[float, Path]],
    shared: Shared,
) -> None:
    """See, before anything trains, that each way can be taught and what is finished still holds.

    The model is let go at the end: runs load one of their own, and are to have its memory.

    Args:
        config: the run that all are variants of.
        ways: what is compared.
        rounds: share of the training and folder of each.
        shared: has the rows after this where a run is finished, or a way trains what sees.

    Raises:
        UsageError: settings that contradict each other, a finished run with others, or one of
            another base or other rows; or a dial's budget that its items can't show to be kept.
        DataError: paths that lead nowhere, or rows that can't be used.
        ModelError, SelectionError: the base can't be loaded, or lacks what a recipe trains.
    """
    configs = [_config(config, way, at / way.name, share) for share, at in rounds for way in ways]
    finished = [own for own in configs if _known(own) is not None]
    for own in configs:
        check_run(own)
    loaded = load(config)
    for way in ways:
        resolve(loaded.model, way.changes["recipe"])
    for own in configs:
        if set(get_recipe(own.recipe).components) != {"language_model"}:
            check_eyes(loaded.family, own, shared.read(loaded, own, None)[1])
        elif own.anchor is not None and own.anchor.skill_pictures:
            shared.read(loaded, own, None)  # there may be no picture, or no question about one
    base = fingerprint(loaded.model) if finished else ""
    for own in finished:
        _, inputs = shared.read(loaded, own, None)
        folder = RunFolder(Path(own.output_dir))
        check_batches(folder, loaded.model, own)
        _hold(folder, base, row_hashes(inputs.summaries))
    dialled = next((own for own in configs if own.dial is not None), None)
    if dialled is not None:  # all that have one have the same, on the same items
        assert dialled.dial is not None
        _, inputs = shared.read(loaded, dialled, None)
        Halves(inputs.tasks, dialled.dial, dialled.seed).check(dialled)


def _hold(folder: RunFolder, base: str, data: dict[str, str]) -> None:
    """See that a finished run was of this base and these rows."""
    found = "no started.json, which says what it began with"
    if (folder.root / "started.json").exists():
        try:
            check_started(folder, base, data, resume=True)
        except UsageError as error:
            found = error.found
        else:
            return
    raise UsageError(
        asked=f"a comparison with the finished run in {folder.root}",
        found=found,
        do="put back what it was started with, or choose another --output-dir",
    )


def _round(
    config: RunConfig,
    ways: Sequence[Contender],
    folder: Path,
    share: float,
    console: Console,
    shared: Shared,
    failed: dict[str, str],
) -> tuple[list[Contender], list[RunRecord]]:
    """Run every way on a share of the training, each in a folder of its own.

    Args:
        failed: gets the ways that could not be trained, and why.

    Returns:
        The other ways, and their records.
    """
    done: list[Contender] = []
    records: list[RunRecord] = []
    errors: list[NarrowtuneError] = []
    on = "" if share == 1 else f", trial on {share:.0%}"
    for way in ways:
        console.rule(f"{way.name}{on}")
        own = _config(config, way, folder / way.name, share)
        record = _known(own)
        if record is not None:
            console.print(f"{way.name}: finished before, taken as it is", markup=False)
        else:
            found = _try(own, _measured(ways, folder), console, shared)
            if isinstance(found, NarrowtuneError):
                errors.append(found)
                why = failed[f"{way.name}{on}"] = f"{found.found} ({found.asked})"
                console.print(f"{way.name} failed: {why}", markup=False, style="bold red")
                console.print(f"Do: {found.do}", markup=False)
                continue
            record = found
        done.append(way)
        records.append(record)
    if not done:
        raise errors[0]
    return done, records


def _measured(ways: Sequence[Contender], folder: Path) -> Path | None:
    """Return the run whose arithmetic the others take: the first that has one, failed or not."""
    runs = (folder / way.name for way in ways)
    return next((run for run in runs if RunFolder(run).arithmetic.exists()), None)


def _try(
    config: RunConfig, first: Path | None, console: Console, shared: Shared
) -> RunRecord | NarrowtuneError:
    """Return a run's record; where the training fails, why.

    What would stop any other way as well is raised.
    """
    try:
        return teach_alike(config, first, console, shared)
    except (TrainingError, DeltaError, EvaluationError) as error:
        # Without the frames that it came through: they hold the model, whose memory the next needs.
        return type(error)(error.asked, error.found, error.do)


def _config(config: RunConfig, way: Contender, folder: Path, share: float) -> RunConfig:
    values = config.model_dump()
    values |= {key: value for key, value in way.changes.items() if "." not in key}
    training = dict(values["training"])
    training |= {
        key.removeprefix("training."): value for key, value in way.changes.items() if "." in key
    }
    if share < 1 and training["max_steps"] >= 0:
        training["max_steps"] = max(1, round(share * training["max_steps"]))
    elif share < 1:
        training["num_train_epochs"] *= share
    values |= {"training": training, "output_dir": str(folder)}
    return parse_config(values, f"the comparison's run {way.name}")


def _known(config: RunConfig) -> RunRecord | None:
    """Return the record of a run that was finished with these very settings."""
    folder = RunFolder(Path(config.output_dir))
    if not folder.record.exists():
        return None
    before = as_known_now(folder.resolved.read_text(encoding="utf-8"))
    if not is_held_to(before, config):
        raise UsageError(
            asked=f"a comparison in {folder.root.parent}",
            found=f"a finished run in {folder.root} that has other settings",
            do="choose another --output-dir",
        )
    return read_record(folder.root)


def teach_alike(
    config: RunConfig, first: Path | None, console: Console, shared: Shared
) -> RunRecord:
    """Run `teach` in the arithmetic of the first of several runs, and go on if it was stopped.

    Args:
        config: of this run.
        first: folder of the run whose arithmetic is taken; None for that one.
        console: where stages are announced.
        shared: of these runs.
    """
    folder = RunFolder(Path(config.output_dir))
    begun = folder.resolved.exists() and folder.plan.exists()
    if first is not None and not folder.arithmetic.exists():
        # One arithmetic for all: the comparison is fair, and the base's scores are known.
        folder.root.mkdir(parents=True, exist_ok=True)
        shutil.copy(RunFolder(first).arithmetic, folder.arithmetic)
    record = teach(config, resume=begun, console=console, shared=shared)
    assert record is not None, "one process is the main one"
    return record


def _rank(record: RunRecord) -> tuple[float, float]:
    """Sort runs within both budgets first, by what they learned; then by how far one is broken."""
    verdict = record.verdict
    assert verdict is not None
    learned = verdict.learning.value if verdict.learning is not None else 0.0
    over = 0.0
    for loss, budget in (
        (verdict.forgetting, verdict.budget),
        (verdict.worst_task_forgetting, verdict.budget_task),
    ):
        if loss is not None and budget is not None:
            over = max(over, loss.value - budget)
    return over, -learned
