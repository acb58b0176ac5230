"""How long each stage took, said while it runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from narrowtune.core.errors import ModelError, TrainingError
from narrowtune.engine.heap import return_freed_pages
from narrowtune.models.shortage import is_out_of_memory

_IN_TRAINING = (
    "in a new run, lower training.per_device_train_batch_size (a step's rows stay as many), set "
    "training.gradient_checkpointing: true or training.quantize_frozen, or lower max_length where "
    "few rows are long; narrowtune plan says what each of these needs"
)
_IN_ANSWERING = (
    "start it again with a lower eval_batch_size (narrowtune teach: with --resume); what was "
    "trained is kept"
)
_LESS_IN = {
    "load the model": "load it in bfloat16 (dtype), or on a device with more memory",
    "evaluate the base": _IN_ANSWERING,
    "answer the anchor's prompts": _IN_ANSWERING,
    "plan": _IN_TRAINING,
    "train": _IN_TRAINING,
    "dial": _IN_ANSWERING,
    "evaluate the tuned model": _IN_ANSWERING,
    "drift": _IN_ANSWERING,
    "look beyond the dial": _IN_ANSWERING,
}
"""What takes less memory, by stage."""

_ALIKE = ("load the model", "read the data", "measure the arithmetic", "evaluate the base")
"""Stages that need as much memory whatever is trained: no other way of a comparison would fit."""


class Stopwatch:
    """Seconds by stage, in the order in which the stages ran; what one frees, the next may take.

    Args:
        console: where a stage is announced.
        loud: whether to announce at all (one process of several does).
    """

    def __init__(self, console: Console, *, loud: bool) -> None:
        self.seconds: dict[str, float] = {}
        self._console = console
        self._loud = loud

    def warn(self, text: str) -> None:
        """Say something that the user should know before the next stage."""
        if self._loud:
            self._console.print(f"[yellow]![/] {text}")

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage; say how long it took, and on a terminal also that it has begun.

        Raises:
            TrainingError: there was too little memory for it.
            ModelError: and there would be for any way to train this model.
        """
        if self._loud and self._console.is_terminal:
            self._console.print(f"[dim]…[/] {name}", end="\r")
        started = time.perf_counter()
        try:
            yield
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            kind = ModelError if name in _ALIKE else TrainingError
            raise kind(
                asked=f"to {name}",
                found=f"too little memory: {str(error).splitlines()[0]}",
                do=_LESS_IN.get(name, "use a device, or a machine, with more memory"),
            ) from error
        return_freed_pages()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
        if self._loud:
            self._console.print(f"[green]✓[/] {name} [dim]{self.seconds[name]:.1f} s[/]")
