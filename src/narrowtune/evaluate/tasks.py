"""What a task is: items, how they are asked, and how answers are scored.

Owns: `Task`, its checks, and the hash that says whether two evaluations saw the same items.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from narrowtune.core.data_settings import DataSettings
from narrowtune.core.errors import EvaluationError
from narrowtune.core.results import Role
from narrowtune.data.examples import Example, Message, Text
from narrowtune.evaluate.own_metrics import identity


@dataclass(frozen=True)
class Task:
    """Items under a name, and how they are asked and scored.

    Attributes:
        name: what reports call it.
        role: `target` or `held_out`.
        metric: how an answer is scored.
        mode: `generate` decodes greedily; `options` takes the most likely of the given options.
        max_new_tokens: decode limit of `generate`.
        examples: the items, with ids that differ.
    """

    name: str
    role: Role
    metric: str
    mode: Literal["generate", "options"]
    max_new_tokens: int
    examples: Sequence[Example]

    def __post_init__(self) -> None:
        """Refuse what can't be evaluated, before a model is run."""
        if not self.examples:
            raise self._error("it has no items", "give a file with rows, or a larger share")
        repeated = [id for id, n in Counter(e.id for e in self.examples).items() if n > 1]
        if repeated:
            raise self._error(
                f"{len(repeated)} ids stand for more than one item, such as {repeated[0]!r}",
                "give every row an id of its own: before and after are paired by it",
            )
        for example in self.examples:
            if not example.answers:
                raise self._error(
                    f"the item {example.id!r} has no accepted answer", "add one, or drop the row"
                )
            if self.mode == "options" and len(example.options) < 2:
                raise self._error(
                    f"the item {example.id!r} has {len(example.options)} options",
                    "give at least two options per row, or use mode 'generate'",
                )

    def _error(self, found: str, do: str) -> EvaluationError:
        return EvaluationError(asked=f"evaluate the task {self.name!r}", found=found, do=do)

    @property
    def groups(self) -> list[str]:
        """What each item shares with others."""
        return [example.cluster for example in self.examples]

    @cached_property
    def sha256(self) -> str:
        """Hash of everything that decides the items' scores, besides the model and its chat."""
        digest = hashlib.sha256()
        for part in (identity(self.metric), self.mode, str(self.max_new_tokens)):
            digest.update(part.encode() + b"\0")
        for example in self.examples:
            digest.update(json.dumps(_content(example), ensure_ascii=False).encode() + b"\0")
        return digest.hexdigest()


def make_task(settings: DataSettings, examples: Sequence[Example], role: Role) -> Task:
    """Return the task of one data source.

    Raises:
        EvaluationError: no items, ids that repeat, an item without answer, or one with fewer than
            two options in mode `options`.
    """
    return Task(
        name=settings.label,
        role=role,
        metric=settings.metric,
        mode=settings.mode,
        max_new_tokens=settings.max_new_tokens,
        examples=examples,
    )


def question_of(messages: Sequence[Message]) -> str:
    """Return the text of the last user turn."""
    return next((m.text for m in reversed(messages) if m.role == "user"), "")


def picture_of(example: Example) -> str | None:
    """Return the path of the item's first picture below its root; None for bytes or no picture."""
    return next((image.name for image in example.images if image.name is not None), None)


def _content(example: Example) -> list[object]:
    turns = [
        [message.role, *(p.text if isinstance(p, Text) else {"image": 1} for p in message.content)]
        for message in example.prompt
    ]
    pictures = example.image_hashes
    told = ["told by system"] if example.is_told_by_system else []  # another cluster, then
    return [example.id, turns, pictures, example.answers, example.options, example.group, *told]
