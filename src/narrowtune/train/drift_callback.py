"""The drift probe in the loop: how far the model is from the base while any Trainer trains it.

Owns: when drift is measured, and what happens where it is over its budget.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate.utils import broadcast_object_list, extract_model_from_parallel
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from narrowtune.core.config import DriftAction
from narrowtune.core.errors import TrainingError, UsageError
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.examples import Message, Text
from narrowtune.engine.forward import LOGITS_AT_ONCE
from narrowtune.models.families import find_family
from narrowtune.models.load import LoadedModel
from narrowtune.models.swap import WeightSwap
from narrowtune.probe.drift import BaseAnswers, prepare_base_answers
from narrowtune.probe.watch import Reading, Watch

LOWERED = 0.5
"""What the learning rate is multiplied by at each measurement over the budget."""

RAISED = 2.0
"""The same for the anchor's weight."""

BESIDE_KL = ("number_bias", "base_number_bias", "format_valid")
"""Fields of a `Reading` that are logged under their own names, where there are figures."""


class HasWeight(Protocol):
    """What holds the model to the base, and how much."""

    weight: float


class DriftCallback(TrainerCallback):
    """Measures how far the model has drifted from the base while any Trainer trains it.

    Needs no labels: before the first step the model answers some prompts; every `every` steps
    KL(base‖now) is measured along those answers, logged as `drift`, and held against `budget`.
    The same forward gives the number-token bias (`number_bias`, and the base's as
    `base_number_bias`) and the share of prompts that are still answered in the form of the base's
    answer, by the first token (`format_valid`); `Reading` says what each is.
    The base is the model as the first `train()` finds it: a second one with the same callback goes
    on measuring from there. Another model needs a callback of its own.
    Works with `transformers.Trainer` and what derives from it, TRL's trainers too.

    Args:
        prompts: texts, each the user's turn of a prompt, or whole prompts.
        every: optimiser steps between two measurements.
        budget: KL in nats per token above which something is done; None only measures.
        action: what: `stop` training, `lower_rate` by `LOWERED`, or `raise_anchor` by `RAISED`; the
            two last again at every measurement that is still over the budget.
        anchor: whose weight is raised.
        max_new_tokens: length of the base's answers.
        batch_size: prompts answered together.
        encoder: the chat template; that of the trainer's tokenizer unless given.

    Attributes:
        readings: (step, `Reading`), one pair per measurement.
        stopped: the step at which the budget stopped the last training, if it did.
        acted: steps at which the rate was lowered or the weight raised.
        seconds: spent on measuring, the base's answers included; of a run that is resumed, what was
            logged of earlier parts and these answers anew.
        swap: brings the base back; needed to measure a run that is resumed.

    Raises:
        UsageError: no prompts, an anchor to raise that is not there; when training begins, if the
            trainer has no tokenizer as `processing_class`.
    """

    def __init__(
        self,
        prompts: Sequence[str | Sequence[Message]],
        *,
        every: int = 50,
        budget: float | None = None,
        action: DriftAction = "stop",
        anchor: HasWeight | None = None,
        max_new_tokens: int = 32,
        batch_size: int = 16,
        encoder: ChatEncoder | None = None,
    ) -> None:
        if every < 1 or not prompts:
            raise UsageError(
                asked=f"drift on {len(prompts)} prompts every {every} steps",
                found="no prompt, or no step between two measurements",
                do="give at least one prompt and every=1 or more",
            )
        if action == "raise_anchor" and anchor is None:
            raise UsageError(
                asked="to raise the anchor's weight where drift is over its budget",
                found="no anchor",
                do="give the anchor, or choose stop or lower_rate",
            )
        self.prompts = [
            (Message("user", (Text(prompt),)),) if isinstance(prompt, str) else tuple(prompt)
            for prompt in prompts
        ]
        self.every, self.budget, self.action, self.anchor = every, budget, action, anchor
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size
        self.readings: list[tuple[int, Reading]] = []
        self.stopped: int | None = None
        self.acted: list[int] = []
        self.seconds = 0.0
        self.swap: WeightSwap | None = None
        self._encoder = encoder
        self._loaded: LoadedModel | None = None
        self._answers: BaseAnswers | None = None
        self._watch: Watch | None = None

    @property
    def history(self) -> list[tuple[int, float]]:
        """(step, KL in nats per token), one pair per measurement."""
        return [(step, reading.kl) for step, reading in self.readings]

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        processing_class: Any = None,
        **_: Any,
    ) -> None:
        """Let the base answer, the first time, and keep its distributions."""
        self.stopped = None
        if state.global_step > 0 and self._answers is None and self.swap is None:
            raise TrainingError(
                asked=f"drift of a run that is resumed at step {state.global_step}",
                found="a model that is no longer the base",
                do="leave the DriftCallback out when resuming, or start again",
            )
        if processing_class is None:
            raise UsageError(
                asked="drift while training",
                found="a trainer without a tokenizer",
                do="give the trainer processing_class=tokenizer",
            )
        tokenizer = getattr(processing_class, "tokenizer", processing_class)
        processor = processing_class if tokenizer is not processing_class else None
        inner = extract_model_from_parallel(model)
        self._loaded = LoadedModel(
            model=inner,
            tokenizer=tokenizer,
            processor=processor,
            family=find_family(inner),
            source=type(model).__name__,
            folder=Path(),
            dtype=next(model.parameters()).dtype,
        )
        self.take_up(state)
        if self._answers is None:
            started = time.perf_counter()
            most = len(self.prompts) * self.max_new_tokens
            vocabulary = inner.get_output_embeddings().weight.shape[0]
            encoder = self._encoder or ChatEncoder(tokenizer, processor)
            self._watch = Watch(self._loaded, encoder)
            with _one_dtype(self._loaded):
                self._answers = prepare_base_answers(
                    self._loaded,
                    self.swap,
                    [("prompts", messages) for messages in self.prompts],
                    encoder,
                    max_new_tokens=self.max_new_tokens,
                    batch_size=self.batch_size,
                    # Where the base can come back, many logits are rather computed again.
                    keep_logits=self.swap is None or most * vocabulary <= 4 * LOGITS_AT_ONCE,
                    collect=self._watch.collect,
                )
            self.seconds += time.perf_counter() - started

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        lr_scheduler: Any = None,
        **_: Any,
    ) -> None:
        """Measure, and act if the budget is spent."""
        if state.global_step % self.every or self._loaded is None or self._answers is None:
            return
        assert self._watch is not None
        started = time.perf_counter()
        swap = self.swap if self._answers.logits is None else None
        with _one_dtype(self._loaded):
            reading = self._watch.read(self._loaded, self._answers, swap)
        # Devices may differ in the last digits, and have to stop or go on together.
        [drift] = broadcast_object_list([reading.kl])
        took = time.perf_counter() - started
        self.seconds += took
        reading = replace(reading, kl=drift)
        self.readings.append((state.global_step, reading))
        found = {"step": state.global_step, **_logged(reading), "drift_seconds": round(took, 4)}
        if self.budget is not None and drift > self.budget:
            if self.action == "stop":
                self.stopped = state.global_step
                control.should_training_stop = True
            else:
                self.acted.append(state.global_step)
                found |= self._act(optimizer, lr_scheduler)
        state.log_history.append(found)

    def has_stopped(self, log_history: Sequence[Mapping[str, Any]], step: int) -> bool:
        """Whether a run was stopped at `step`, by what it logged; then it is not to go on.

        The order to stop is in no checkpoint, only what led to it.
        """
        found = [e["drift"] for e in log_history if e.get("step") == step and "drift" in e]
        if self.action != "stop" or self.budget is None or not found or found[-1] <= self.budget:
            return False
        self.stopped = step
        return True

    def _act(self, optimizer: Any, lr_scheduler: Any) -> dict[str, float]:
        """Lower the rate or raise the weight; return what is to be logged."""
        if self.action == "raise_anchor":
            assert self.anchor is not None
            self.anchor.weight *= RAISED
            return {"anchor_weight": self.anchor.weight}
        for group in optimizer.param_groups:
            group["lr"] *= LOWERED
        # Schedules multiply these; they are in checkpoints, so a resumed run has them too.
        schedule = getattr(lr_scheduler, "scheduler", lr_scheduler)
        if hasattr(schedule, "base_lrs"):
            schedule.base_lrs = [rate * LOWERED for rate in schedule.base_lrs]
        return {"rate_lowered": LOWERED}

    def take_up(self, state: TrainerState) -> None:
        """Go on where a run is resumed: with what was measured, and the anchor's weight."""
        if not self.readings:
            self.readings = [
                (int(entry["step"]), Reading(entry["drift"], *map(entry.get, BESIDE_KL)))
                for entry in state.log_history
                if "drift" in entry
            ]
            self.seconds += sum(entry.get("drift_seconds", 0.0) for entry in state.log_history)
        weights = [
            entry["anchor_weight"] for entry in state.log_history if "anchor_weight" in entry
        ]
        if weights and self.anchor is not None and not self.acted:
            self.anchor.weight = weights[-1]


def _logged(reading: Reading) -> dict[str, float]:
    beside = {name: getattr(reading, name) for name in BESIDE_KL}
    return {"drift": reading.kl, **{k: v for k, v in beside.items() if v is not None}}


def _one_dtype(loaded: LoadedModel) -> AbstractContextManager[Any]:
    """Let a model whose masters are wider than the rest compute as it does while it trains."""
    dtypes = {p.dtype for p in loaded.model.parameters() if p.is_floating_point()}
    if len(dtypes) == 1:
        return nullcontext()
    narrowest = min(dtypes, key=lambda dtype: dtype.itemsize)
    return torch.autocast(loaded.model.device.type, narrowest)
