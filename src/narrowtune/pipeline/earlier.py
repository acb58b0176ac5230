"""Skills that a ledger's model was taught before: what is kept of them, and what an anchor holds.

Owns: that the rows which an earlier skill is tested on are kept, and that an anchor holds prompts
that it was taught with and that nothing measures nor the run teaches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from narrowtune.core.data_settings import DataSettings, SkillSettings
from narrowtune.core.errors import DataError
from narrowtune.core.results import DataSummary
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.examples import Example, Message, RefusedRow, RowsRefusedError
from narrowtune.data.splits import draw_examples, find_overlap, split_examples
from narrowtune.pipeline.prompts import ANCHOR_KEY
from narrowtune.pipeline.sources import Source


@dataclass(frozen=True)
class Taught:
    """A skill that was taught before, whose test rows are kept.

    Attributes:
        settings: of its rows.
        seed: of their splits.
    """

    settings: SkillSettings
    seed: int

    @property
    def key(self) -> str:
        """What errors call its rows."""
        return f"the ledger's {self.settings.label}"


def read_tested(
    taught: Taught, encoder: ChatEncoder, refused: list[RefusedRow]
) -> tuple[Sequence[Example], Sequence[Example], DataSummary]:
    """Return the rows it was tested on that can be asked, all of them, and what the record says.

    Args:
        taught: the skill.
        encoder: the chat template.
        refused: gets the rows that can't be used.

    Raises:
        RowsRefusedError: too many rows can't be used.
    """
    settings = taught.settings
    own = test_settings(settings) if settings.test_path is not None else settings
    try:
        source = Source(own, refused, key=taught.key, seed=taught.seed)
        rows = source.examples
        source.check_pictures(encoder)
        if settings.test_path is None:
            rows = split_examples(rows, settings.validation, settings.test, taught.seed)["test"]
        examples = source.encode_items(rows, encoder)
        source.check()
    except RowsRefusedError as error:
        refusal = error.refused, settings.max_refused, error.num_rows, _other_run(taught)
        raise RowsRefusedError(*refusal) from None
    summary = source.summary("held_out", len(examples))
    return examples, rows, summary.model_copy(update={"name": settings.label})


@dataclass(frozen=True)
class Held:
    """What an anchor holds of earlier skills.

    Attributes:
        messages: of every prompt.
        summaries: of the files, for the record.
        notes: for the record.
    """

    messages: list[tuple[Message, ...]]
    summaries: list[DataSummary]
    notes: list[str]


def read_held(
    taught: Iterable[Taught],
    number: int,
    encoder: ChatEncoder,
    refused: list[RefusedRow],
    *,
    measured: Sequence[Example],
    learned: Iterable[Example],
) -> Held:
    """Return prompts that earlier skills were taught with, without their answers.

    Args:
        taught: the skills.
        number: of prompts of each, drawn by its seed; all where it has fewer.
        encoder: the chat template.
        refused: gets the rows that can't be used.
        measured: what a loss is measured on: neither its prompts nor its pictures are held.
        learned: what the run teaches: its prompts are not held at another answer.

    Raises:
        DataError: the file of a skill can't be read, or rows of it can't be used.
    """
    held = Held([], [], [])
    now = {example.text_hash for example in learned}
    for skill in taught:
        label = skill.settings.label
        try:
            source, rows = _learned(skill, refused)
            source.check_pictures(encoder)
            asked = {item.left for item in find_overlap(rows, measured)}
            again = {row.id for row in rows if row.text_hash in now} - asked
            allowed = (row for row in rows if row.id not in asked and row.id not in again)
            drawn = draw_examples(allowed, number, skill.seed)
            used = source.encodable(drawn, lambda example: encoder.encode_prompt(example.prompt))
            source.check()
        except DataError as error:
            do = _other_run(skill) if isinstance(error, RowsRefusedError) else error.do
            raise DataError(
                asked=f"what the anchor holds of {label}: {error.asked}",
                found=error.found,
                do=f"{do}, or hold nothing of earlier skills (--set anchor.earlier_skills=0)",
            ) from None
        for same, where in ((asked, "stand in a keep set"), (again, "are taught now")):
            if same:
                held.notes.append(
                    f"{len(same)} of the rows that {label} was taught with {where}: the anchor "
                    "does not hold them."
                )
        held.messages.extend(example.prompt for example in used)
        summary = source.summary("anchor", len(used))
        held.summaries.append(summary.model_copy(update={"name": f"{ANCHOR_KEY} ({label})"}))
    return held


def _learned(taught: Taught, refused: list[RefusedRow]) -> tuple[Source, Sequence[Example]]:
    """Return what a skill was taught with; rows that its test has refused are not told again."""
    settings = taught.settings
    known = [] if settings.test_path is None else refused
    source = Source(settings, known, key=taught.key, seed=taught.seed)
    test = 0.0 if settings.test_path else settings.test
    return source, split_examples(source.examples, settings.validation, test, taught.seed)["train"]


def _other_run(taught: Taught) -> str:
    # No setting of this run is about these rows.
    return f"take the max_length and the chat template that {taught.key} was taught with"


def test_settings(skill: SkillSettings) -> DataSettings:
    """Return the rows that a skill is tested on, where these have a file of their own."""
    return skill.tested().model_copy(update={"name": f"{skill.label} (test)"})
