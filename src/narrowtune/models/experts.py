"""A mixture's experts under autocast.

torch autocasts products of linear layers, and not `grouped_mm`, by which transformers multiplies
the tokens of each expert: experts held in fp32 while they train would be multiplied in fp32,
whatever a run computes in. Owns: making them follow.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def follow_autocast(model: nn.Module) -> None:
    """Have experts of `model` compute in the dtype that autocast asks for, where it does.

    Parameters keep their dtype and get their gradients in it, as those of linear layers do.
    """
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        if {"gate_up_proj", "down_proj"} <= set(own) and own["down_proj"].ndim == 3:
            module.register_forward_pre_hook(_narrow)
            # Also after an error: what is left would be computed with for good.
            module.register_forward_hook(_forget, always_call=True)


def _narrow(module: nn.Module, _: Any) -> None:
    for name, parameter in module.named_parameters(recurse=False):
        kind = parameter.device.type
        if not torch.is_autocast_enabled(kind):
            return
        dtype = torch.get_autocast_dtype(kind)
        if parameter.dtype != dtype:
            # Found before the parameter, which stays where it is for whoever lists them.
            module.__dict__[name] = parameter.to(dtype)


def _forget(module: nn.Module, *_: Any) -> None:
    for name, _parameter in module.named_parameters(recurse=False):
        module.__dict__.pop(name, None)
