"""A pull of the weights back to the base's (L2-SP, arXiv 1802.01483).

Decoupled from the optimiser, as AdamW's decay is: in the loss Adam would scale the pull by what the
task's gradients are, so that weights which the task moves most would be held least.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class PullBack(TrainerCallback):
    """After every step bring whatever trains nearer to the base.

    W ← B + (W − B) · exp(−pull · rate / Σ rates), B being the base's weights and the sum that of
    the rates of all planned steps. So of a change that the first step makes exp(−pull) is left at
    the end, and of one halfway its root, whatever the rate and the number of steps are: with
    λ · rate in the exponent, as AdamW's decay has it, λ would have to be found anew for each.

    Works with `transformers.Trainer` and what derives from it, TRL's trainers too, for a model that
    one process holds whole (not FSDP, not DeepSpeed's stage 3).

    Args:
        pull: in e-folds over the training.
        base: what trains as the base has it, by full name. Unless given, whatever trains, as the
            first `train()` finds it: give it where a training is resumed. Held on the model's
            device.
    """

    def __init__(self, pull: float, base: Mapping[str, Tensor] | None = None) -> None:
        self.pull, self.base = pull, base
        self._of_all = math.inf

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Add up the rates of all steps, those before a resumed one too; take up the base."""
        parameters = dict(given["model"].named_parameters())
        if self.base is None:
            self.base = {n: p.detach().clone() for n, p in parameters.items() if p.requires_grad}
        # No copy on a CPU; from there to a GPU before every step it would take as long as a step.
        self.base = {name: base.to(parameters[name].device) for name, base in self.base.items()}
        self._of_all = sum_of_rates(given["lr_scheduler"], args.learning_rate, state.max_steps)

    @torch.no_grad()
    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Pull, by the rate that the step was taken with."""
        rate = float(given["optimizer"].param_groups[0]["lr"])
        share = -math.expm1(-self.pull * rate / self._of_all) if rate else 0.0
        assert self.base is not None
        for name, before in self.base.items():
            parameter = given["model"].get_parameter(name)
            parameter.lerp_(before.to(parameter), share)


def sum_of_rates(scheduler: LRScheduler, learning_rate: float, num_steps: int) -> float:
    """Return what the rates of all steps add up to.

    Args:
        scheduler: of the training. One that looks at the loss is taken to stay at the first rate.
        learning_rate: the rate that it scales.
        num_steps: of the whole training.
    """
    share_at = getattr(scheduler, "lr_lambdas", [lambda step: 1.0])[0]
    return learning_rate * math.fsum(share_at(step) for step in range(num_steps))
