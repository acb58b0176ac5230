"""The rows of a study: what is taught, what is measured, and that nothing is both.

Owns: a study's reading of its files.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from narrowtune.core.anchor_settings import AnchorSettings
from narrowtune.core.data_settings import DataSettings
from narrowtune.core.errors import DataError
from narrowtune.core.study_settings import StudySettings
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.examples import Example, Message
from narrowtune.data.rows import read_rows
from narrowtune.data.spilled import Joined
from narrowtune.data.splits import find_overlap, split_examples
from narrowtune.evaluate.tasks import Task, make_task
from narrowtune.pipeline.crossed import ask_of_skill_pictures, shows_pictures
from narrowtune.pipeline.prompts import read_anchor_prompts
from narrowtune.pipeline.sources import Source
from narrowtune.study.anchors import prompts_key

logger = logging.getLogger(__name__)


@dataclass
class StudyRows:
    """Everything that is taught and scored.

    Attributes:
        pools: rows of each skill to draw from.
        validation: rows of each skill that were kept back.
        tasks: the tests of all skills, then the keep sets.
        anchors: prompts of each arm's anchor, by `prompts_key`.
    """

    pools: dict[str, Sequence[Example]] = field(default_factory=dict)
    validation: dict[str, Task] = field(default_factory=dict)
    tasks: list[Task] = field(default_factory=list)
    anchors: dict[str, list[tuple[Message, ...]]] = field(default_factory=dict)

    @property
    def measured(self) -> Sequence[Example]:
        """What scores are measured on."""
        return Joined(task.examples for task in self.tasks)


def read_study(
    settings: StudySettings, encoder: ChatEncoder, *, checked: bool = False
) -> StudyRows:
    """Read all files of a study.

    Args:
        settings: of the study.
        encoder: the chat template.
        checked: another process has read the same files and found no fault. Then no row is encoded
            to see whether it can be, which takes most of the time where rows have pictures; but of
            sources in which rows may be refused, since these have to be left out again.

    Raises:
        DataError: rows can't be used, or are both learned from and measured.
    """
    rows = StudyRows()
    for number, skill in enumerate(settings.skills):
        source = Source(skill, [], key=f"skills.{number}")
        source.check_pictures(encoder)
        if _may_differ(skill, checked):
            usable = source.encodable(source.examples, encoder.encode)
            source.check()
        else:
            usable = source.examples
        parts = split_examples(usable, skill.validation, 0.0, 0)
        rows.pools[skill.label] = parts["train"]
        if parts["validation"]:
            rows.validation[skill.label] = make_task(skill, parts["validation"], "target")
        rows.tasks.append(_task(skill.tested(), f"skills.{number}", skill.label, encoder, checked))
    for number, keep in enumerate(settings.keep):
        task = _task(keep, f"keep.{number}", keep.label, encoder, checked)
        rows.tasks.append(
            Task(**{**vars(task), "role": "held_out"})  # the same items in another role
        )
    measured = rows.measured
    for name, pool in () if checked else rows.pools.items():
        # A rate that is chosen on test rows would be one of luck with them.
        kept_back = rows.validation[name].examples if name in rows.validation else ()
        _check(f"to teach {name} and choose its rate", Joined([pool, kept_back]), measured)
    for arm in settings.arms:
        for mix in arm.mix:
            general = read_rows(mix.rows())
            _check(f"to replay {mix.path}", general.examples, measured)
        if arm.anchor is not None:
            key = prompts_key(arm.anchor)
            if key not in rows.anchors:
                # One of all rows that have a picture: pictures of a study go together.
                pictured = (e for pool in rows.pools.values() for e in pool if e.images)
                beside = (encoder.encode(example) for example in pictured)
                found = read_anchor_prompts(arm.anchor, encoder, [], measured, beside)
                rows.anchors[key] = found.messages
                for note in found.notes:
                    logger.warning(note)
            if arm.anchor.skill_pictures and not checked:
                _check_skill_pictures(rows, arm.anchor, encoder)
    return rows


def _check_skill_pictures(rows: StudyRows, settings: AnchorSettings, encoder: ChatEncoder) -> None:
    """See that questions can be asked about the pictures of each skill that shows any.

    Raises:
        DataError: they can't, or no skill shows any.
    """
    shown = {skill: pool for skill, pool in rows.pools.items() if shows_pictures(pool)}
    for skill, pool in (shown or rows.pools).items():
        ask_of_skill_pictures(
            rows.anchors[prompts_key(settings)],
            pool,
            1,
            encoder,
            asked=Joined([pool, *(task.examples for task in rows.tasks if task.name == skill)]),
            measured=rows.measured,
            seed=0,
        )
    for skill in rows.pools.keys() - shown.keys():
        logger.warning(
            f"{skill} shows no picture: while it is taught, anchor.skill_pictures asks nothing."
        )


def _may_differ(settings: DataSettings, checked: bool) -> bool:
    """Whether encoding may leave other rows of a source than reading did."""
    return not checked or settings.max_refused > 0


def _task(
    settings: DataSettings, key: str, label: str, encoder: ChatEncoder, checked: bool
) -> Task:
    source = Source(settings, [], key=key)
    examples = source.examples
    if _may_differ(settings, checked):
        examples = source.encode_items(examples, encoder)
        source.check()
    return make_task(settings.model_copy(update={"name": label}), examples, "target")


def _check(what: str, used: Sequence[Example], measured: Sequence[Example]) -> None:
    overlap = find_overlap(used, measured)
    if overlap:
        raise DataError(
            asked=f"{what}, and to measure what is learned and kept",
            found=f"{len(overlap)} rows on both sides, such as {overlap[0]}",
            do="take them out of one of the files",
        )
