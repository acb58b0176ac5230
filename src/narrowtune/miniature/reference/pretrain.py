"""How a reference model is pre-trained: first its tower sees, then all of it answers.

Owns: the two stages, their schedule and their checkpoints. A tower that starts from dense patch
labels gives the language model something to talk about; all at once from random weights stays at
chance for a long time.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from narrowtune.core.errors import UsageError
from narrowtune.miniature.canvas import SIZE
from narrowtune.miniature.marks import HUES, WHAT
from narrowtune.miniature.reference.architectures import PATCH, Blueprint
from narrowtune.miniature.reference.batches import (
    LABELLED_PATCH,
    Batch,
    Steps,
    Writer,
    collate_samples,
    load_steps,
)
from narrowtune.miniature.reference.eyes import SEE
from narrowtune.miniature.reference.forward import (
    PatchHead,
    answer_logits,
    answer_loss,
    hidden_states,
    plain_attention,
)
from narrowtune.miniature.registry import LEVELS, TASKS

_NOTHING_WEIGHT = 0.2  # most patches show nothing, and that is soon learned
_DECAY = 0.25  # share of a stage over which its rate falls to nothing
_WARMUP = 100  # steps
_NUM_CHECKED = 64  # samples of each task that the log's accuracy is of
_CHECK_EVERY = 5  # lines of the log
_REVIEW = (0.0, 1 / 3, 1 / 3, 0.15)  # share of a level's samples that is of those before it
_AHEAD = 0.25  # share of the level before the last that is of the last
_PAGES = 0.7  # weight of pages of letters for each other task, while the tower learns to see
_HARD = ("diagrams", "charts", "forms", "infographics")  # drawn twice as often as others
_STAGES = ("seeing", "answering")


@dataclass(frozen=True)
class Schedule:
    """How long and how fast both stages learn.

    Attributes:
        seed: of weights and samples.
        seeing_steps, answering_steps: optimiser steps of the two stages.
        batch_size: samples per step.
        micro_batches: parts of a step, each with questions of like length.
        learning_rate: highest of both stages.
        tower_factor: what the tower's rate is multiplied by while the model learns to answer.
        level_starts: shares of the answering steps after which each later level begins.
    """

    seed: int = 0
    seeing_steps: int = 1000
    answering_steps: int = 6000
    batch_size: int = 64
    micro_batches: int = 2
    learning_rate: float = 2e-3
    tower_factor: float = 0.2
    level_starts: tuple[float, ...] = (0.02, 0.07, 0.2)


@dataclass
class Progress:
    """One line of the log.

    Attributes:
        stage: `seeing` or `answering`.
        step: optimiser steps done.
        seconds: of this stage so far, earlier starts included.
        loss: mean since the last line.
        accuracy: share of what was asked that was right, by task or kind, on new samples.
    """

    stage: str
    step: int
    seconds: float
    loss: float
    accuracy: dict[str, float]


def answering_shares(schedule: Schedule) -> list[tuple[int, Mapping[str, float]]]:
    """Return from which step on which tasks are drawn, and how often.

    Each level keeps a part of its samples for the levels before it, so that nothing is forgotten on
    the way; the level before the last has a part of the last, whose letters take long to find.
    """
    starts = (0.0, *schedule.level_starts)
    found: list[tuple[int, Mapping[str, float]]] = []
    earlier: list[str] = []
    for start, level, review in zip(starts, LEVELS, _REVIEW, strict=True):
        ahead = _AHEAD if level == LEVELS[-2] else 0.0
        parts = ((level, 1 - review - ahead), (earlier, review), (LEVELS[-1], ahead))
        shares: dict[str, float] = {}
        for names, share in parts:
            weights = _weights(names)
            for name, weight in weights.items():
                if share:
                    added = share * weight / sum(weights.values())
                    shares[name] = shares.get(name, 0.0) + added
        found.append((round(start * schedule.answering_steps), shares))
        earlier = list(dict.fromkeys((*earlier, *level)))
    return found


def _weights(names: Sequence[str]) -> dict[str, float]:
    return {name: 2.0 if name in _HARD else 1.0 for name in names}


def seeing_shares() -> list[tuple[int, Mapping[str, float]]]:
    """Return every task: labels say what is where, and no question is asked.

    The skills' pictures are among them, as a published tower has seen birds and clocks before
    anyone asks it for their names.
    """
    return [(0, {**_weights(list(TASKS)), "pages": _PAGES * len(TASKS)})]


def rate_factor(step: int, num_steps: int) -> float:
    """Return the share of the highest rate at a step: up, level, and down to nothing."""
    decay = max(1, round(_DECAY * num_steps))
    return min(1.0, (step + 1) / _WARMUP, (num_steps - step) / decay)


class Pretraining:
    """A reference model on its way, in a folder that it can go on from."""

    def __init__(
        self, blueprint: Blueprint, folder: Path, schedule: Schedule, *, compiled: bool
    ) -> None:
        """Start, or go on where `folder` has a checkpoint.

        Args:
            folder: gets the model's files, log.jsonl and checkpoints.
            compiled: True for `torch.compile`, several times as fast on a CPU.
        """
        self.blueprint, self.folder, self.schedule = blueprint, folder, schedule
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer = blueprint.tokenizer()
        self.model: PreTrainedModel = blueprint.build(self.tokenizer, seed=schedule.seed)
        self.model.train()
        self.writer = Writer(self.tokenizer, blueprint.picture, blueprint.placeholder)
        self.padding = int(self.tokenizer.pad_token_id)
        self._checks: dict[tuple[str, str], Batch] = {}
        with torch.no_grad():
            size = SEE[blueprint.name](self.model, torch.zeros(1, 3, SIZE, SIZE)).shape[-1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(schedule.seed)
            self.head = PatchHead(size, PATCH // LABELLED_PATCH, len(WHAT), len(HUES))
        see = SEE[blueprint.name]
        self._see: Callable[[PreTrainedModel, Tensor], Tensor] = see
        self._hidden: Callable[[PreTrainedModel, Batch, Tensor], Tensor] = hidden_states
        if compiled:
            self._see = torch.compile(see, dynamic=False)
            self._hidden = torch.compile(hidden_states, dynamic=False)

    def run(self, report: Callable[[Progress], None], *, log_every: int = 100) -> None:
        """Do what is missing of both stages; the model in memory is the finished one."""
        tower = list(self._tower().parameters())
        self._stage(
            "seeing",
            self.schedule.seeing_steps,
            [{"params": [*tower, *self.head.parameters()], "factor": 1.0}],
            seeing_shares(),
            report,
            log_every,
        )
        inside = {id(parameter) for parameter in tower}
        rest = [p for p in self.model.parameters() if id(p) not in inside]
        self._stage(
            "answering",
            self.schedule.answering_steps,
            [
                {"params": rest, "factor": 1.0},
                {"params": tower, "factor": self.schedule.tower_factor},
            ],
            answering_shares(self.schedule),
            report,
            log_every,
        )

    def save(self) -> Path:
        """Write the model in bf16 to the folder's `model/`, and return that."""
        part, whole = self.folder / "model.part", self.folder / "model"
        self.blueprint.write(self.model.eval().to(torch.bfloat16), self.tokenizer, part)
        if whole.exists():
            shutil.rmtree(whole)
        part.replace(whole)
        return whole

    def _tower(self) -> nn.Module:
        tower: nn.Module = self.model.get_submodule(self.blueprint.tower)
        return tower

    def _stage(
        self,
        stage: str,
        num_steps: int,
        groups: list[dict[str, Any]],
        shares: Sequence[tuple[int, Mapping[str, float]]],
        report: Callable[[Progress], None],
        log_every: int,
    ) -> None:
        parameters = [p for group in groups for p in group["params"]]
        optimizer = torch.optim.AdamW(
            groups, lr=self.schedule.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
        )
        first, before = self._restore(stage, optimizer)
        started = time.monotonic()
        steps = Steps(
            self.writer,
            self.padding,
            shares,
            batch_size=self.schedule.batch_size,
            micro_batches=self.schedule.micro_batches,
            seed=self.schedule.seed + (1 if stage == "answering" else 0),
            first=first,
            last=num_steps,
            patches=stage == "seeing",
        )
        losses: list[float] = []
        for step, parts in enumerate(load_steps(steps, in_background=True), first):
            factor = rate_factor(step, num_steps)
            for group in optimizer.param_groups:
                group["lr"] = self.schedule.learning_rate * factor * group["factor"]
            losses.append(self._learn(stage, parts))
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if (step + 1) % log_every == 0 or step + 1 == num_steps:
                seconds = before + time.monotonic() - started
                checked = (step + 1) % (_CHECK_EVERY * log_every) == 0 or step + 1 == num_steps
                accuracy = self._accuracy(stage) if checked else {}
                found = Progress(stage, step + 1, seconds, sum(losses) / len(losses), accuracy)
                losses.clear()
                self._checkpoint(stage, optimizer, step + 1, seconds)
                with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(found)) + "\n")
                report(found)

    def _learn(self, stage: str, parts: Sequence[Batch]) -> float:
        """Put a step's gradients into the parameters; return its loss."""
        total = 0.0
        num_samples = sum(len(part.labels) for part in parts)
        for part in parts:
            with plain_attention(), torch.autocast("cpu", torch.bfloat16):
                states = self._see(self.model, part.pixels)
                if stage == "seeing":
                    what, hue = self.head(states)
                    loss = patch_loss(what, hue, part) / len(parts)
                else:
                    hidden = self._hidden(self.model, part, states)
                    logits, labels = answer_logits(self.model, hidden, part.labels)
                    loss = answer_loss(logits, labels, part.labels) / num_samples
            loss.backward()
            total += loss.item()
        return total

    @torch.no_grad()
    def _accuracy(self, stage: str) -> dict[str, float]:
        """Return how much is right on the first samples of the validation split."""
        if stage == "seeing":
            tasks = ["pages", "reading", "captions", "forms", "diagrams"]
        else:
            tasks = list(dict.fromkeys(name for level in LEVELS for name in level))
        found = {}
        for name in tasks:
            batch = self._check(stage, name)
            with torch.autocast("cpu", torch.bfloat16):
                states = SEE[self.blueprint.name](self.model, batch.pixels)
                if stage == "seeing":
                    what, _ = self.head(states)
                    shown = batch.what > 0  # type: ignore[operator]
                    right = what.argmax(-1)[shown] == batch.what[shown]  # type: ignore[index]
                    found[name] = float(right.float().mean())
                    continue
                hidden = hidden_states(self.model, batch, states)
                logits, labels = answer_logits(self.model, hidden, batch.labels)
            lengths = (batch.labels[:, 1:] >= 0).sum(1).tolist()
            right = (logits.argmax(-1) == labels).split(lengths)
            found[name] = sum(bool(each.all()) for each in right) / len(right)
        return found

    def _check(self, stage: str, name: str) -> Batch:
        """Return the samples of a task that the log's accuracy is of; they are drawn once."""
        key = stage, name
        if key not in self._checks:
            samples = list(TASKS[name].samples("validation", _NUM_CHECKED, self.schedule.seed))
            patches = stage == "seeing"
            self._checks[key] = collate_samples(samples, self.writer, self.padding, patches=patches)
        return self._checks[key]

    def _checkpoint(
        self, stage: str, optimizer: torch.optim.Optimizer, step: int, seconds: float
    ) -> None:
        state = {
            "name": self.blueprint.name,
            "stage": stage,
            "step": step,
            "seconds": seconds,
            "schedule": asdict(self.schedule),
            "model": self.model.state_dict(),
            "head": self.head.state_dict(),
            "optimizer": optimizer.state_dict(),
        }
        part = self.folder / "checkpoint.part"
        torch.save(state, part)
        part.replace(self.folder / "checkpoint.pt")

    def _restore(self, stage: str, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
        """Take up a checkpoint; return the step to go on from and the seconds spent so far."""
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return 0, 0.0
        state = torch.load(path, weights_only=True)
        if (state["name"], state["schedule"]) != (self.blueprint.name, asdict(self.schedule)):
            raise UsageError(
                asked=f"to go on with the pre-training in {self.folder}",
                found=f"it was started for {state['name']} with {state['schedule']}",
                do="give the same settings, or another folder",
            )
        self.model.load_state_dict(state["model"])
        self.head.load_state_dict(state["head"])
        if state["stage"] != stage:
            done = _STAGES.index(state["stage"]) > _STAGES.index(stage)
            return (self.schedule.seeing_steps if done else 0), 0.0
        optimizer.load_state_dict(state["optimizer"])
        return state["step"], state["seconds"]


def patch_loss(what: Tensor, hue: Tensor, batch: Batch) -> Tensor:
    """Return the mean cross-entropy of what patches show and of its colour.

    Patches that show nothing count a fifth; they have no colour.
    """
    assert batch.what is not None
    assert batch.hue is not None
    weights = torch.ones(len(WHAT))
    weights[0] = _NOTHING_WEIGHT
    shown = batch.what > 0
    return functional.cross_entropy(
        what.float().flatten(0, 1), batch.what.flatten(), weight=weights
    ) + functional.cross_entropy(hue.float()[shown], batch.hue[shown])
