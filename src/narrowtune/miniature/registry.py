"""Every task of the small world: what it mirrors, how it is scored, and what guessing gives.

Owns: the table. `chance` is the mean score of the best answer that is given without looking at the
picture, per form of question; a test measures it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Literal

from narrowtune.core.data_settings import MetricName
from narrowtune.core.errors import UsageError
from narrowtune.data.examples import Example
from narrowtune.miniature.heldout import (
    charts,
    diagrams,
    forms,
    infographics,
    puzzles,
    scenes,
    science,
    street,
)
from narrowtune.miniature.item import Item
from narrowtune.miniature.pretraining import (
    captions,
    drills,
    levels,
    parts,
    priors,
    sheets,
    tallies,
)
from narrowtune.miniature.sample import Sample, make_sample
from narrowtune.miniature.targets import birds, clock, counting, signs, tissue

TaskRole = Literal["target", "held_out", "probe", "pretrain"]


@dataclass(frozen=True)
class MiniatureTask:
    """A task: any number of samples from any seed.

    Attributes:
        name: of the task and its files.
        role: `target` is taught, `held_out` is kept, `probe` has free answers, `pretrain` is what
            reference models learn first.
        mirrors: the data set whose questions it is modelled on; empty where there is none.
        answers: the form of an answer, for people.
        metric: how answers are scored.
        max_new_tokens: decode limit.
        chance: score of the best answers that don't look at the picture, 0 to 1.
        make: one item from a source of chance.
        mode: how answers are got.
    """

    name: str
    role: TaskRole
    mirrors: str
    answers: str
    metric: MetricName
    max_new_tokens: int
    chance: float
    make: Callable[[Random], Item]
    mode: Literal["generate", "options"] = "generate"

    def sample(self, split: str, seed: int, number: int) -> Sample:
        """Return sample `number` of a split; its scene is drawn on first use."""
        return make_sample(self.name, self.make, split, seed, number)

    def samples(self, split: str, count: int, seed: int = 0) -> Iterator[Sample]:
        """Yield the first `count` samples of a split."""
        return (self.sample(split, seed, number) for number in range(count))

    def examples(self, split: str, count: int, seed: int = 0) -> Iterator[Example]:
        """Yield the same as rows with pictures in memory; no file is touched."""
        return (sample.example() for sample in self.samples(split, count, seed))


_TASKS = (
    MiniatureTask("birds", "target", "CUB200", "option", "option_letter", 24, 0.167, birds.make),
    MiniatureTask(
        "counting", "target", "PixmoCount", "sentence", "exact_match", 24, 0.125, counting.make
    ),
    MiniatureTask(
        "tissue", "target", "PathVQA", "yes/no, term", "exact_match", 12, 0.361, tissue.make
    ),
    MiniatureTask(
        "signs", "target", "TextVQA", "word, number", "exact_match", 12, 0.008, signs.make
    ),
    MiniatureTask("clock", "target", "TimeClock", "HH:MM", "exact_match", 12, 0.021, clock.make),
    MiniatureTask(
        "diagrams", "held_out", "AI2D", "option", "option_letter", 24, 0.25, diagrams.make
    ),
    MiniatureTask(
        "charts", "held_out", "ChartQA", "number, word", "relaxed_number", 8, 0.194, charts.make
    ),
    MiniatureTask("forms", "held_out", "DocVQA", "word, number", "anls", 16, 0.1, forms.make),
    MiniatureTask(
        "infographics", "held_out", "InfoVQA", "number, word", "anls", 12, 0.1, infographics.make
    ),
    MiniatureTask(
        "street", "held_out", "RealWorldQA", "word", "exact_match", 8, 0.406, street.make
    ),
    MiniatureTask(
        "scenes", "held_out", "SeedBench", "option", "option_letter", 24, 0.25, scenes.make
    ),
    MiniatureTask(
        "science", "held_out", "ScienceQA", "option", "option_letter", 24, 0.438, science.make
    ),
    MiniatureTask(
        "puzzles", "held_out", "MMStar", "option", "option_letter", 24, 0.25, puzzles.make
    ),
    MiniatureTask("captions", "probe", "", "sentence", "exact_match", 40, 0.0, captions.make),
    MiniatureTask("names", "pretrain", "", "word", "exact_match", 8, 0.074, levels.make_names),
    MiniatureTask("binding", "pretrain", "", "word", "exact_match", 8, 0.09, levels.make_binding),
    MiniatureTask(
        "relations", "pretrain", "", "word", "exact_match", 8, 0.5, levels.make_relations
    ),
    MiniatureTask("reading", "pretrain", "", "spelt", "exact_match", 16, 0.0, levels.make_reading),
    MiniatureTask(
        "choices", "pretrain", "", "option", "option_letter", 24, 0.361, parts.make_choices
    ),
    MiniatureTask("words", "pretrain", "", "word", "exact_match", 8, 0.01, parts.make_words),
    MiniatureTask("rows", "pretrain", "", "word, number", "exact_match", 8, 0.01, parts.make_rows),
    MiniatureTask("lists", "pretrain", "", "words", "exact_match", 32, 0.0, parts.make_lists),
    MiniatureTask("arrows", "pretrain", "", "word", "exact_match", 8, 0.02, parts.make_arrows),
    MiniatureTask("tallies", "pretrain", "", "number", "exact_match", 4, 0.25, tallies.make),
    MiniatureTask("plumage", "pretrain", "", "word", "exact_match", 8, 0.26, priors.make_plumage),
    MiniatureTask("gauges", "pretrain", "", "number", "exact_match", 4, 0.083, priors.make_gauges),
    MiniatureTask("recital", "pretrain", "", "words", "exact_match", 96, 0.0, drills.make_recital),
    MiniatureTask("pairs", "pretrain", "", "words", "exact_match", 48, 0.0, drills.make_pairs),
    MiniatureTask("letters", "pretrain", "", "words", "exact_match", 48, 0.11, drills.make_letters),
    MiniatureTask("orders", "pretrain", "", "words", "exact_match", 48, 0.19, drills.make_orders),
    MiniatureTask("pages", "pretrain", "", "spelt", "exact_match", 48, 0.0, sheets.make),
)

TASKS: dict[str, MiniatureTask] = {task.name: task for task in _TASKS}
"""Every task by its name, skills first."""

PRIORS = ("tallies", "plumage", "gauges")
"""What published models bring to the skills, taught beside the parts of the held-out tasks."""

LEVELS: tuple[tuple[str, ...], ...] = (
    ("names", "binding", "captions", "relations"),
    ("binding", "choices", "words", "reading", "rows", "lists", "arrows", *PRIORS),
    ("diagrams", "charts", "forms", "infographics", "street", "scenes", "science", "puzzles"),
)
"""The curriculum: which tasks each level draws from, in the split `pretrain`, easiest first.

No question of a target skill is among them. Dense patch labels come before the first, of pictures
of every task, the skills' among them: a published tower has seen birds before anyone asks it for
their names.
"""


def get_task(name: str) -> MiniatureTask:
    """Return the task of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in TASKS:
        raise UsageError(
            asked=f"the miniature task {name!r}",
            found="no task of that name",
            do=f"choose one of {', '.join(TASKS)}",
        )
    return TASKS[name]


def tasks_of(role: TaskRole) -> tuple[MiniatureTask, ...]:
    """Return the tasks of a role, in the order of the table."""
    return tuple(task for task in TASKS.values() if task.role == role)
