"""A pull of the weights back to the base's (L2-SP, arXiv 1802.01483).

Decoupled from the optimiser, as AdamW's decay is: in the loss Adam would scale the pull by what the
task's gradients are, so that weights which the task moves most would be held least.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from narrowtune.core.errors import UsageError


class PullBack(TrainerCallback):
    """After every step bring whatever trains nearer to the base.

    W ← B + (W − B) · exp(−pull · s), B being the base's weights and s the step's share of the rates
    of all planned steps. So of a change that the first step makes exp(−pull) is left at the end,
    and of one halfway its root, whatever the rate and the number of steps are: with λ · rate in
    the exponent, as AdamW's decay has it, λ would have to be found anew for each.

    Works with `transformers.Trainer` and what derives from it, TRL's trainers too, for weights in
    fp32 that one process holds whole: not with FSDP, nor with DeepSpeed, whose weights are copies
    of others. Another model needs a callback of its own.

    Args:
        pull: in e-folds over the training.
        base: what trains as the base has it, by full name; other names are passed over. Unless
            given, whatever trains, as the first `train()` finds it: where a training is resumed it
            has to be given. Held on the model's device.

    Raises:
        UsageError: when training begins: it is resumed and has no base; or weights are in fewer
            bits than fp32, which rounding would hold where they are, or the base has none of them,
            or of another shape.
    """

    def __init__(self, pull: float, base: Mapping[str, Tensor] | None = None) -> None:
        self.pull, self.base = pull, base
        self._pairs: list[tuple[nn.Parameter, Tensor]] = []
        self._shares: list[float] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Take up the base; share the pull out over all steps, those before a resumed one too."""
        trains = {n: p for n, p in given["model"].named_parameters() if p.requires_grad}
        if self.base is None and state.global_step > 0:
            raise UsageError(
                asked="weights that are pulled back to the base's",
                found=f"a training that is resumed at step {state.global_step}, and no base: its "
                "checkpoint would be taken for it",
                do="give the weights from before the first step: PullBack(pull, base), base a dict "
                "from full names to tensors",
            )
        if self.base is None:
            self.base = {name: parameter.detach().clone() for name, parameter in trains.items()}
        _check(trains, self.base)
        # No copy on a CPU; from there to a GPU before every step it would take as long as a step.
        self._pairs = [(p, self.base[name].to(p.device)) for name, p in trains.items()]
        self._shares = shares_of_steps(given["lr_scheduler"], state.max_steps)

    @torch.no_grad()
    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Pull, by the step's share."""
        share = -math.expm1(-self.pull * self._shares[state.global_step])
        for parameter, before in self._pairs:
            parameter.lerp_(before.to(parameter), share)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Let the copies on a device go."""
        self._pairs = []


def shares_of_steps(scheduler: LRScheduler, num_steps: int) -> list[float]:
    """Return which share of the rates of all steps each of them has; they add up to 1.

    Args:
        scheduler: of the training. Of one whose rates are no function of the step alone, as where
            the loss decides, all steps have the same share.
        num_steps: of the whole training.
    """
    own = getattr(scheduler, "scheduler", scheduler)  # as accelerate wraps it
    rate_at = getattr(own, "lr_lambdas", [lambda step: 1.0])[0]
    rates = [float(rate_at(step)) for step in range(num_steps)]
    total = math.fsum(rates)
    return [rate / total for rate in rates] if total > 0 else [1 / num_steps] * num_steps


def _check(trains: Mapping[str, nn.Parameter], base: Mapping[str, Tensor]) -> None:
    coarse = [name for name, parameter in trains.items() if parameter.dtype.itemsize < 4]
    other = [n for n, p in trains.items() if n not in base or base[n].shape != p.shape]
    same = [
        name
        for name, parameter in trains.items()
        if name in base and base[name].data_ptr() == parameter.data_ptr()
    ]
    for names, found, do in (
        (
            coarse,
            "in fewer bits than fp32",
            "hold what trains in fp32: narrowtune.select(model, recipe, dtype=torch.float32)",
        ),
        (other, "of which the base has none, or one of another shape", "give the base of all"),
        (same, "that the base shares its memory with", "give copies: tensor.detach().clone()"),
    ):
        if names:
            raise UsageError(
                asked="weights that are pulled back to the base's",
                found=f"{len(names)} that train {found}, such as {names[0]}",
                do=do,
            )
