"""What happens between steps: the log file and the progress bar."""

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

from narrowtune.core.json_lines import read_json_lines


class LogFile(TrainerCallback):
    """Appends one JSON line per logged step to `train.jsonl`.

    A resumed run continues the file: lines after the checkpoint it resumes from are dropped, so
    that every step stands in it once, and so is a last one that a kill cut short. What another
    callback adds to the state's `log_history` (drift) is written too, in the line of its step if
    that has one.
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
        rows = self._read() if state.global_step > 0 else []
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

    def _read(self) -> list[dict[str, Any]]:
        asked = f"to go on with the log in {self.path}"
        without = "the log then lacks its step, and the training is the same"
        return [row for _, row in read_json_lines(self.path, asked, without=without)]

    def _write(self, state: TrainerState) -> None:
        added = state.log_history[self._num_written :]
        self._num_written = len(state.log_history)
        if not state.is_world_process_zero:
            return
        seconds = self._before + time.perf_counter() - self._started
        rows: dict[int, dict[str, Any]] = {}
        for entry in added:
            if "train_runtime" not in entry:
                row = rows.setdefault(int(entry["step"]), {"seconds": round(seconds, 3)})
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
