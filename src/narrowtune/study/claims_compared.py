"""The paper's claims C7 to C12 (arXiv 2510.08564): what limits forgetting, and where else it holds.

Owns: which figures bear on each claim. No verdict is written anywhere: all are computed.
"""

from __future__ import annotations

from collections.abc import Sequence

from narrowtune.study.effects import over_seeds
from narrowtune.study.formulas import LEAST_LOSS
from narrowtune.study.presets import LORA, LWF, MOE, REFERENCE, WISE_FT
from narrowtune.study.readings import UNTOLD, Part, Reading, Setting, above, below, judged, minus
from narrowtune.study.rules import (
    Claim,
    added_loss,
    distinct,
    either,
    forgot,
    forgot_at,
    given,
    make_claim,
    more_than,
)

BASELINES = (LWF, LORA, MOE, WISE_FT)


def c7(settings: Sequence[Setting]) -> Claim:
    """What limits the shift limits forgetting: distillation, and Down frozen."""
    readings = []
    for setting in settings:
        parts: list[Part] = []
        for arm in (LWF, "mlp_gate_up"):
            wide, narrow = setting.kl("mlp"), setting.kl(arm)
            shifts = [wide[seed] - narrow[seed] for seed in wide if seed in narrow]
            shift = judged(f"KL of mlp, less that of {arm} > 0", over_seeds(shifts), 0, digits=3)
            less = minus(setting.lost("mlp"), setting.lost(arm))
            parts += given(shift, above(f"loss of mlp, less that of {arm} > 0", less, 0))
        readings.append(Reading(setting=setting.name, parts=tuple(parts)))
    return make_claim(
        "C7",
        "What limits the shift (distillation, freezing Down) limits forgetting.",
        "where KL is smaller than that of mlp, so is the loss",
        readings,
    )


def c8(settings: Sequence[Setting]) -> Claim:
    """The narrow recipes' balance is no worse than that of the baselines."""
    readings = []
    for setting in settings:
        parts = [
            either(
                [
                    above(
                        f"learned − lost of {arm}, less that of {other} > −{LEAST_LOSS:g}",
                        minus(setting.balance(arm), setting.balance(other)),
                        -LEAST_LOSS,
                    )
                    for arm in ("sa_proj", "mlp_gate_up")
                ],
                higher=True,
            )
            for other in BASELINES
        ]
        readings.append(Reading(setting=setting.name, parts=tuple(parts)))
    return make_claim(
        "C8",
        "The recipes match or exceed LwF, LoRA, MoE and WiSE-FT in the balance of learning and "
        "forgetting.",
        f"for each, learned − lost of sa_proj or of mlp_gate_up is at most {LEAST_LOSS:g} points "
        "lower",
        readings,
    )


def everywhere(number: str, text: str, settings: Sequence[Setting], needed: Sequence[str]) -> Claim:
    """C9 and C10: narrow recipes forget less than the language model, in every one of these."""
    readings = [
        Reading(
            setting=setting.name,
            parts=tuple(
                part
                for arm in ("sa_proj", "mlp_gate_up")
                for part in (
                    more_than(setting, arm, 0.5),
                    above(
                        f"loss of {REFERENCE}, less that of {arm} > 0",
                        minus(setting.lost(REFERENCE), setting.lost(arm)),
                        0,
                    ),
                )
            ),
        )
        for setting in settings
    ]
    missing = [name for name in needed if name not in {setting.name for setting in settings}]
    made = make_claim(
        number,
        text,
        f"in each, sa_proj and mlp_gate_up learn more than half of what {REFERENCE} does and lose "
        f"less; agrees only with all of {', '.join(needed)}",
        readings,
    )
    verdicts = {reading.verdict for reading in readings}
    if "disagrees" in verdicts:
        return made.model_copy(update={"verdict": "disagrees"})
    whole = not missing and verdicts == {"agrees"}
    return made.model_copy(update={"verdict": "agrees" if whole else UNTOLD})


def c11(settings: Sequence[Setting]) -> Claim:
    """Both narrow recipes together bring nothing."""
    both, readings = "sa_proj+mlp_gate_up", []
    for setting in settings:
        part = either(
            [
                below(
                    f"learned − lost, less that of {arm} alone < {LEAST_LOSS:g}",
                    minus(setting.balance(both), setting.balance(arm)),
                    LEAST_LOSS,
                )
                for arm in ("sa_proj", "mlp_gate_up")
            ],
            higher=False,
        )
        readings.append(Reading(setting=setting.name, parts=(part,)))
    return make_claim(
        "C11",
        "SA Proj and Gate&Up together bring no gain or degrade.",
        f"learned − lost is not {LEAST_LOSS:g} points higher than that of one of them alone",
        readings,
    )


def c12(settings: Sequence[Setting], chained: Setting | None, place: int) -> Claim:
    """Knowledge is suppressed, not lost: half of the loss comes back with the next skill."""
    readings = []
    if chained is not None and REFERENCE in chained.runs:
        before, after = chained.lost(REFERENCE, place), chained.lost(REFERENCE, place + 1)
        regained = minus(before, after)
        own = added_loss(chained, REFERENCE, place)  # what earlier stages lost is not counting's
        half = above("regained, less half of that > 0", minus(regained, own, 0.5), 0)
        name = f"{chained.name}: {REFERENCE}, the next stage"
        parts = given(forgot_at(chained, REFERENCE, place), half)
        readings.append(Reading(setting=name, parts=parts))
    for setting in distinct(settings, REFERENCE):
        readings.append(_by_form(setting))
        free, held = setting.lost(REFERENCE), setting.lost_in_form(REFERENCE)
        half = above(
            "regained in the right form, less half of the loss > 0",
            minus(minus(free, held), free, 0.5),
            0,
        )
        name = f"{setting.name}: {REFERENCE}, held to the right form"
        readings.append(Reading(setting=name, parts=given(forgot(setting, REFERENCE), half)))
    return make_claim(
        "C12",
        "Knowledge is suppressed, not lost.",
        f"where {REFERENCE} lost more than {LEAST_LOSS:g} points, at least half comes back: with "
        "the next skill; when answers are read leniently; and when they are held to the right form",
        readings,
    )


def _by_form(setting: Setting) -> Reading:
    """Half of the loss is one of form: the lenient reading has it right."""
    values = []
    for run in setting.runs.get(REFERENCE, {}).values():
        tasks = [(t, run[-1].tasks[n]) for n, t in setting.base.tasks.items() if t.role != "target"]
        strict = sum(before.mean - after.mean for before, after in tasks)
        lenient = sum(before.lenient - after.lenient for before, after in tasks)
        values.append(100 * (strict / 2 - lenient) / len(tasks))
    half = judged("half of the strict loss, less the lenient one > 0", over_seeds(values), 0)
    name = f"{setting.name}: {REFERENCE}, read leniently"
    return Reading(setting=name, parts=given(forgot(setting, REFERENCE), half))
