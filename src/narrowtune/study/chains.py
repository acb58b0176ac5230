"""From a study's settings to the chains that are to run, and what is left of them.

Owns: the order in which chains run: every arm before the next seed, so that a study that is
stopped has compared all arms.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from narrowtune.core.study_settings import ArmSettings, StudySettings
from narrowtune.study.results import ChainKey, StageResult, by_chain


@dataclass(frozen=True)
class Chain:
    """One model taught skill after skill.

    Attributes:
        key: which one.
        arm: its recipe and what is added.
        skills: names in the order in which they are taught.
    """

    key: ChainKey
    arm: ArmSettings
    skills: tuple[str, ...]


def all_chains(settings: StudySettings) -> Iterator[Chain]:
    """Yield every chain that the settings ask for."""
    for seed in settings.seeds:
        for order, skills in settings.all_orders.items():
            for arm in settings.arms:
                for rate in arm.learning_rates:
                    key = ChainKey(arm=arm.label, learning_rate=rate, order=order, seed=seed)
                    yield Chain(key, arm, tuple(skills))


def open_chains(chains: Sequence[Chain], results: Sequence[StageResult]) -> list[Chain]:
    """Return the chains of which a stage is missing."""
    done = by_chain(results)
    return [chain for chain in chains if len(done.get(chain.key, ())) < len(chain.skills)]
