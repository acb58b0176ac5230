"""The ways that a comparison compares, by their names: a recipe, and what holds it.

Owns: what `+anchor`, `+projection`, `+pictures`, `+pull`, `+dial`, `+density` and `+mix` behind a
recipe's name change of a run, and which of them can't be compared with equal work.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from narrowtune.core.config import RunConfig
from narrowtune.core.errors import UsageError
from narrowtune.core.recipes import get_recipe

DEFAULT = (
    "sa_proj",
    "mlp_gate_up",
    "language_model",
    "sa_proj+anchor",
    "mlp_gate_up+anchor",
)
"""Both of the paper's recipes, the whole language model, and both with the anchor."""

MITIGATIONS = ("anchor", "projection", "pictures", "pull", "dial", "density", "mix")
"""What may stand behind a recipe, each after a "+"."""

PROJECTION, SKILL_PICTURES, PULL, DENSITY = 10.0, 40, 2.0, 0.5
"""`anchor.projection`, `anchor.skill_pictures` (a fifth of the questions, with the prompts that
ship), `training.pull_to_base` and `training.density` of ways that name them, where the file has
none."""


@dataclass(frozen=True)
class Contender:
    """One way to teach.

    Attributes:
        name: of its run's folder.
        changes: dotted settings that differ from the file's.
    """

    name: str
    changes: dict[str, Any]


def contenders(
    config: RunConfig, recipes: Sequence[str], learning_rates: Sequence[float]
) -> list[Contender]:
    """Return what is compared: every recipe at every rate.

    Pull, dial, density and mix are, where one of the ways names them, of those alone; else all have
    the file's.

    Args:
        config: the run that they are variants of.
        recipes: names of recipes; behind each, any of `MITIGATIONS` after a "+".
        learning_rates: the configuration's own unless given.

    Raises:
        UsageError: an unknown recipe, a way that is named twice or in two words, fewer than two
            runs, or a mix that the file has not, or that would be more steps.
    """
    rates = list(learning_rates) or [config.training.learning_rate]
    parts = {label: _parts(label) for label in recipes}
    named = frozenset(word for _, words in parts.values() for word in words)
    if "mix" in named:
        _check_mix(config)
    found = []
    for label in recipes:
        recipe, own = parts[label]
        changes = _changes(config, own, named)
        for rate in rates:
            name = label if len(rates) == 1 else f"{label} at {rate:g}"
            changed = {"recipe": recipe, **changes, "training.learning_rate": rate}
            found.append(Contender(name, changed))
    names = [contender.name for contender in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or len(found) < 2:
        raise UsageError(
            asked=f"a comparison of {', '.join(names) or 'nothing'}",
            found=f"{', '.join(twice)} more than once" if twice else "fewer than two runs",
            do="name at least two recipes, each once, such as --recipes sa_proj,mlp_gate_up+anchor",
        )
    _check_same(found)
    return found


def parse_rates(text: str) -> list[float]:
    """Return the rates in a text with commas between them.

    Raises:
        UsageError: one is no number above 0.
    """
    rates = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        try:
            rate = float(part)
        except ValueError:
            rate = 0.0
        if not 0 < rate < math.inf:
            raise UsageError(
                asked=f"--learning-rates {text}",
                found=f"{part!r}, which is no number above 0",
                do="write rates with commas between them, such as 1e-4,3e-4",
            )
        rates.append(rate)
    return rates


def _parts(label: str) -> tuple[str, frozenset[str]]:
    """Return a way's recipe, which may have a "+" of its own, and what stands behind it."""
    parts, words = label.split("+"), list[str]()
    while len(parts) > 1 and parts[-1] in MITIGATIONS:
        words.append(parts.pop())
    listed = ", ".join(f"+{word}" for word in MITIGATIONS)
    twice = sorted({word for word in words if words.count(word) > 1})
    if twice:
        raise UsageError(
            asked=f"the way {label}",
            found=f"+{twice[0]} more than once",
            do=f"name each of {listed} once",
        )
    try:
        return get_recipe("+".join(parts)).name, frozenset(words)
    except UsageError as error:
        behind = f"; behind a recipe may stand {listed}"
        raise UsageError(error.asked, error.found, error.do + behind) from None


def _changes(config: RunConfig, own: AbstractSet[str], named: AbstractSet[str]) -> dict[str, Any]:
    """Return what a way's mitigations change, given those that are named by any way."""
    changes: dict[str, Any] = {"anchor": None}
    if own & {"anchor", "projection", "pictures"}:
        settings = config.anchor.model_dump() if config.anchor is not None else {}
        if "pictures" in own and not settings.get("skill_pictures"):
            settings["skill_pictures"] = SKILL_PICTURES
        if "projection" in own and not settings.get("projection"):
            settings["projection"] = PROJECTION
        changes["anchor"] = settings or True
    if "dial" in named:
        dial = config.dial.model_dump() if config.dial is not None else True
        changes["dial"] = dial if "dial" in own else None
    if "pull" in named:
        pull = config.training.pull_to_base or PULL
        changes["training.pull_to_base"] = pull if "pull" in own else 0.0
    if "density" in named:
        density = config.training.density if config.training.density < 1 else DENSITY
        changes["training.density"] = density if "density" in own else 1.0
    if "mix" in named:
        rows = [mix.model_dump() for mix in config.mix]
        changes["mix"] = rows if "mix" in own else []
    return changes


def _check_mix(config: RunConfig) -> None:
    if not config.mix:
        raise UsageError(
            asked="a comparison of ways with +mix",
            found="a file without mix",
            do="say which rows are mixed in (mix: general.jsonl:0.1), or leave +mix out",
        )
    if config.training.max_steps < 0:
        raise UsageError(
            asked="a comparison of ways with +mix, with equal work",
            found="a training by epochs, of which those with rows mixed in have more steps",
            do="give training.max_steps: all ways then take as many steps",
        )


def _check_same(ways: Sequence[Contender]) -> None:
    """Refuse two names of one way: the second run would tell nothing."""
    for place, way in enumerate(ways):
        for other in ways[:place]:
            if way.changes == other.changes:
                raise UsageError(
                    asked=f"a comparison of {other.name} with {way.name}",
                    found="that both have the same settings, with what the file says",
                    do="leave one of them out",
                )
