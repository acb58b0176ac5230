"""Teach: plan, evaluate, train, prove, extract, evaluate again, probe, decide, report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, nullcontext
from datetime import timedelta
from pathlib import Path

import torch
import transformers
from accelerate import PartialState
from rich.console import Console

from narrowtune.core.config import RunConfig
from narrowtune.core.results import RunRecord, TaskResult
from narrowtune.core.run_folder import RunFolder, write_json
from narrowtune.data.spilled import Joined
from narrowtune.delta.extract import check_room
from narrowtune.engine.arithmetic import apply_arithmetic
from narrowtune.engine.features import changes_eyes
from narrowtune.engine.generate import stop_tokens
from narrowtune.evaluate.evaluate import write_items
from narrowtune.evaluate.tasks import Task
from narrowtune.models.blended import set_between
from narrowtune.models.fingerprint import combine_hashes, tensor_hashes
from narrowtune.models.select import resolve
from narrowtune.pipeline.checks import check_launch, check_run
from narrowtune.pipeline.dial import Halves, look_beyond, restrict, turn
from narrowtune.pipeline.folder import (
    check_batches,
    check_started,
    opened,
    row_hashes,
    write_settings,
)
from narrowtune.pipeline.inputs import load
from narrowtune.pipeline.layouts import choose_arithmetic
from narrowtune.pipeline.ledger import check_state, enter, open_book, taught_before
from narrowtune.pipeline.pitfalls import (
    cannot_ship,
    check_eyes,
    forms_not_held,
    nothing_to_lose,
    pitfalls,
    unused_rows,
)
from narrowtune.pipeline.record import make_record
from narrowtune.pipeline.run import Run
from narrowtune.pipeline.shared import Shared
from narrowtune.pipeline.stages import (
    frozen_part,
    looked_at_once,
    make_store,
    measure_run_drift,
    plan_run,
    score_tasks,
)
from narrowtune.pipeline.stopwatch import Stopwatch
from narrowtune.pipeline.trained import extract_delta, keep, take_up
from narrowtune.pipeline.watched import watch_drift, what_drift_was
from narrowtune.report.build import build_report
from narrowtune.train.arguments import num_repeated
from narrowtune.train.callbacks import ProgressBar
from narrowtune.train.fit import fit
from narrowtune.train.masters import copy_tensors
from narrowtune.train.sharded import check_sharing


def teach(
    config: RunConfig,
    *,
    given: str | None = None,
    resume: bool = False,
    console: Console | None = None,
    shared: Shared | None = None,
) -> RunRecord | None:
    """Run every stage; returns the record, or None on a process that is not the main one.

    Under `accelerate launch` all processes train; the main one evaluates and writes.

    Args:
        config: the run.
        given: the settings as the user wrote them, kept beside the resolved ones.
        resume: go on with the run that is in `config.output_dir`.
        console: where stages are announced; silent unless given.
        shared: of several runs on the same rows, one after another.

    Raises:
        NarrowtuneError: of the stage that failed; what earlier stages wrote stays in the folder.
    """
    console = console or Console(quiet=True)
    if not console.is_terminal:
        transformers.logging.disable_progress_bar()
    on_cpu = config.device == "cpu" or not torch.cuda.is_available()
    # The other processes wait while the main one evaluates.
    state = PartialState(cpu=on_cpu, timeout=timedelta(hours=24))
    check_run(config, num_processes=state.num_processes)
    check_launch(config.training, state.num_processes)
    folder = RunFolder(Path(config.output_dir))
    main = state.is_main_process
    with opened(folder, config, given, resume) if main else nullcontext():
        run = _prepare(config, folder, given, resume, console, state, shared or Shared())
        with apply_arithmetic(run.arithmetic):
            if state.is_main_process:
                _look_before(run, state.num_processes)
            if not (resume and take_up(run, state)):
                with frozen_part(run.loaded, config, run.watch):
                    _train(run, state, console, resume)
                    if state.is_main_process:
                        keep(run)
            if not state.is_main_process:
                return None
            _look_after(run)
        record = make_record(run)
        write_json(run.folder.record, record)
        run.folder.trained.unlink(missing_ok=True)  # the record has it all
        with run.watch.stage("report"):
            build_report(run.folder.root, gallery=config.gallery)
    if run.book is not None:
        enter(run.book, config, record)
    return record


def _prepare(
    config: RunConfig,
    folder: RunFolder,
    given: str | None,
    resume: bool,
    console: Console,
    state: PartialState,
    shared: Shared,
) -> Run:
    watch = Stopwatch(console, loud=state.is_main_process)
    with watch.stage("load the model"):
        loaded = load(config)
        book = open_book(config, loaded) if config.ledger is not None else None
        # Where the recipe changes what is seen, nothing is looked up, neither before nor after.
        selection = resolve(loaded.model, config.recipe)
        own_eyes = changes_eyes(loaded, selection.names)
        base_hashes = tensor_hashes(loaded.model)
        base = combine_hashes(base_hashes)
    with watch.stage("read the data"):
        refused_path = folder.refused if state.is_main_process else None
        encoder, inputs = shared.read(loaded, config, refused_path, taught_before(book))
        if book is not None and book.ledger.skills:
            check_state(book, base, inputs.summaries)
            names = ", ".join(entry.name for entry in book.ledger.skills)
            inputs.notes.append(f"Taught before, and kept (the ledger {config.ledger}): {names}.")
            held = len(inputs.taught_prompts)
            if held:
                inputs.notes.append(f"The anchor holds {held} prompts that they were taught with.")
            if config.anchor is not None:
                inputs.notes.append(f"The anchor holds general prompts at {_answered_by(config)}.")
            if not held and not config.mix:
                how = "anchor.earlier_skills above 0" if config.anchor else "an anchor (--anchor)"
                watch.warn(
                    f"Nothing holds what the model was taught before ({names}): {how} does, with "
                    "prompts of each that it was taught with."
                )
        elif book is not None:
            watch.warn(f"The ledger {config.ledger} holds no skill yet: this one is its first.")
    check_eyes(loaded.family, config, inputs)
    if config.training.fsdp:
        check_sharing(loaded, selection, Joined([inputs.rows, inputs.validation]))
    halves = None
    if config.dial is not None:
        halves = Halves(inputs.tasks, config.dial, config.seed)
        halves.check(config)
    if state.is_main_process:
        ended = resume and folder.trained.exists()
        check_room(folder.root, loaded.model, selection, number=(not ended) + bool(halves))
        check_started(folder, base, row_hashes(inputs.summaries), resume)
        if resume:
            check_batches(folder, loaded.model, config)
            write_settings(folder, config, given)
    with watch.stage("measure the arithmetic"), state.main_process_first():
        arithmetic = choose_arithmetic(config, loaded, inputs, encoder, folder, base=base)
    if config.training.packing and not arithmetic.packing:
        watch.warn(arithmetic.note)
    return Run(
        config,
        folder,
        watch,
        loaded,
        base_hashes,
        inputs,
        encoder,
        shared,
        arithmetic,
        None if own_eyes else make_store(loaded, remember=config.remember_pictures),
        book=book,
        halves=halves,
    )


def _answered_by(config: RunConfig) -> str:
    """Say whose answers to general prompts a run with a ledger is held to."""
    if config.training.quantize_frozen is None:
        return "the ledger's base's answers"
    return "the answers of what it starts from, since its frozen part is quantised"


def _look_before(run: Run, num_processes: int) -> None:
    with run.watch.stage("plan"):
        told = pitfalls(run.loaded.family, run.inputs, run.encoder)
        run.plan = plan_run(
            run.loaded,
            run.config,
            run.inputs,
            run.encoder,
            run.arithmetic,
            # The run's own times will be in the record; measuring first would only delay it.
            measure_time=False,
            num_processes=num_processes,
            notes=told,
        )
        told += [*cannot_ship(run.config, run.plan.smallest_budget), *unused_rows(run.config)]
        write_json(run.folder.plan, run.plan)
    for text in told:
        run.watch.warn(text)
    with run.watch.stage("evaluate the base"):
        run.before = _score(run, run.inputs.tasks, "before", combine_hashes(run.base_hashes))
    _tell(run, nothing_to_lose(run.before))


def _tell(run: Run, texts: Iterable[str]) -> None:
    """Say something now, and in the report."""
    for text in texts:
        run.watch.warn(text)
        run.inputs.notes.append(text)


def _train(run: Run, state: PartialState, console: Console, resume: bool) -> None:
    config, model = run.config, run.loaded.model
    before = len(run.inputs.notes)
    anchor = None
    if config.anchor is not None:
        with run.watch.stage("answer the anchor's prompts"):
            anchor = run.shared.anchor(
                run.loaded,
                config,
                run.inputs,
                fingerprint=combine_hashes(run.base_hashes),
                features=run.features,
                book=run.book,
                arithmetic=run.arithmetic,
            )
        if anchor is not None:
            stop = stop_tokens(run.loaded, run.encoder.stop_tokens)
            answers = anchor.answers(run.loaded.tokenizer, stop)
            tasks, results = run.inputs.tasks, run.before or []
            _tell(run, forms_not_held(tasks, results, answers, anchor.num_general))
    repeated = num_repeated(config.training, len(run.inputs.rows), state.num_processes)
    if repeated:
        run.inputs.notes.append(
            f"{state.num_processes} devices: {repeated} rows were seen twice in every epoch, to "
            "fill its last step."
        )
    again = looked_at_once(run.loaded, config, run.inputs.rows, state.num_processes) is not None
    with (
        run.watch.stage("train"),
        closing(ProgressBar(console, config.training.global_batch_size)) as progress,
    ):
        run.fitted = fit(
            run.loaded,
            resolve(model, config.recipe),
            run.inputs.rows,
            config,
            arithmetic=run.arithmetic,
            num_processes=state.num_processes,
            validation=run.inputs.validation,
            anchor=anchor,
            callbacks=[progress],
            drift=(watched := watch_drift(run, anchor)),
            resume=resume,
            features=run.features if again else None,
        )
    if watched is not None:
        run.inputs.notes.append(what_drift_was(watched))
    if watched is not None and watched.stopped is not None:
        run.watch.warn(f"Training stopped at step {watched.stopped}: drift over its budget.")
    first = run.fitted.summary.first_step
    if first is not None and not first.used:
        run.watch.warn(
            "Training took the plain path, row by row: otherwise the first rows fail, or differ "
            f"in loss or gradients by {first.error:.0e} (relative; at most {first.limit:.0e})."
        )
    compiled = run.fitted.summary.compilation
    if compiled is not None and not compiled.used:
        run.watch.warn(
            f"Layers were not compiled: their gradients differ by {compiled.error:.0e} (relative), "
            f"more than {compiled.limit:.0e}."
        )
    # The report's times and cost are those of the whole training, like its numbers of rows.
    run.watch.seconds["train"] += run.fitted.earlier_seconds
    if resume and run.fitted.summary.resumed_from is None:
        run.inputs.notes.append("Resumed without a checkpoint: training began at its first step.")
    run.training_notes = run.inputs.notes[before:]


def _look_after(run: Run) -> None:
    assert run.fitted is not None
    look = None
    if run.halves is not None:
        with run.watch.stage("dial"):
            look = _dial(run, run.halves)
            delta = extract_delta(run)
            delta.save(run.folder.delta, packed=run.config.pack_delta)
            run.tuned_fingerprint = delta.metadata.tuned_fingerprint
    with run.watch.stage("evaluate the tuned model"):
        run.after = _score(run, run.inputs.tasks, "after", run.tuned_fingerprint)
    with run.watch.stage("drift"):
        run.drift = measure_run_drift(
            run.loaded, run.fitted.base, run.inputs, run.encoder, run.config, run.features
        )
        write_json(run.folder.drift, run.drift)
    if look is not None:
        with run.watch.stage("look beyond the dial"):
            look()


def _score(run: Run, tasks: Sequence[Task], where: str, fingerprint: str) -> list[TaskResult]:
    return score_tasks(
        run.loaded,
        tasks,
        run.encoder,
        batch_size=run.config.eval_batch_size,
        fingerprint=fingerprint,
        arithmetic=run.arithmetic,
        folder=run.folder.root / where,
        features=run.features,
    )


def _dial(run: Run, halves: Halves) -> Callable[[], None] | None:
    """Leave the model as far from the base as the budget allows.

    Returns what looks at the rest of the curve, once that is confirmed; None where nothing is left.
    """
    assert run.fitted is not None
    assert run.before is not None
    assert run.config.dial is not None
    way, before = run.config.dial.way, run.before
    model, base = run.loaded.model, run.fitted.base
    tuned = copy_tensors(model, base, run.loaded.dtype)

    def score(alpha: float, tasks: Sequence[Task]) -> list[TaskResult]:
        set_between(model, base, tuned, alpha, way)
        weights = combine_hashes({**run.base_hashes, **tensor_hashes(model, base)})
        return _score(run, tasks, f"dial/{alpha:g}", weights)

    run.dial = dial = turn(halves, before, score, run.config)
    set_between(model, base, tuned, dial.alpha, way)
    # From here on the run is about the items that were not searched on.
    for tasks, where in ((halves.searched, "dial/0"), (halves.confirming, "before")):
        for result in restrict(before, tasks):
            write_items(result.items, run.folder.root / where / f"{result.name}.jsonl")
    run.before = restrict(before, halves.confirming)
    run.inputs.tasks = halves.confirming
    if dial.alpha == 0:
        run.inputs.notes.append(
            "The dial stayed at the base: its first step already puts the budget at stake."
        )
    if not run.config.dial.whole_curve or dial.steps[-1].alpha == 1:
        return None

    def look() -> None:
        run.dial = look_beyond(dial, halves, before, score, run.config)
        set_between(model, base, tuned, dial.alpha, way)

    return look
