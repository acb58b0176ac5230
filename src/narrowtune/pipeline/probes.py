"""What the drift probe of a run asks.

Owns: which sources there are, and that each gives as many prompts as any other; and what is asked
about the skill's own pictures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from narrowtune.core.config import DriftSettings
from narrowtune.core.results import DataSummary
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.examples import Example, Message, RefusedRow
from narrowtune.pipeline.crossed import probes_of_skill_pictures
from narrowtune.pipeline.prompts import DRIFT_KEY, equal_shares, free_sources

NUM_ABOUT_SKILL = 64
"""Most questions about the skill's pictures: what looks like these is what it takes over first."""


@dataclass
class DriftPrompts:
    """What is asked.

    Attributes:
        prompts: (source, prompt) pairs.
        about_skill: general questions about the pictures that the skill is tested on, apart.
        summaries: of the files, for the record.
        notes: for the record.
    """

    prompts: list[tuple[str, tuple[Message, ...]]] = field(default_factory=list)
    about_skill: list[tuple[Message, ...]] = field(default_factory=list)
    summaries: list[DataSummary] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_drift_prompts(
    settings: DriftSettings,
    encoder: ChatEncoder,
    refused: list[RefusedRow],
    *,
    keep: Mapping[str, Sequence[Example]],
    skill: Sequence[Example],
    asked: Iterable[Example],
    seed: int,
) -> DriftPrompts:
    """Take as many prompts from each source, the free ones and each keep set.

    A file of the user's own is all that is asked, but for its questions about pictures, which are
    asked about the skill's, too.

    Args:
        settings: of the probe.
        encoder: the chat template.
        refused: gets the rows that can't be used.
        keep: rows of each keep set; their prompts have been encoded as its items.
        skill: rows that it is tested on.
        asked: all rows of the skill, whose questions are not asked about its pictures.
        seed: of what is drawn.

    Raises:
        DataError: the file can't be read, or one of its prompts can't be used.
    """
    found, limit = DriftPrompts(), settings.max_prompts
    kept = {} if settings.prompts else keep
    pictured = (example for rows in kept.values() for example in rows if example.images)
    beside = (encoder.encode_prompt(example.prompt) for example in pictured)
    sources, notes = free_sources(settings, encoder, refused, DRIFT_KEY, beside)
    found.notes.extend(notes)
    sizes = [len(source.examples) for source in sources.values()]
    shares = iter(equal_shares(limit, [*sizes, *map(len, kept.values())]))
    for name, source in sources.items():
        free = source.encode_prompts(source.examples[: next(shares)], encoder)
        found.summaries.append(source.summary("drift", len(free)))
        found.prompts += [(name, prompt) for prompt in free]
    about = probes_of_skill_pictures(
        [example.messages for source in sources.values() for example in source.examples[:limit]],
        skill,
        min(limit, NUM_ABOUT_SKILL),
        encoder,
        asked=asked,
        seed=seed,
    )
    found.about_skill = about.messages
    found.notes.extend(about.notes)
    for name, examples in kept.items():
        found.prompts += [(name, example.prompt) for example in examples[: next(shares)]]
    return found
