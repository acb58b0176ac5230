"""How a model is held while it computes: its mode, and in how many bits.

Owns: evaluation mode for a while.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; every module's own mode is restored afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def rounds_coarsely(model: nn.Module) -> bool:
    """Whether it computes in fewer bits than fp32, so that an answer may depend on its batch."""
    return any(parameter.dtype.itemsize < 4 for parameter in model.parameters())
