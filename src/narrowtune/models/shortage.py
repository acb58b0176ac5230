"""Too little memory, told from torch's other errors."""

from __future__ import annotations

import torch

_ON_A_CPU = "DefaultCPUAllocator"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on an accelerator or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and _ON_A_CPU in str(error)
    )
