"""What happens between steps: the log file, the progress bar, and the drift probe in the loop."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from narrowtune.core.errors import TrainingError, UsageError
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.examples import Message, Text
from narrowtune.models.families import find_family
from narrowtune.models.load import LoadedModel
from narrowtune.probe.drift import BaseAnswers, drift_against, prepare_base_answers


class LogFile(TrainerCallback):
    """Appends one JSON line per logged step to `train.jsonl`.

    A resumed run continues the file: lines after the checkpoint it resumes from are dropped, so
    that every step stands in it once. What another callback adds to the state's `log_history`
    (drift) is written too, in the line of its step if that has one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._num_written = 0
        self._started = time.perf_counter()
        self._before = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Start the clock; keep the lines up to the step the run starts from."""
        self._num_written = len(state.log_history)
        if not state.is_world_process_zero:
            return
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        rows = [json.loads(line) for line in lines if line.endswith("}")]
        kept = [row for row in rows if row["step"] <= state.global_step]
        self.path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        self._before = kept[-1]["seconds"] if kept else 0.0
        self._started = time.perf_counter()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Write the step's numbers."""
        self._write(state)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Write what was added after a step that nothing else was logged of."""
        self._write(state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Write what was added after the last step."""
        self._write(state)

    def _write(self, state: TrainerState) -> None:
        added = state.log_history[self._num_written :]
        self._num_written = len(state.log_history)
        if not state.is_world_process_zero:
            return
        seconds = self._before + time.perf_counter() - self._started
        rows: dict[int, dict[str, Any]] = {}
        for entry in added:
            if "train_runtime" not in entry:
                row = rows.setdefault(entry["step"], {"seconds": round(seconds, 3)})
                row.update((key, value) for key, value in entry.items() if key != "epoch")
        if rows:
            lines = [json.dumps({"step": step, **row}) + "\n" for step, row in rows.items()]
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(lines)


class ProgressBar(TrainerCallback):
    """A bar with loss, speed and time left; silent where the output is no terminal.

    Use it inside `contextlib.closing`: the Trainer tells callbacks nothing of an error, and a bar
    that is not taken away leaves the terminal without a cursor.
    """

    def __init__(self, console: Console, samples_per_step: int) -> None:
        self.samples_per_step = samples_per_step
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task: Any = None
        self._first = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Show the bar."""
        if state.is_world_process_zero:
            self._first = state.global_step
            self._progress.start()
            self._task = self._progress.add_task(
                "train", total=state.max_steps, completed=state.global_step, loss="–", speed=""
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Move the bar."""
        if self._task is None:
            return
        elapsed = self._progress.tasks[0].elapsed or 0.0
        done = (state.global_step - self._first) * self.samples_per_step
        speed = f"{done / elapsed:.1f} samples/s" if elapsed > 0 else ""
        self._progress.update(self._task, completed=state.global_step, speed=speed)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Show the loss."""
        if self._task is not None and logs and "loss" in logs:
            self._progress.update(self._task, loss=f"{float(logs['loss']):.3f}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Take the bar away."""
        self.close()

    def close(self) -> None:
        """Take the bar away, if it is there."""
        if self._progress.live.is_started:
            self._progress.stop()


class DriftCallback(TrainerCallback):
    """Measures how far the model has drifted from the base while any Trainer trains it.

    Needs no labels: before the first step the model answers some prompts; every `every` steps
    KL(base‖now) is measured along those answers, logged as `drift`, and held against `budget`.
    The base is the model as the first `train()` finds it: a second one with the same callback goes
    on measuring from there. Another model needs a callback of its own.
    Works with `transformers.Trainer` and what derives from it, TRL's trainers too.

    Args:
        prompts: plain texts, each the user's turn of a prompt.
        every: optimiser steps between two measurements.
        budget: KL in nats per token above which training stops; None only measures.
        max_new_tokens: length of the base's answers.
        batch_size: prompts answered together.

    Attributes:
        history: (step, KL in nats per token), one pair per measurement.
        stopped: the step at which the budget stopped the last training, if it did.

    Raises:
        UsageError: when training begins, if the trainer has no tokenizer as `processing_class`.
    """

    def __init__(
        self,
        prompts: Sequence[str],
        *,
        every: int = 50,
        budget: float | None = None,
        max_new_tokens: int = 32,
        batch_size: int = 16,
    ) -> None:
        if every < 1 or not prompts:
            raise UsageError(
                asked=f"drift on {len(prompts)} prompts every {every} steps",
                found="no prompt, or no step between two measurements",
                do="give at least one prompt and every=1 or more",
            )
        self.prompts = [(Message("user", (Text(text),)),) for text in prompts]
        self.every, self.budget = every, budget
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size
        self.history: list[tuple[int, float]] = []
        self.stopped: int | None = None
        self._loaded: LoadedModel | None = None
        self._answers: BaseAnswers | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        processing_class: Any = None,
        **_: Any,
    ) -> None:
        """Let the base answer, the first time, and keep its distributions."""
        self.stopped = None
        if state.global_step > 0 and self._answers is None:
            raise TrainingError(
                asked=f"drift of a run that is resumed at step {state.global_step}",
                found="a model that is no longer the base",
                do="leave the DriftCallback out when resuming, or start again",
            )
        if processing_class is None:
            raise UsageError(
                asked="drift while training",
                found="a trainer without a tokenizer",
                do="give the trainer processing_class=tokenizer",
            )
        tokenizer = getattr(processing_class, "tokenizer", processing_class)
        processor = processing_class if tokenizer is not processing_class else None
        self._loaded = LoadedModel(
            model=extract_model_from_parallel(model),
            tokenizer=tokenizer,
            processor=processor,
            family=find_family(extract_model_from_parallel(model)),
            source=type(model).__name__,
            folder=Path(),
            dtype=next(model.parameters()).dtype,
        )
        if self._answers is None:
            with _one_dtype(self._loaded):
                self._answers = prepare_base_answers(
                    self._loaded,
                    None,
                    [("prompts", messages) for messages in self.prompts],
                    ChatEncoder(tokenizer, processor),
                    max_new_tokens=self.max_new_tokens,
                    batch_size=self.batch_size,
                    keep_logits=True,
                )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Measure, and stop if the budget is spent."""
        if state.global_step % self.every or self._loaded is None or self._answers is None:
            return
        with _one_dtype(self._loaded):
            drift = drift_against(self._loaded, self._answers).kl_base_tuned
        self.history.append((state.global_step, drift))
        state.log_history.append({"step": state.global_step, "drift": drift})
        if self.budget is not None and drift > self.budget:
            self.stopped = state.global_step
            control.should_training_stop = True


def _one_dtype(loaded: LoadedModel) -> AbstractContextManager[Any]:
    """Let a model whose masters are wider than the rest compute as it does while it trains."""
    dtypes = {p.dtype for p in loaded.model.parameters() if p.is_floating_point()}
    if len(dtypes) == 1:
        return nullcontext()
    narrowest = min(dtypes, key=lambda dtype: dtype.itemsize)
    return torch.autocast(loaded.model.device.type, narrowest)
