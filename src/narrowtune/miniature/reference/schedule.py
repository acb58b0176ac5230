"""What a reference model's pre-training draws, and for how long.

Owns: the four stages' settings and the shares of tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from narrowtune.miniature.reference.optimizers import Kind
from narrowtune.miniature.registry import LEVELS, PRIORS, TASKS

_REVIEW = (0.0, 0.3, 0.3)  # share of a level's samples that is of those before it
_FINISH_REVIEW = 0.5  # the same, in the last stage
_AHEAD = 0.25  # share of the level before the last that is of the last
_READING_STARTS = (0.06, 0.15)  # shares of the reading steps after which more is told
_PAGES = 0.7  # weight of pages of letters for each other task, while the tower learns to see
_HARD = ("diagrams", "charts", "scenes", *PRIORS)  # drawn twice as often as others
_HARDEST = {"diagrams": 4.0, "tallies": 8.0, "plumage": 1.0, "gauges": 1.0}
"""Weights in the last stage: what takes longest, and what is known by then."""


DRILLS = ("recital", "letters", "pairs", "orders")
"""What needs no picture."""

TOLD = (
    *DRILLS,
    *("lists", "words", "binding", "relations", "choices", "rows", "arrows", "captions"),
    *LEVELS[-1],
)
"""The tasks whose pictures can be told in words: without eyes, a language model learns to answer
from these. Where the words would be the answer, as for names, nothing is told; what is written in a
picture is spelt, half of the time."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast the stages learn.

    Attributes:
        seed: of weights and samples.
        seeing_steps, reading_steps, answering_steps, finishing_steps: optimiser steps of each
            stage.
        seeing_batch, reading_batch, answering_batch, finishing_batch: pictures per step, or what is
            told of them.
        micro_batches: parts of a step, each with questions of like length.
        matrix_factor: what the rate is multiplied by for matrices, which Muon trains.
        writer_factor: the same for those that add to the language model's residual stream: slower,
            so that what they write does not drown the words.
        table_factor: what the rate is multiplied by for the embeddings of words.
        questions: how many are asked about a picture at most, while the model learns to answer.
        seeing_rate, reading_rate, answering_rate, finishing_rate: highest learning rates.
        tower_factor: what the tower's rate is multiplied by while the model learns to answer.
        patch_weight: of the patch labels' loss in that stage, so that the tower goes on seeing.
        word_weight: of the words among the patch labels.
        word_start: share of the seeing steps after which words are asked: once letters are known.
        place_weight: of the loss that asks for the row and column of visual tokens.
        size_weight: of the loss that keeps visual tokens as long as words.
        hint_weight: of the loss that asks between the layers what an answer is about.
        level_starts: shares of the answering steps after which each later level begins.
    """

    seed: int = 0
    seeing_steps: int = 1800
    reading_steps: int = 1600
    answering_steps: int = 3000
    finishing_steps: int = 4000
    seeing_batch: int = 64
    reading_batch: int = 32
    answering_batch: int = 32
    finishing_batch: int = 32
    micro_batches: int = 2
    matrix_factor: float = 3.0
    writer_factor: float = 1.5
    table_factor: float = 10.0
    questions: int = 6
    seeing_rate: float = 2e-3
    reading_rate: float = 1e-3
    answering_rate: float = 1e-3
    finishing_rate: float = 1e-3
    tower_factor: float = 0.2
    patch_weight: float = 0.3
    word_weight: float = 0.3
    word_start: float = 0.4
    place_weight: float = 0.3
    size_weight: float = 1.0
    hint_weight: float = 0.5
    level_starts: tuple[float, ...] = (0.08, 0.26667)

    @property
    def factors(self) -> dict[Kind, float]:
        """What the rate is multiplied by, by kind of weight."""
        return {
            "matrix": self.matrix_factor,
            "writer": self.writer_factor,
            "table": self.table_factor,
            "other": 1.0,
        }

    def of_seeing(self) -> dict[str, Any]:
        """Return what the first stage depends on."""
        names = ("seed", "seeing_steps", "seeing_batch", "micro_batches", "seeing_rate")
        more = ("matrix_factor", "word_weight", "word_start", "size_weight")
        return {name: getattr(self, name) for name in (*names, *more)}

    def word_weight_at(self, stage: str, step: int) -> float:
        """Return the weight of words among the patch labels: none before letters are known."""
        early = stage == "seeing" and step < self.word_start * self.seeing_steps
        return 0.0 if early else self.word_weight


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


def finishing_shares() -> list[tuple[int, Mapping[str, float]]]:
    """Return what the last stage draws: the held-out tasks, and every single step of theirs."""
    earlier = list(dict.fromkeys(name for level in LEVELS[:-1] for name in level))
    shares: dict[str, float] = {}
    for names, share in ((LEVELS[-1], 1 - _FINISH_REVIEW), (earlier, _FINISH_REVIEW)):
        weights = _weights(names) | {n: w for n, w in _HARDEST.items() if n in names}
        shares |= {name: share * w / sum(weights.values()) for name, w in weights.items()}
    return [(0, shares)]


def reading_shares(schedule: Schedule) -> list[tuple[int, Mapping[str, float]]]:
    """Return what is told in words: drills, then single steps of an answer, then every task.

    Nothing is seen in this stage.
    """
    drills = dict.fromkeys(DRILLS, 1.0)
    parts = {name: 1.0 for name in TOLD if name not in LEVELS[-1]}
    every = {**_weights(TOLD), **dict.fromkeys(parts, 0.5), **dict.fromkeys(DRILLS, 0.3)}
    # To find an answer and then its letter is what takes longest.
    every["choices"] = 1.0
    starts = [round(share * schedule.reading_steps) for share in _READING_STARTS]
    return list(zip((0, *starts), (drills, {**parts, "recital": 0.5}, every), strict=True))


def _weights(names: Sequence[str]) -> dict[str, float]:
    return {name: 2.0 if name in _HARD else 1.0 for name in names}


def seeing_shares() -> list[tuple[int, Mapping[str, float]]]:
    """Return every task with a picture: labels say what is where, and no question is asked.

    The skills' pictures are among them, as a published tower has seen birds and clocks before
    anyone asks it for their names.
    """
    shown = [name for name in TASKS if name not in DRILLS]
    return [(0, {**_weights(shown), "pages": _PAGES * len(shown)})]
