"""A pull towards the weights that training began with (L2-SP, arXiv 1802.01483).

Decoupled from the optimiser, as AdamW's decay is: in the loss Adam would scale the pull by what the
task's gradients are, so that weights which the task moves most would be held least.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from narrowtune.core.errors import TrainingError


class PullBack(TrainerCallback):
    """After every step W ← W − rate · λ · (W − W before training), for whatever trains.

    For a model that one process holds whole, from the first step on. A rate times λ above 1 goes
    all the way and no further.

    Args:
        strength: λ.
    """

    def __init__(self, strength: float) -> None:
        self.strength = strength
        self._pairs: list[tuple[nn.Parameter, Tensor]] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Copy what trains.

        Raises:
            TrainingError: training goes on from a checkpoint.
        """
        if state.global_step:
            raise TrainingError(
                asked="a pull towards the weights that training began with",
                found=f"a run that goes on at step {state.global_step}, with other weights",
                do="train without checkpoints, from the first step",
            )
        parameters = given["model"].parameters()
        self._pairs = [(p, p.detach().clone()) for p in parameters if p.requires_grad]

    @torch.no_grad()
    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Pull, at the rate that the step was taken with."""
        share = min(1.0, self.strength * float(given["optimizer"].param_groups[0]["lr"]))
        for parameter, before in self._pairs:
            parameter.lerp_(before, share)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Let go of the copies."""
        self._pairs = []
