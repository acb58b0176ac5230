"""How a model is held while it computes: its mode, and in how many bits.

Owns: evaluation mode for a while, and passes without a mixture's loss of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; every module's own mode is restored afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with without_router_logits(model):
            yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def without_router_logits(model: nn.Module) -> Iterator[None]:
    """Inside the block a mixture returns no loss that balances its experts, whatever its settings.

    Nothing here reads it, and it can't be computed for rows in lines or after a shared prefix.
    """
    config: Any = getattr(model, "config", None)
    own = (config, config.get_text_config()) if hasattr(config, "get_text_config") else ()
    asked = [each for each in own if getattr(each, "output_router_logits", False)]
    for each in asked:
        each.output_router_logits = False
    try:
        yield
    finally:
        for each in asked:
            each.output_router_logits = True


def rounds_coarsely(model: nn.Module) -> bool:
    """Whether it computes in fewer bits than fp32, so that an answer may depend on its batch."""
    return any(parameter.dtype.itemsize < 4 for parameter in model.parameters())
