"""Skills that a ledger's model was taught before: what is kept of them, and what an anchor holds.

Owns: that the rows which an earlier skill is tested on are kept, and that an anchor holds prompts
that it was taught with and that nothing measures nor the run teaches.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass

from narrowtune.core.data_settings import DataSettings, SkillSettings
from narrowtune.core.errors import DataError
from narrowtune.core.results import DataSummary
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.collate import Encoded
from narrowtune.data.examples import Example, RefusedRow, RowError, RowsRefusedError
from narrowtune.data.splits import Prompts, draw_key, find_overlap, split_examples
from narrowtune.pipeline.prompts import ANCHOR_KEY, AnchorPrompts, unusable_pictures
from narrowtune.pipeline.sources import Source


@dataclass(frozen=True)
class Taught:
    """A skill that was taught before, whose test rows are kept.

    Attributes:
        settings: of its rows.
        seed: of their splits.
        sha256: of the rows that it was taught with; empty where that is not known.
    """

    settings: SkillSettings
    seed: int
    sha256: str = ""

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
        # No setting of this run is about these rows.
        do = f"take the max_length and the chat template that {taught.key} was taught with"
        raise RowsRefusedError(error.refused, settings.max_refused, error.num_rows, do) from None
    summary = source.summary("held_out", len(examples))
    return examples, rows, summary.model_copy(update={"name": settings.label})


def read_held(
    taught: Sequence[Taught],
    number: int,
    encoder: ChatEncoder,
    refused: list[RefusedRow],
    *,
    measured: Sequence[Example],
    learned: Iterable[Example],
    beside: Callable[[], Iterable[Encoded]],
) -> AnchorPrompts:
    """Return prompts that earlier skills were taught with, without their last answers.

    What is said of rows that can't be used is said in notes: they need no labels, and others are at
    hand.

    Args:
        taught: the skills.
        number: of prompts of each, drawn by its seed; all where it has fewer.
        encoder: the chat template.
        refused: gets the rows that can't be read.
        measured: what scores are measured on: neither its prompts nor its pictures are held.
        learned: what the run teaches: its prompts are not held at another answer.
        beside: makes rows that prompts about pictures may meet in a batch.

    Raises:
        DataError: the file of a skill can't be read, or is not the one that it was taught with.
    """
    found = AnchorPrompts([], [], [])
    now = Prompts(learned if taught else ())
    for skill in taught:
        label = skill.settings.label
        source, rows = _learned(skill, refused)
        source.check_pictures(encoder)
        asked = {item.left for item in find_overlap(rows, measured)}
        again = {row.id for row in rows if now.find(row) is not None} - asked
        drawn, unusable = _draw(rows, asked | again, number, encoder, skill.seed)
        notes = [
            f"{count} rows that {label} was taught with {why}: the anchor does not hold them."
            for count, why in (
                (len(asked), "are among those that are measured"),
                (len(again), "are taught now"),
                (unusable, "can't be encoded in this run (max_length, the chat template)"),
            )
            if count
        ]
        if any(row.images for row in drawn) and (
            why := unusable_pictures(drawn, encoder, beside())
        ):
            notes.append(f"The anchor holds nothing of {label}: {why}.")
            drawn = []
        elif not drawn:
            notes.append(f"The anchor holds nothing of {label}: no row is left.")
        found.notes.extend(notes)
        found.messages.extend(row.prompt for row in drawn)
        summary = source.summary("anchor", len(drawn))
        found.summaries.append(summary.model_copy(update={"name": f"{ANCHOR_KEY} (skill {label})"}))
    return found


def _draw(
    rows: Sequence[Example], left_out: Container[str], number: int, encoder: ChatEncoder, seed: int
) -> tuple[list[Example], int]:
    """Return rows that can be encoded, and how many were met that can't be."""
    # Read in one go: rows that are beside memory are slow to be asked for one by one.
    ranks = {
        place: draw_key(seed, row.id) for place, row in enumerate(rows) if row.id not in left_out
    }
    drawn: list[Example] = []
    unusable = 0
    for place in sorted(ranks, key=ranks.__getitem__):
        if len(drawn) == number:
            break
        try:
            encoder.encode_prompt(rows[place].prompt)
        except RowError:
            unusable += 1
        else:
            drawn.append(rows[place])
    return drawn, unusable


def _learned(taught: Taught, refused: list[RefusedRow]) -> tuple[Source, Sequence[Example]]:
    """Return what a skill was taught with; rows that its test has refused are not told again."""
    settings = taught.settings
    known = [] if settings.test_path is None else refused
    do = "put the rows back, or hold nothing of earlier skills: --set anchor.earlier_skills=0"
    try:
        source = Source(settings, known, key=taught.key, seed=taught.seed)
    except DataError as error:
        asked = f"what the anchor holds of {settings.label}: {error.asked}"
        raise DataError(asked=asked, found=error.found, do=do) from None
    sha256 = source.summary("anchor", 0).sha256
    if taught.sha256 and sha256 != taught.sha256:
        raise DataError(
            asked=f"what the anchor holds of {settings.label}: the rows that it was taught with",
            found=f"rows in {settings.path} that changed since",
            do=do,
        )
    test = 0.0 if settings.test_path else settings.test
    return source, split_examples(source.examples, settings.validation, test, taught.seed)["train"]


def test_settings(skill: SkillSettings) -> DataSettings:
    """Return the rows that a skill is tested on, where these have a file of their own."""
    return skill.tested().model_copy(update={"name": f"{skill.label} (test)"})
