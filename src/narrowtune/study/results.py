"""What a study finds, stage by stage, as lines of a file that a stopped study goes on from.

Owns: the form of a result, and how the scores of items are kept: one pair of digits per item.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from narrowtune.core.errors import UsageError
from narrowtune.core.json_lines import append_json_line, read_json_lines
from narrowtune.core.layers import LayerContributions
from narrowtune.core.results import DriftResult, Role, TaskResult, Value

BASE = "base"
"""The arm under which the scores before any stage are kept."""


class ChainKey(Value):
    """An arm at one rate, in one order of skills, with one seed.

    Attributes:
        arm: the arm's label, or `BASE`.
        learning_rate: peak of the schedule.
        order: name of the order.
        seed: of rows and their order.
    """

    arm: str
    learning_rate: float
    order: str
    seed: int

    def __str__(self) -> str:
        """Return it as people read it."""
        return f"{self.arm} at {self.learning_rate:g}, {self.order}, seed {self.seed}"


class TaskScores(Value):
    """A task scored once.

    Attributes:
        role: `target` or `held_out`.
        mean, lenient: of both readings, 0 to 1.
        valid_format: share of answers in the form that was asked for.
        items: strict scores in the order of the items, each as a whole number of hundredths in two
            characters, 100 as "**".
    """

    role: Role
    mean: float
    lenient: float
    valid_format: float
    items: str


class Shown(Value):
    """A free prompt with both models' greedy answers, for the gallery.

    Attributes:
        prompt: its last user turn.
        picture: file of its first picture, in the study's folder `gallery`.
        base, tuned: the answers.
    """

    prompt: str
    picture: str | None = None
    base: str
    tuned: str


class StageResult(Value):
    """Everything scored after a stage; stage 0 is the base.

    Attributes:
        chain: what was trained.
        stage: how many skills have been taught.
        skill: the last of them; empty for the base.
        tasks: scores by task, the tests of all skills and all keep sets. `validation` is the last
            skill's own rows that were kept back; the base's, those of a study's only skill.
        constrained: the keep sets again, answers held to the right form, where that was asked for.
        drift: against the base; None for the base itself.
        layers: how far each layer's writes are from the base's, on the prompts of `drift`.
        shown: the first of these prompts with their answers.
        steps, seconds: of the stage's training.
        final_loss: of its last step.
        relative_update: ‖W after − W base‖ / ‖W base‖ over the arm's tensors.
    """

    chain: ChainKey
    stage: int
    skill: str
    tasks: dict[str, TaskScores]
    validation: TaskScores | None = None
    constrained: dict[str, TaskScores] | None = None
    drift: DriftResult | None = None
    layers: LayerContributions | None = None
    shown: list[Shown] | None = None
    steps: int = 0
    seconds: float = 0.0
    final_loss: float | None = None
    relative_update: float = 0.0


def summarise(result: TaskResult) -> TaskScores:
    """Return a task's result without its answers."""
    return TaskScores(
        role=result.role,
        mean=result.strict.mean,
        lenient=result.lenient.mean,
        valid_format=result.valid_format,
        items=pack_scores([item.strict for item in result.items]),
    )


def pack_scores(scores: Iterable[float]) -> str:
    """Return scores of 0 to 1 as two characters each."""
    hundredths = (round(100 * score) for score in scores)
    return "".join("**" if value == 100 else f"{value:02d}" for value in hundredths)


def unpack_scores(packed: str) -> list[float]:
    """Return what `pack_scores` was given, to the nearest hundredth."""
    pairs = (packed[place : place + 2] for place in range(0, len(packed), 2))
    return [1.0 if pair == "**" else int(pair) / 100 for pair in pairs]


def append_result(path: Path, result: StageResult) -> None:
    """Add a line, in place of one that a kill cut short."""
    append_json_line(path, result.model_dump_json(exclude_none=True))


def read_results(path: Path) -> list[StageResult]:
    """Return the results in the file, the last one where a stage is there twice.

    A last line that a kill cut short is left out: its stage runs again.

    Raises:
        UsageError: another line is none of this version's results.
    """
    found: dict[tuple[ChainKey, int], StageResult] = {}
    asked = f"the results in {path}"
    for number, values in read_json_lines(path, asked):
        try:
            result = StageResult.model_validate(values)
        except ValueError as error:
            raise UsageError(
                asked=asked,
                found=f"line {number} is none of this version's results: {error}",
                do="go on with the version that wrote them, or choose another output_dir",
            ) from None
        found[result.chain, result.stage] = result
    return list(found.values())


def by_chain(results: Sequence[StageResult]) -> Mapping[ChainKey, list[StageResult]]:
    """Return the stages of each chain, in order, the base left out."""
    chains: dict[ChainKey, list[StageResult]] = {}
    for result in sorted(results, key=lambda result: result.stage):
        if result.chain.arm != BASE:
            chains.setdefault(result.chain, []).append(result)
    return chains


def base_of(results: Sequence[StageResult]) -> StageResult:
    """Return the base's scores.

    Raises:
        UsageError: they are not there.
    """
    for result in results:
        if result.chain.arm == BASE:
            return result
    raise UsageError(
        asked="what a study learned and lost",
        found="no scores of the base among its results",
        do="run the study: it scores the base first",
    )
