"""System turns that hold what a row is about, such as the document that a question is asked of.

Owns: which rows of a source are told apart by their system turn, and which only by what they ask.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from narrowtune.data.examples import Example, folded_hash
from narrowtune.data.spilled import Spilled

_MANY = 8  # more system turns around one question are no variants of how answers are worded


class Contexts:
    """Looks at the rows of a source as they pass, and then says which are told apart.

    A question is asked of many contexts, or in a few manners: the system turn counts where the
    question has more of them than these have questions (on average), or more than eight. So a
    system turn that all rows share never counts, nor do a few that each stand before many
    questions; documents that one question, or some, are asked about do.
    """

    def __init__(self) -> None:
        self._systems = array("Q")

    def seen(self, examples: Iterable[Example]) -> Iterator[Example]:
        """Pass rows on, and note what system turns they have."""
        for example in examples:
            # Not `system_hash`: what a row remembers of itself is put beside memory with it.
            self._systems.append(_number(folded_hash(example.system)))
            yield example

    def told(self, examples: Sequence[Example]) -> tuple[Sequence[Example], list[str]]:
        """Return the rows that were seen, those that are told apart marked so, and notes.

        Where there is one system turn or none, no row is looked at again.
        """
        systems = np.array(self._systems, np.uint64)
        if len(np.unique(systems[systems != 0])) < 2:
            return examples, []
        asked = np.fromiter((_number(each.asked_hash) for each in examples), np.uint64)
        marks = _are_told(asked, systems)
        if not marks.any():
            return examples, []
        pairs = zip(examples, marks.tolist(), strict=True)
        marked = Spilled(
            replace(each, is_told_by_system=True) if mark else each for each, mark in pairs
        )
        return marked, [
            f"{marks.sum()} rows ask what others ask, and are told apart by their system turns."
        ]


def _are_told(asked: np.ndarray, systems: np.ndarray) -> np.ndarray:
    """Return for each row whether its system turn counts.

    Args:
        asked: [N], numbers of what is asked.
        systems: [N], numbers of the system turns; 0 for none, which is no evidence either way.
    """
    has = systems != 0
    pairs = np.unique(np.stack([asked[has], systems[has]], axis=1), axis=0)
    questions, question, num_systems = np.unique(
        pairs[:, 0], return_inverse=True, return_counts=True
    )
    _, system, num_questions = np.unique(pairs[:, 1], return_inverse=True, return_counts=True)
    # How many questions the system turns of each question have, all together.
    total = np.bincount(question, weights=num_questions[system])
    counts = (num_systems**2 > total) | (num_systems > _MANY)
    return has & np.isin(asked, questions[counts])


def _number(digest: str) -> int:
    """Return 64 bits of a hash: of a million rows, two are the same by chance in no real source."""
    return int(digest[:16], 16) if digest else 0
