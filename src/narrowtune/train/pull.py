"""A pull of the weights back to the base's (L2-SP, arXiv 1802.01483).

Decoupled from the optimiser, as AdamW's decay is: in the loss Adam would scale the pull by what the
task's gradients are, so that weights which the task moves most would be held least.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class PullBack(TrainerCallback):
    """After every step W ← W − rate · λ · (W − W of the base), for whatever trains.

    For a model that one process holds whole. A rate times λ above 1 goes all the way and no
    further.

    Args:
        strength: λ.
        base: what trains as the base has it, by full name, on the model's device.
    """

    def __init__(self, strength: float, base: Mapping[str, Tensor]) -> None:
        self.strength, self.base = strength, base

    @torch.no_grad()
    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Pull, at the rate that the step was taken with."""
        share = min(1.0, self.strength * float(given["optimizer"].param_groups[0]["lr"]))
        for name, before in self.base.items():
            parameter = given["model"].get_parameter(name)
            parameter.lerp_(before.to(parameter), share)
