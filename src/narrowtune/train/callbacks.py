"""What happens between steps: the log file, the progress bar, and the drift probe in the loop."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

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


class LogFile(TrainerCallback):
    """Appends one JSON line per logged step to `train.jsonl`.

    A resumed run continues the file: lines after the checkpoint it resumes from are dropped, so
    that every step stands in it once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._started = time.perf_counter()
        self._before = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Start the clock; keep the lines up to the step the run starts from."""
        if not state.is_world_process_zero:
            return
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        rows = [json.loads(line) for line in lines if line.endswith("}")]
        kept = [row for row in rows if row["step"] <= state.global_step]
        self.path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        self._before = kept[-1]["seconds"] if kept else 0.0
        self._started = time.perf_counter()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Write the step's numbers."""
        if not state.is_world_process_zero or logs is None or "train_runtime" in logs:
            return
        seconds = self._before + time.perf_counter() - self._started
        numbers = {key: value for key, value in logs.items() if key != "epoch"}
        row = {"step": state.global_step, "seconds": round(seconds, 3), **numbers}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


class ProgressBar(TrainerCallback):
    """A bar with loss, speed and time left; silent where the output is no terminal."""

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
        self._progress.stop()
