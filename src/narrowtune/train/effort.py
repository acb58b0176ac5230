"""What a training takes, over all the parts that a resumed run has."""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import TracebackType

import torch

from narrowtune.engine.energy import EnergyMeter
from narrowtune.engine.peak import PeakMemory


@dataclass(frozen=True)
class Effort:
    """Seconds, memory and energy.

    Attributes:
        seconds: of all parts together. What a run did after its last checkpoint and before it was
            stopped is lost, and does not count.
        peak_memory_bytes: of the part that took most; None if it is not known of every part.
        energy_kwh: of all parts together; None if it is not known of every part.
    """

    seconds: float = 0.0
    peak_memory_bytes: int | None = None
    energy_kwh: float | None = None

    def then(self, later: Effort) -> Effort:
        """Return the effort of this part and a later one."""
        peaks = self.peak_memory_bytes, later.peak_memory_bytes
        energies = self.energy_kwh, later.energy_kwh
        return Effort(
            seconds=self.seconds + later.seconds,
            peak_memory_bytes=None if None in peaks else max(p for p in peaks if p is not None),
            energy_kwh=None if None in energies else sum(e for e in energies if e is not None),
        )


class EffortMeter:
    """Context manager that measures one part, and adds it to the earlier ones.

    Args:
        device: whose memory counts.
        energy: measures energy; None leaves it out.

    Attributes:
        earlier: what earlier parts of the run took; None for a run's first part.
    """

    def __init__(self, device: torch.device, energy: EnergyMeter | None = None) -> None:
        self.earlier: Effort | None = None
        self._peak = PeakMemory(device)
        self._energy = energy
        self._started = 0.0
        self._ended: Effort | None = None

    def __enter__(self) -> EffortMeter:
        """Start the clock; what measures energy is looked for before."""
        if self._energy is not None:
            self._energy.start()
        self._peak.__enter__()
        self._started = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the clock."""
        seconds = time.perf_counter() - self._started
        self._peak.__exit__(kind, value, trace)
        energy = self._energy.stop() if self._energy is not None else None
        self._ended = Effort(seconds, self._peak.bytes, energy)

    def read(self) -> Effort:
        """Return what the run has taken so far, or at the end of the block."""
        part = self._ended
        if part is None:
            energy = self._energy.read() if self._energy is not None else None
            part = Effort(time.perf_counter() - self._started, self._peak.read(), energy)
        return part if self.earlier is None else self.earlier.then(part)
