"""How long each stage took, said while it runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from narrowtune.engine.heap import return_freed_pages


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
        """Time a stage; say how long it took, and on a terminal also that it has begun."""
        if self._loud and self._console.is_terminal:
            self._console.print(f"[dim]…[/] {name}", end="\r")
        started = time.perf_counter()
        yield
        return_freed_pages()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
        if self._loud:
            self._console.print(f"[green]✓[/] {name} [dim]{self.seconds[name]:.1f} s[/]")
