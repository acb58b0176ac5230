"""The rows of a study: what is taught, what is measured, and that nothing is both.

Owns: a study's reading of its files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from narrowtune.core.config import AnchorSettings
from narrowtune.core.data_settings import DataSettings
from narrowtune.core.errors import DataError
from narrowtune.core.study_settings import StudySettings
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.examples import Example, Message
from narrowtune.data.rows import read_rows
from narrowtune.data.spilled import Joined
from narrowtune.data.splits import find_overlap, split_examples
from narrowtune.evaluate.tasks import Task, make_task
from narrowtune.pipeline.inputs import SHIPPED_ANCHOR_PROMPTS, shipped_prompts, unmeasured
from narrowtune.pipeline.sources import Source


@dataclass
class StudyRows:
    """Everything that is taught and scored.

    Attributes:
        pools: rows of each skill to draw from.
        validation: rows of each skill that were kept back.
        tasks: the tests of all skills, then the keep sets.
        anchors: prompts of each arm's anchor, by its settings as JSON.
    """

    pools: dict[str, Sequence[Example]] = field(default_factory=dict)
    validation: dict[str, Task] = field(default_factory=dict)
    tasks: list[Task] = field(default_factory=list)
    anchors: dict[str, list[tuple[Message, ...]]] = field(default_factory=dict)


def read_study(settings: StudySettings, encoder: ChatEncoder) -> StudyRows:
    """Read all files of a study.

    Raises:
        DataError: rows can't be used, or are both learned from and measured.
    """
    rows = StudyRows()
    for number, skill in enumerate(settings.skills):
        source = Source(skill, [], key=f"skills.{number}")
        usable = source.encodable(source.examples, encoder.encode)
        source.check()
        parts = split_examples(usable, skill.validation, 0.0, 0)
        rows.pools[skill.label] = parts["train"]
        if parts["validation"]:
            rows.validation[skill.label] = make_task(skill, parts["validation"], "target")
        tested = skill.model_copy(update={"path": skill.test_path, "limit": None})
        rows.tasks.append(_task(tested, f"skills.{number}", skill.label, encoder))
    for number, keep in enumerate(settings.keep):
        task = _task(keep, f"keep.{number}", keep.label, encoder)
        rows.tasks.append(
            Task(**{**vars(task), "role": "held_out"})  # the same items in another role
        )
    measured = Joined(task.examples for task in rows.tasks)
    for name, pool in rows.pools.items():
        # A rate that is chosen on test rows would be one of luck with them.
        kept_back = rows.validation[name].examples if name in rows.validation else ()
        _check(f"to teach {name} and choose its rate", Joined([pool, kept_back]), measured)
    for arm in settings.arms:
        for mix in arm.mix:
            general = read_rows(mix.rows())
            _check(f"to replay {mix.path}", general.examples, measured)
        if arm.anchor is not None:
            key = arm.anchor.model_dump_json()
            if key not in rows.anchors:
                rows.anchors[key] = _anchor_prompts(arm.anchor, measured, encoder)
    return rows


def _task(settings: DataSettings, key: str, label: str, encoder: ChatEncoder) -> Task:
    source = Source(settings, [], key=key)
    examples = source.encode_items(source.examples, encoder)
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


def _anchor_prompts(
    settings: AnchorSettings, measured: Sequence[Example], encoder: ChatEncoder
) -> list[tuple[Message, ...]]:
    named = settings.rows(shipped_prompts(SHIPPED_ANCHOR_PROMPTS), "anchor.prompts")
    source = Source(named, [], key="anchor.prompts", prompts_only=True)
    allowed, _ = unmeasured(named.path, source.examples, measured)
    return source.encode_prompts(allowed[: settings.max_prompts], encoder)
