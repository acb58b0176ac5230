"""How a reference model is pre-trained: the tower sees, the language model reads, both answer.

Owns: the four stages and their checkpoints. A tower that starts from dense patch labels gives the
language model something to talk about, and a language model that has answered the same questions
about words knows how; all at once from random weights stays at chance for a long time. What reads
along rows rises most while the rate falls, so it falls twice: the last stage begins high once more.
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
from transformers import PreTrainedModel

from narrowtune.core.errors import UsageError
from narrowtune.miniature.marks import HUES, WHAT, WRITTEN
from narrowtune.miniature.reference.architectures import Blueprint
from narrowtune.miniature.reference.batches import (
    Batch,
    Steps,
    Writer,
    collate_samples,
    collate_told,
    load_steps,
)
from narrowtune.miniature.reference.eyes import SEE, See, covering
from narrowtune.miniature.reference.forward import (
    PatchHead,
    States,
    answer_lengths,
    answer_logits,
    hidden_states,
    plain_attention,
)
from narrowtune.miniature.reference.losses import (
    answer_loss,
    hint_loss,
    patch_accuracy,
    patch_loss,
    size_loss,
)
from narrowtune.miniature.reference.optimizers import Named, make_optimizers, rate_factor
from narrowtune.miniature.reference.schedule import (
    TOLD,
    Schedule,
    answering_shares,
    finishing_shares,
    reading_shares,
    seeing_shares,
)
from narrowtune.miniature.reference.visual_words import VisualWords
from narrowtune.miniature.registry import LEVELS, TASKS

_NUM_CHECKED = 64  # samples of each task that the log's accuracy is of
_CHECK_EVERY = 5  # lines of the log
_SEEN_TASKS = ("pages", "reading", "captions", "forms", "diagrams")  # checked in the first stage
_STAGES = ("seeing", "reading", "answering", "finishing")
_DECAYS = {"finishing": 0.5}  # shares of a stage's steps over which its rate falls
_DECAY = 0.25  # the same of the other stages
_SEEDS = {
    "seeing": 0,
    "reading": 2,
    "answering": 1,
    "finishing": 3,
}  # of samples, behind the schedule's own
_KINDS = (len(WHAT), len(HUES), len(WRITTEN))
_SEEN, _LOG = "seeing.pt", "log.jsonl"


@dataclass
class Progress:
    """One line of the log.

    Attributes:
        stage: `seeing`, `reading`, `answering` or `finishing`.
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


class Pretraining:
    """A reference model on its way, in a folder that it can go on from."""

    def __init__(
        self,
        blueprint: Blueprint,
        folder: Path,
        schedule: Schedule,
        *,
        compiled: bool,
        compute_dtype: torch.dtype = torch.bfloat16,
        seen_in: Path | None = None,
    ) -> None:
        """Start, or go on where `folder` has a checkpoint.

        Args:
            folder: gets the model's files, log.jsonl and checkpoints.
            compiled: True for `torch.compile`, several times as fast on a CPU.
            compute_dtype: of products, bf16 or fp32, whichever is faster here; weights are fp32.
            seen_in: folder of another training whose first stage is taken over.

        Raises:
            UsageError: a checkpoint was made with other settings, or `seen_in` has none.
        """
        self.blueprint, self.folder, self.schedule = blueprint, folder, schedule
        self.seen_in, self.compute_dtype = seen_in, compute_dtype
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer = blueprint.tokenizer()
        self.model: PreTrainedModel = blueprint.build(self.tokenizer, seed=schedule.seed)
        self.model.train()
        # As `plain_attention`, without its look for tokens that see nothing: here, there are none.
        self.model.model.language_model.set_attn_implementation("eager")
        self.writer = Writer(self.tokenizer, blueprint.picture, blueprint.placeholder)
        self.padding = int(self.tokenizer.pad_token_id)
        self._sees = (f"{blueprint.tower}.", f"{blueprint.projector}.")
        self._checks: dict[tuple[str, str], Batch] = {}
        width, side = self.model.config.get_text_config().hidden_size, blueprint.side
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(schedule.seed)
            per_side = blueprint.patch // blueprint.labelled_patch
            self.head = PatchHead(width, side, per_side, _KINDS)
        self.visual_words = VisualWords(self.tokenizer, width=width, side=side, seed=schedule.seed)
        see = SEE[blueprint.family]
        self._see: See = see
        self._hidden: Callable[[PreTrainedModel, Batch, Tensor], States] = hidden_states
        if compiled:
            self._see = torch.compile(see, dynamic=False)
            self._hidden = torch.compile(hidden_states, dynamic=False)

    def run(self, report: Callable[[Progress], None], *, log_every: int = 100) -> None:
        """Do what is missing of the stages; the model in memory is the finished one."""
        tower, projector, rest = self._parts()
        self._stage(
            "seeing",
            self.schedule.seeing_steps,
            [{"params": tower + projector, "factor": 1.0}],
            seeing_shares(),
            report,
            log_every,
        )
        self._stage(
            "reading",
            self.schedule.reading_steps,
            [{"params": rest, "factor": 1.0}],
            reading_shares(self.schedule),
            report,
            log_every,
        )
        for stage, num_steps, shares in (
            ("answering", self.schedule.answering_steps, answering_shares(self.schedule)),
            ("finishing", self.schedule.finishing_steps, finishing_shares()),
        ):
            self._stage(
                stage,
                num_steps,
                # The projector learns with the language model, which knows words and no pictures.
                [
                    {"params": rest + projector, "factor": 1.0},
                    {"params": tower, "factor": self.schedule.tower_factor},
                ],
                shares,
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

    def _parts(self) -> tuple[list[Named], list[Named], list[Named]]:
        """Return the tower with the patch head, the projector, and what answers."""
        tower, projector = list[Named](self.head.named_parameters()), list[Named]()
        answers: list[Named] = []
        for name, parameter in self.model.named_parameters():
            if not name.startswith(self._sees):
                answers.append((name, parameter))
            elif name.startswith(f"{self.blueprint.projector}."):
                projector.append((name, parameter))
            else:
                tower.append((name, parameter))
        return tower, projector, answers

    def _stage(
        self,
        stage: str,
        num_steps: int,
        groups: list[dict[str, Any]],
        shares: Sequence[tuple[int, Mapping[str, float]]],
        report: Callable[[Progress], None],
        log_every: int,
    ) -> None:
        parameters = [p for group in groups for _, p in group["params"]]
        seeing = stage == "seeing"
        rate = getattr(self.schedule, f"{stage}_rate")
        optimizers = make_optimizers(groups, self.schedule.factors)
        first, before = self._restore(stage, optimizers)
        # What an earlier stage left on weights that were not its own would be a first step here.
        self.model.zero_grad(set_to_none=True)
        started = time.monotonic()
        steps = Steps(
            self.writer,
            self.padding,
            shares,
            batch_size=getattr(self.schedule, f"{stage}_batch"),
            micro_batches=self.schedule.micro_batches,
            questions=1 if seeing else self.schedule.questions,
            told=stage == "reading",
            labelled_patch=self.blueprint.labelled_patch,
            seed=self.schedule.seed + _SEEDS[stage],
            first=first,
            last=num_steps,
        )
        losses: list[float] = []
        for step, parts in enumerate(load_steps(steps, in_background=True), first):
            factor = rate_factor(step, num_steps, decay_share=_DECAYS.get(stage, _DECAY))
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate * factor * group["factor"]
            losses.append(self._learn(stage, step, parts))
            nn.utils.clip_grad_norm_(parameters, 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            if (step + 1) % log_every == 0 or step + 1 == num_steps:
                seconds = before + time.monotonic() - started
                checked = (step + 1) % (_CHECK_EVERY * log_every) == 0 or step + 1 == num_steps
                accuracy = self._accuracy(stage) if checked else {}
                found = Progress(stage, step + 1, seconds, sum(losses) / len(losses), accuracy)
                losses.clear()
                self._checkpoint(stage, optimizers, step + 1, seconds)
                with (self.folder / _LOG).open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(found)) + "\n")
                report(found)

    def _learn(self, stage: str, step: int, parts: Sequence[Batch]) -> float:
        """Put a step's gradients into the parameters; return its loss."""
        total = 0.0
        num_answers = sum(len(answer_lengths(part.labels)) for part in parts)
        words = self.schedule.word_weight_at(stage, step)
        for part in parts:
            with plain_attention(), self._autocast():
                looked, aside = self._no_tokens(part), torch.zeros(())
                if stage != "reading":
                    # What names patches has no use for an overview.
                    looked = self._see(self.model, part.pixels, stage != "seeing")
                    grid = covering(self.model, looked)
                    loss = told = aside = patch_loss(self.head(grid), part, words) / len(parts)
                    held = self.schedule.size_weight * size_loss(self.model, looked) / len(parts)
                    loss = loss + held
                if stage != "seeing":
                    states = self._hidden(self.model, part, looked)
                    logits, labels = answer_logits(self.model, states.last, part.labels)
                    told = answer_loss(logits, labels, part.labels) / num_answers
                    hinted = hint_loss(self.model, states.middle, part.hints) / num_answers
                    loss = told + self.schedule.hint_weight * hinted
                if stage not in ("seeing", "reading"):
                    loss = loss + held
                    shown = self.visual_words.shown(self.model, grid, part)
                    picture = covering(self.model, states.picture)
                    placed = self.visual_words.placed(self.model, picture, part)
                    aside = aside + shown / len(parts)
                    loss = loss + self.schedule.patch_weight * aside
                    loss = loss + self.schedule.place_weight * placed / len(parts)
            loss.backward()
            total += told.item()
        return total

    def _autocast(self) -> torch.autocast:
        enabled = self.compute_dtype != torch.float32
        return torch.autocast("cpu", self.compute_dtype if enabled else None, enabled=enabled)

    def _take_over_log(self, other: Path) -> None:
        """Begin the log with the first stage's lines, as if it had been done here."""
        own = self.folder / _LOG
        if not own.exists():
            lines = other.read_text(encoding="utf-8").splitlines(keepends=True)
            seen = [line for line in lines if json.loads(line)["stage"] == _STAGES[0]]
            own.write_text("".join(seen), encoding="utf-8")

    def _no_tokens(self, batch: Batch) -> Tensor:
        """Return the visual tokens of a batch in which words stand for the pictures: none."""
        return torch.empty(len(batch.after), 0, self.head.norm.normalized_shape[0])

    @torch.no_grad()
    def _accuracy(self, stage: str) -> dict[str, float]:
        """Return how much is right on the first samples of the validation split."""
        every = list(dict.fromkeys(name for level in LEVELS for name in level))
        tasks = {"seeing": list(_SEEN_TASKS), "reading": list(TOLD)}.get(stage, every)
        found: dict[str, float] = {}
        for name in tasks:
            batch = self._check(stage, name)
            with self._autocast():
                looked = self._no_tokens(batch)
                if stage != "reading":
                    looked = SEE[self.blueprint.family](self.model, batch.pixels, stage != "seeing")
                if stage == "seeing":
                    seen = self.head(covering(self.model, looked))
                    found |= patch_accuracy(name, seen, batch)
                    continue
                states = hidden_states(self.model, batch, looked)
                logits, labels = answer_logits(self.model, states.last, batch.labels)
            lengths = answer_lengths(batch.labels).tolist()
            right = (logits.argmax(-1) == labels).split(lengths)
            found[name] = sum(bool(each.all()) for each in right) / len(right)
        return found

    def _check(self, stage: str, name: str) -> Batch:
        """Return the samples of a task that the log's accuracy is of; they are drawn once."""
        key = stage, name
        if key not in self._checks:
            samples = list(TASKS[name].samples("validation", _NUM_CHECKED, self.schedule.seed))
            if stage == "reading":
                self._checks[key] = collate_told(samples, self.writer, self.padding, questions=1)
            else:
                patch = self.blueprint.labelled_patch if stage == "seeing" else None
                self._checks[key] = collate_samples(
                    samples, self.writer, self.padding, labelled_patch=patch
                )
        return self._checks[key]

    def _checkpoint(
        self, stage: str, optimizers: Sequence[torch.optim.Optimizer], step: int, seconds: float
    ) -> None:
        state = {
            "name": self.blueprint.name,
            "stage": stage,
            "step": step,
            "seconds": seconds,
            "schedule": asdict(self.schedule),
            "model": self.model.state_dict(),
            "head": self.head.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        }
        part = self.folder / "checkpoint.part"
        torch.save(state, part)
        if (stage, step) == ("seeing", self.schedule.seeing_steps):
            # Kept, so that the second stage can be tried again without the first.
            shutil.copyfile(part, self.folder / _SEEN)
        part.replace(self.folder / "checkpoint.pt")

    def _restore(
        self, stage: str, optimizers: Sequence[torch.optim.Optimizer]
    ) -> tuple[int, float]:
        """Take up a checkpoint; return the step to go on from and the seconds spent so far."""
        path, wanted = self.folder / "checkpoint.pt", asdict(self.schedule)
        if not path.exists():
            if self.seen_in is None:
                return 0, 0.0
            path, wanted = self.seen_in / _SEEN, self.schedule.of_seeing()
        if not path.exists():
            raise UsageError(
                asked=f"the first stage of the pre-training in {self.seen_in}",
                found=f"no {_SEEN} in that folder",
                do="give the folder of a pre-training that has finished its first stage",
            )
        state = torch.load(path, weights_only=True)
        found = {name: state["schedule"].get(name) for name in wanted}
        if (state["name"], found) != (self.blueprint.name, wanted):
            raise UsageError(
                asked=f"to go on with the pre-training in {path.parent}",
                found=f"it was started for {state['name']} with {state['schedule']}",
                do="give the same settings, or another folder",
            )
        if path.name == _SEEN:
            sight = {name: t for name, t in state["model"].items() if name.startswith(self._sees)}
            self.model.load_state_dict(sight, strict=False)
        else:
            self.model.load_state_dict(state["model"])
        self.head.load_state_dict(state["head"])
        if state["stage"] != stage:
            done = _STAGES.index(state["stage"]) > _STAGES.index(stage)
            return (getattr(self.schedule, f"{stage}_steps") if done else 0), 0.0
        if path.name == _SEEN:
            self._take_over_log(path.with_name(_LOG))
            return state["step"], state["seconds"]
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        return state["step"], state["seconds"]
