"""The peak of memory during a block: of the process on a CPU, of the allocator on a GPU."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import torch


class PeakMemory:
    """Context manager; `read` gives the peak since its beginning, and after it `bytes` holds it.

    On Linux the kernel's high-water mark of this process is reset at entry, so an earlier peak
    does not count; where that is not possible `bytes` is None and not a guess.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes: int | None = None
        self._resettable = False

    def __enter__(self) -> PeakMemory:
        """Start counting."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return self
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            self._resettable = True
        except OSError:
            self._resettable = False
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Read the peak."""
        self.bytes = self.read()

    def read(self) -> int | None:
        """Return the peak so far."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if not self._resettable:
            return None
        status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        line = next(line for line in status if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
