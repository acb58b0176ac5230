"""Teach: plan, evaluate, train, prove, extract, evaluate again, probe, decide, report."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path

import torch
import yaml
from accelerate import PartialState
from rich.console import Console

from narrowtune.core import provenance
from narrowtune.core.config import RunConfig
from narrowtune.core.errors import UsageError
from narrowtune.core.results import RunRecord, TaskResult
from narrowtune.core.run_folder import RunFolder, write_json, write_text
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.rows import write_refused
from narrowtune.delta.extract import extract
from narrowtune.delta.store import info
from narrowtune.engine.arithmetic import Arithmetic, apply_arithmetic, measure_arithmetic
from narrowtune.engine.cost import estimate_cost
from narrowtune.evaluate.cache import ScoreCache
from narrowtune.evaluate.evaluate import evaluate_cached, write_items
from narrowtune.evaluate.verdict import compare_results, decide
from narrowtune.models.fingerprint import combine_hashes, tensor_hashes
from narrowtune.models.load import LoadedModel, load_model
from narrowtune.models.select import resolve
from narrowtune.pipeline.inputs import Inputs, encode_rows, read_inputs
from narrowtune.pipeline.stages import measure_run_drift, measuring_dtype, plan_run
from narrowtune.report.build import build_report
from narrowtune.train.anchor import build_anchor
from narrowtune.train.callbacks import ProgressBar
from narrowtune.train.fit import fit
from narrowtune.train.masters import computing_in, set_parameter_dtype


class Stopwatch:
    """Seconds by stage, in the order in which the stages ran."""

    def __init__(self, console: Console, loud: bool) -> None:
        self.seconds: dict[str, float] = {}
        self._console = console
        self._loud = loud

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage, and say on a terminal that it runs."""
        started = time.perf_counter()
        if self._loud and self._console.is_terminal:
            with self._console.status(name):
                yield
        else:
            yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
        if self._loud:
            self._console.print(f"[green]✓[/] {name} [dim]{self.seconds[name]:.1f} s[/]")


def open_folder(config: RunConfig, given: str | None, resume: bool) -> RunFolder:
    """Make the run's folder and write the settings into it.

    Raises:
        UsageError: the folder holds another run, or the one to resume has other settings.
    """
    folder = RunFolder(Path(config.output_dir))
    resolved = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    if folder.resolved.exists():
        same = folder.resolved.read_text(encoding="utf-8") == resolved
        if not resume:
            raise UsageError(
                asked=f"a new run in {folder.root}",
                found="a run that is already there",
                do="choose another --output-dir, or go on with it: --resume",
            )
        if not same:
            raise UsageError(
                asked=f"to resume the run in {folder.root}",
                found="other settings than it was started with:\n"
                + _difference(folder.resolved.read_text(encoding="utf-8"), resolved),
                do="resume with the settings in resolved.yaml, or start a new run",
            )
    write_text(folder.given, given if given is not None else resolved)
    write_text(folder.resolved, resolved)
    return folder


def _difference(old: str, new: str) -> str:
    before, after = set(old.splitlines()), set(new.splitlines())
    lines = [f"  was {line.strip()}" for line in old.splitlines() if line not in after]
    return "\n".join(
        lines + [f"  now {line.strip()}" for line in new.splitlines() if line not in before]
    )


def choose_arithmetic(config: RunConfig, loaded: LoadedModel, folder: RunFolder) -> Arithmetic:
    """Measure which arithmetic is fastest here, or read back what an earlier start measured."""
    if folder.arithmetic.exists():
        return Arithmetic.from_json(folder.arithmetic.read_text(encoding="utf-8"))
    arithmetic = measure_arithmetic(loaded.model, requested=config.training.compute_dtype)
    write_text(folder.arithmetic, arithmetic.to_json())
    return arithmetic


class Evaluator:
    """Scores the run's tasks, before and after, in the same way."""

    def __init__(
        self,
        loaded: LoadedModel,
        inputs: Inputs,
        encoder: ChatEncoder,
        config: RunConfig,
        arithmetic: Arithmetic,
        folder: RunFolder,
    ) -> None:
        self.loaded, self.inputs, self.encoder = loaded, inputs, encoder
        self.config, self.arithmetic, self.folder = config, arithmetic, folder

    def score(self, when: str, fingerprint_now: str, cache: ScoreCache) -> list[TaskResult]:
        """Return the results of every task, and write its items into the run folder."""
        model = self.loaded.model
        dtype = measuring_dtype(self.loaded)
        words = f"{dtype} {self.arithmetic.float32_matmul_precision} {self.arithmetic.threads}"
        results = []
        with computing_in(model, dtype):
            for task in self.inputs.tasks:
                result = evaluate_cached(
                    self.loaded,
                    task,
                    self.encoder,
                    batch_size=self.config.eval_batch_size,
                    cache=cache,
                    model_fingerprint=fingerprint_now,
                    arithmetic=words,
                )
                write_items(result.items, self.folder.items(when, task.name))
                results.append(result)
        return results


def teach(
    config: RunConfig,
    *,
    given: str | None = None,
    resume: bool = False,
    console: Console | None = None,
) -> RunRecord | None:
    """Run every stage; returns the record, or None on a process that is not the main one.

    Under `accelerate launch` all processes train; the main one evaluates and writes.

    Raises:
        NarrowtuneError: of the stage that failed; what earlier stages wrote stays in the folder.
    """
    console = console or Console(quiet=True)
    on_cpu = config.device == "cpu" or not torch.cuda.is_available()
    # The other processes wait while the main one evaluates.
    state = PartialState(cpu=on_cpu, timeout=timedelta(hours=24))
    watch = Stopwatch(console, state.is_main_process)
    folder = RunFolder(Path(config.output_dir))
    if state.is_main_process:
        open_folder(config, given, resume)
    with watch.stage("load the model"):
        loaded = load_model(
            config.model, dtype=config.dtype, device=config.device, revision=config.revision
        )
        selection = resolve(loaded.model, config.recipe)
        base_hashes = tensor_hashes(loaded.model)
        base_fingerprint = combine_hashes(base_hashes)
    with watch.stage("read the data"):
        inputs = read_inputs(config, folder.refused if state.is_main_process else None)
        encoder = ChatEncoder(
            loaded.tokenizer,
            loaded.processor,
            max_length=config.max_length,
            chat_template_kwargs=config.chat_template_kwargs,
        )
        try:
            rows = encode_rows(encoder, inputs.train, config, inputs.refused)
            validation = encode_rows(encoder, inputs.validation, config, inputs.refused)
        finally:
            if state.is_main_process and inputs.refused:
                write_refused(folder.refused, inputs.refused)
    with watch.stage("measure the arithmetic"), state.main_process_first():
        arithmetic = choose_arithmetic(config, loaded, folder)
    device = loaded.model.device
    evaluator = Evaluator(loaded, inputs, encoder, config, arithmetic, folder)
    plan, before, anchor = None, [], None
    with apply_arithmetic(arithmetic, device, autocast=False):
        if state.is_main_process:
            with watch.stage("plan"):
                plan = plan_run(loaded, config, inputs, rows, arithmetic)
                write_json(folder.plan, plan)
            with watch.stage("evaluate the base"):
                before = evaluator.score("before", base_fingerprint, ScoreCache())
        if arithmetic.compute_dtype == "float32":
            set_parameter_dtype(loaded.model, torch.float32, None)
        if config.anchor is not None:
            with watch.stage("the base's answers to anchor prompts"):
                anchor = build_anchor(
                    loaded,
                    encoder,
                    inputs.anchor_prompts,
                    config.anchor,
                    batch_size=config.eval_batch_size,
                    seed=config.seed,
                )
        with watch.stage("train"):
            fitted = fit(
                loaded,
                selection,
                rows,
                config,
                arithmetic=arithmetic,
                num_processes=state.num_processes,
                validation=validation,
                anchor=anchor,
                callbacks=[ProgressBar(console, config.training.global_batch_size)],
                resume=resume,
            )
        set_parameter_dtype(loaded.model, loaded.dtype, None)
        if not state.is_main_process:
            return None
        with watch.stage("delta"):
            delta = extract(
                loaded.model, selection, fitted.base, base_hashes=base_hashes, notes=loaded.notes
            )
            delta.save(folder.delta)
        with watch.stage("evaluate the tuned model"):
            after = evaluator.score("after", delta.metadata.tuned_fingerprint, ScoreCache())
        with watch.stage("drift"):
            drift = measure_run_drift(loaded, fitted.base, inputs, encoder, config)
            write_json(folder.drift, drift)
    verdict = decide(
        before,
        after,
        budget=config.budget,
        budget_task=config.budget_task,
        min_learning=config.min_learning,
    )
    record = RunRecord(
        name=folder.root.name,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        versions=provenance.versions(),
        hardware={**provenance.hardware(), "arithmetic": arithmetic.model_dump()},
        git=provenance.git_state(Path.cwd()),
        seed=config.seed,
        model={
            "source": config.model,
            "family": loaded.family.name,
            "dtype": str(loaded.dtype).removeprefix("torch."),
            "fingerprint": base_fingerprint,
        },
        recipe=config.recipe,
        plan=plan,
        data=inputs.summaries,
        training=fitted.summary,
        proof=fitted.proof,
        delta=info(folder.delta),
        tasks=compare_results(before, after),
        drift=drift,
        verdict=verdict,
        cost=estimate_cost(config.cost, sum(watch.seconds.values())),
        seconds={name: round(value, 2) for name, value in watch.seconds.items()},
        notes=[*loaded.notes, *inputs.notes, *encoder.notes],
    )
    write_json(folder.record, record)
    with watch.stage("report"):
        build_report(folder.root, gallery=config.gallery)
    return record
