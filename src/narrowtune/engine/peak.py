"""The peak of memory during a block: of the process on a CPU, of the allocator on a GPU."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import torch


class PeakMemory:
    """Context manager; afterwards `bytes` is the peak inside the block.

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
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device)
        elif self._resettable:
            status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
            line = next(line for line in status if line.startswith("VmHWM:"))
            self.bytes = int(line.split()[1]) * 1024
