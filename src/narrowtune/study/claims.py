"""The paper's claims C1 to C6 (arXiv 2510.08564): learning, forgetting, and the drift behind it.

Owns: which figures bear on each claim. No verdict is written anywhere: all are computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from narrowtune.study.correlations import Correlation
from narrowtune.study.formulas import LEAST_LOSS
from narrowtune.study.presets import REFERENCE
from narrowtune.study.readings import Part, Reading, Setting, above, below, minus
from narrowtune.study.rules import (
    LEAST_RHO,
    MUCH,
    NEARLY,
    NO_RHO,
    SHARE_LOST,
    Claim,
    added_loss,
    distinct,
    fewer,
    forgot,
    forgot_at,
    given,
    little,
    make_claim,
    more_than,
    tracks,
)

WIDE = ("language_model", "full", "mlp")

FRONTIER = "one skill, at equal learning"
"""Read between the chosen rates, in a straight line."""


def c1(single: Sequence[Setting], chained: Setting | None, place: int) -> Claim:
    """Wide tuning learns much and forgets; counting worst."""
    readings = []
    for setting in single:
        parts = tuple(
            part
            for arm in WIDE
            if setting in distinct(single, arm)
            for part in (
                above(f"learned by {arm} > {MUCH:g}", setting.learned(arm), MUCH),
                forgot(setting, arm),
            )
        )
        readings.append(Reading(setting=setting.name, parts=parts))
    if chained is not None and REFERENCE in chained.runs:
        number = len(next(iter(chained.runs[REFERENCE].values())))
        own = added_loss(chained, REFERENCE, place)
        for other in range(1, number + 1):
            if other != place:
                own = minus(own, added_loss(chained, REFERENCE, other), 1 / (number - 1))
        part = above("what counting's stage adds to the loss, less other stages' mean > 0", own, 0)
        readings.append(Reading(setting=f"{chained.name}: {REFERENCE}", parts=(part,)))
    return make_claim(
        "C1",
        "Tuning the whole model, the language model or its MLPs on a narrow skill learns much and "
        "lowers held-out scores; counting worst.",
        f"each: learned > {MUCH:g} and lost > {LEAST_LOSS:g} points; in the chain, counting's "
        "stage adds more loss than others do on average",
        readings,
    )


def c2(chained: Setting | None, place: int) -> Claim:
    """Part of the loss comes back at the stage after counting."""
    readings = []
    if chained is not None:
        parts: list[Part] = []
        for arm in WIDE:
            before, after = chained.lost(arm, place), chained.lost(arm, place + 1)
            back = above(f"regained by {arm} at the next stage > 0", minus(before, after), 0)
            parts += given(forgot_at(chained, arm, place), back)
        readings.append(Reading(setting=chained.name, parts=tuple(parts)))
    return make_claim(
        "C2",
        "The loss partly recovers when the next, different skill is tuned, without old data.",
        f"where counting's own stage lost more than {LEAST_LOSS:g} points, the next regains some",
        readings,
    )


def c3(settings: Sequence[Setting], frontiers: Sequence[Sequence[Part]]) -> Claim:
    """`sa_proj` learns substantially at no held-out loss, at every stage."""
    readings = [Reading(setting=FRONTIER, parts=tuple(parts)) for parts in frontiers]
    for setting in settings:
        if "sa_proj" not in setting.runs:
            continue
        number = len(next(iter(setting.runs["sa_proj"].values())))
        parts = [more_than(setting, "sa_proj", 0.5)] + [
            below(
                f"lost after stage {stage} < {LEAST_LOSS:g}",
                setting.lost("sa_proj", stage),
                LEAST_LOSS,
            )
            for stage in range(1, number + 1)
        ]
        readings.append(Reading(setting=setting.name, parts=tuple(parts)))
    return make_claim(
        "C3",
        "SA Proj learns substantially with about no held-out change through all five stages.",
        f"learned more than half of what {REFERENCE} does, and lost under {LEAST_LOSS:g} points "
        f"after every stage; on the frontier, at half of its learning, under {SHARE_LOST:g} of its "
        f"loss, where every seed gets there and {REFERENCE} loses over {LEAST_LOSS:g} there",
        readings,
    )


def c4(settings: Sequence[Setting], frontiers: Sequence[Sequence[Part]]) -> Claim:
    """`mlp_gate_up` learns nearly as much as the language model at little loss."""
    readings = [Reading(setting=FRONTIER, parts=tuple(parts)) for parts in frontiers]
    for setting in settings:
        if "mlp_gate_up" in setting.runs:
            loss = given(forgot(setting, REFERENCE), fewer(setting, "mlp_gate_up"))
            parts = (more_than(setting, "mlp_gate_up", NEARLY), *loss)
            readings.append(Reading(setting=setting.name, parts=parts))
    return make_claim(
        "C4",
        "Gate&Up with Down frozen learns nearly as much as the language model, with little "
        "forgetting.",
        f"learned > {NEARLY:g} and lost < {SHARE_LOST:g} of {REFERENCE}'s, where that lost more "
        f"than {LEAST_LOSS:g} points; on the frontier the latter at {NEARLY:g} of its learning, "
        "where every seed gets there",
        readings,
    )


def c5(settings: Sequence[Setting]) -> Claim:
    """The projector alone learns little; the tower alone learns little and forgets."""
    readings = []
    for setting in settings:
        parts = (
            little(setting, "projector"),
            little(setting, "vision_tower"),
            forgot(setting, "vision_tower"),
        )
        readings.append(Reading(setting=setting.name, parts=parts))
    return make_claim(
        "C5",
        "The projector alone learns little; the tower alone learns little and harms held-out.",
        f"both learn under half of what {REFERENCE} does; the tower loses over {LEAST_LOSS:g}",
        readings,
    )


def c6(found: Mapping[str, Sequence[Correlation]]) -> Claim:
    """Drift goes with forgetting."""
    readings = [
        Reading(
            setting=f"{name}: {correlation.measure}, {correlation.stages} stages",
            parts=(
                tracks("over all", correlation.overall),
                tracks("median within one rate", correlation.within_median),
                tracks("lowest with an arm left out", correlation.lowest_without),
            ),
        )
        for name, correlations in found.items()
        for correlation in correlations
    ]
    return make_claim(
        "C6",
        "Held-out loss tracks a shift of the output distribution; number-token bias goes with it.",
        f"Spearman's ρ ≥ {LEAST_RHO:g} over all, within a rate (median) and with any arm left "
        f"out; disagrees where one of them is ≤ {NO_RHO:g}",
        readings,
    )
