"""Verdicts follow from numbers by their rules, and turn when the numbers do."""

from dataclasses import replace

import pytest

from narrowtune.core.results import DriftResult
from narrowtune.study import claims, claims_compared
from narrowtune.study.correlations import Correlation
from narrowtune.study.effects import Interval
from narrowtune.study.presets import LORA, LWF, MOE, WISE_FT
from narrowtune.study.readings import Part, Reading, combined, judged, setting_of
from narrowtune.study.results import BASE, ChainKey, StageResult, TaskScores, pack_scores
from narrowtune.study.rules import either, given, on_frontier

ITEMS = 400


def task(role, share, lenient=None):
    right = round(share * ITEMS)
    packed = pack_scores([1.0] * right + [0.0] * (ITEMS - right))
    lenient = share if lenient is None else lenient
    return TaskScores(role=role, mean=share, lenient=lenient, valid_format=1.0, items=packed)


def stage(arm, number, skill, learned, lost, seed=0, kl=0.1, rate=1e-3, lenient=None):
    """Return a stage in points learned (of its own skill) and lost."""
    kept = 0.8 - lost / 100
    lenient = kept if lenient is None else 0.8 - lenient / 100
    tasks = {name: task("target", 0.1) for name in ("birds", "counting", "tissue")}
    if skill:
        tasks[skill] = task("target", 0.1 + learned / 100)
    tasks |= {name: task("held_out", kept, lenient) for name in ("charts", "forms")}
    drift = DriftResult(
        num_prompts=1,
        num_tokens=1,
        kl_base_tuned=kl,
        kl_stderr=0.0,
        top1_agreement=1.0,
        token_groups=[],
        tasks=[],
        seconds=0.0,
    )
    key = ChainKey(arm=arm, learning_rate=rate, order="default" if skill else "", seed=seed)
    return StageResult(chain=key, stage=number, skill=skill, tasks=tasks, drift=drift)


BEFORE = stage(BASE, 0, "", 0, 0, rate=0.0)


def setting(name="counting", skills=("counting",), rate=1e-3, **arms):
    """Return a setting from each arm's (learned, lost[, KL[, lenient loss]]) at every stage."""
    results = [BEFORE]
    for arm, stages in arms.items():
        for seed in (0, 1, 2):
            for place, (skill, numbers) in enumerate(zip(skills, stages, strict=True), 1):
                learned, lost, *rest = numbers
                kl, lenient = (*rest, *(0.1, None)[len(rest) :])
                numbers = (learned + seed / 4, lost + seed / 4)
                results.append(
                    stage(arm, place, skill, *numbers, seed, kl + seed / 99, rate, lenient)
                )
    return setting_of(name, results, "default", len(skills), dict.fromkeys(arms, rate))


LM = "language_model"
CHAIN = ("birds", "counting", "tissue")
"""Counting is the second."""


def chain(**arms):
    return setting("chain", CHAIN, **arms)


def test_a_part_holds_only_with_its_whole_interval():
    for low, high, expected in ((1, 2, True), (-2, -1, False), (-1, 1, None)):
        figure = Interval(mean=0, low=low, high=high, seeds=(0, 0))
        assert judged("", figure, 0).holds is expected
        # What one seed says is of its items alone.
        assert judged("", figure.model_copy(update={"seeds": (0,)}), 0).holds is None
    assert judged("", None, 0).holds is None


def reading(*holds):
    parts = tuple(Part(what="", figure=None, holds=value) for value in holds)
    return Reading(setting="", parts=parts)


@pytest.mark.parametrize(
    ("readings", "verdict"),
    [
        ([reading(True, True)], "agrees"),
        ([reading(True, None)], "can't be told here"),
        ([reading(None, False)], "disagrees"),
        ([reading()], "can't be told here"),
        ([reading(True), reading(None)], "agrees"),
        ([reading(True), reading(False)], "can't be told here"),
        ([], "can't be told here"),
    ],
)
def test_readings_are_combined_by_rule(readings, verdict):
    assert combined(readings) == verdict


def test_a_premise_that_fails_silences_its_part_and_any_of_several_suffices():
    yes, no, open_ = (Part(what="", figure=None, holds=value) for value in (True, False, None))
    assert [part.holds for part in given(yes, no)] == [True, False]
    assert [part.holds for part in given(no, yes)] == [None, None]
    assert either([no, yes], higher=True).holds is True
    assert either([no, no], higher=True).holds is False
    assert either([no, open_], higher=True).holds is None


def test_of_several_parts_the_nearest_to_the_claim_is_shown():
    def part(mean, holds=False):
        figure = Interval(mean=mean, low=None, high=None, seeds=(mean,))
        return Part(what=str(mean), figure=figure, holds=holds)

    far, near = part(-40.0), part(-1.0)
    assert either([far, near], higher=True) == near
    assert either([near, far], higher=False) == far
    assert either([part(5.0), part(2.0, True)], higher=True).what == "2.0"
    missing = Part(what="", figure=None, holds=None)
    assert either([missing, far], higher=False).what == "-40.0"


def wide(numbers, name="counting", skills=("counting",), **others):
    """Return a setting in which all that is wide has the same numbers."""
    return setting(name, skills, **{**dict.fromkeys(claims.WIDE, numbers), **others})


def test_c1_wide_tuning_learns_forgets_and_counting_is_worst():
    worst = chain(language_model=[(30, 1), (30, 12), (30, 6)])
    assert claims.c1([wide([(40, 12)])], worst, 2).verdict == "agrees"
    assert claims.c1([wide([(40, 0)])], None, 2).verdict == "disagrees"
    assert claims.c1([wide([(5, 12)])], None, 2).verdict == "disagrees"
    # All of them: one that is told by nothing, or was not run, leaves it open.
    assert claims.c1([wide([(40, 12)], full=[(10, 12)])], None, 2).verdict == "can't be told here"
    assert claims.c1([setting(language_model=[(40, 12)])], None, 2).verdict == "can't be told here"
    last = chain(language_model=[(30, 1), (30, 2), (30, 14)])
    assert claims.c1([], last, 2).verdict == "disagrees"
    assert claims.c1([], None, 2).verdict == "can't be told here"


def test_the_same_runs_are_read_once():
    same = setting("best", language_model=[(40, 12)])
    twice = [same, replace(same, name="one rate")]
    for claim, parts in ((claims.c1(twice, None, 2), [6, 4]),):
        assert [len(reading.parts) for reading in claim.readings] == parts
    assert len(claims_compared.c12(twice, None, 2).readings) == 2  # lenient, and held to the form
    other = setting("one rate", language_model=[(40, 13)])
    assert len(claims.c1([same, other], None, 2).readings[1].parts) == 6


def test_c2_the_next_stage_regains():
    def judge(numbers, **others):
        return claims.c2(wide(numbers, "chain", CHAIN, **others), 2).verdict

    assert judge([(9, 1), (9, 12), (9, 6)]) == "agrees"
    assert judge([(9, 1), (9, 12), (9, 15)]) == "disagrees"
    # Where nothing was lost there is nothing to regain.
    assert judge([(9, 0), (9, 1), (9, 5)]) == "can't be told here"
    assert judge([(9, 1), (9, 12), (9, 6)], mlp=[(9, 0), (9, 1), (9, 5)]) == "can't be told here"
    alone = claims.c2(chain(language_model=[(9, 1), (9, 12), (9, 6)]), 2)
    assert alone.verdict == "can't be told here"


def test_what_was_lost_before_counting_is_not_countings():
    made = chain(language_model=[(9, 15), (9, 15.5), (9, 10)])
    for claim in (claims.c2(made, 2), claims_compared.c12([], made, 2)):
        assert claim.verdict == "can't be told here"
    # Counting adds 10 to the 10 there were, and 7 of its own come back.
    made = chain(language_model=[(9, 10), (9, 20), (9, 13)])
    assert claims_compared.c12([], made, 2).verdict == "agrees"


def test_without_a_next_stage_there_is_nothing_to_tell():
    made = chain(language_model=[(9, 1), (9, 12), (9, 6)])
    for claim in (claims.c2(made, 3), claims_compared.c12([], made, 3)):
        assert claim.verdict == "can't be told here"
        assert claim.readings[0].parts[-1].figure is None


def test_c3_every_stage_counts():
    wide = [(40, 5), (40, 20), (40, 20)]
    flat = chain(language_model=wide, sa_proj=[(30, 0), (30, 0), (30, 0)])
    assert claims.c3([flat], []).verdict == "agrees"
    once = chain(language_model=wide, sa_proj=[(30, 0), (30, 6), (30, 0)])
    assert claims.c3([once], []).verdict == "disagrees"
    weak = chain(language_model=wide, sa_proj=[(9, 0), (9, 0), (9, 0)])
    assert claims.c3([weak], []).verdict == "disagrees"


def test_c4_learning_is_judged_whatever_was_lost():
    assert claims.c4([setting(language_model=[(40, 20)], mlp_gate_up=[(39, 1)])], []).verdict == (
        "agrees"
    )
    for gate_up, wide in (((39, 12), 20), ((20, 1), 20), ((20, 0), 0)):
        made = setting(language_model=[(40, wide)], mlp_gate_up=[gate_up])
        assert claims.c4([made], []).verdict == "disagrees", (gate_up, wide)
    safe = setting(language_model=[(40, 0)], mlp_gate_up=[(40, 0)])
    assert claims.c4([safe], []).verdict == "can't be told here"


def test_c5_projector_and_tower():
    arms = {"language_model": [(40, 9)], "projector": [(3, 0)], "vision_tower": [(9, 20)]}
    assert claims.c5([setting(**arms)]).verdict == "agrees"
    harmless = setting(**{**arms, "vision_tower": [(9, 0)]})
    assert claims.c5([harmless]).verdict == "disagrees"
    without = {name: runs for name, runs in arms.items() if name != "projector"}
    assert claims.c5([setting(**without)]).verdict == "can't be told here"


def correlation(overall, within, without):
    return Correlation(
        measure="KL", stages=9, overall=overall, within={1e-3: within}, without={"a": without}
    )


def test_c6_needs_all_three_correlations():
    assert claims.c6({"x": [correlation(0.9, 0.6, 0.5)]}).verdict == "agrees"
    assert claims.c6({"x": [correlation(0.9, 0.6, 0.1)]}).verdict == "disagrees"
    assert claims.c6({"x": [correlation(0.9, 0.3, 0.9)]}).verdict == "can't be told here"
    assert claims.c6({"x": [correlation(None, 0.9, 0.9)]}).verdict == "can't be told here"


def test_c7_only_where_the_shift_is_smaller():
    arms = {"mlp": [(30, 20, 0.9)], "mlp_gate_up": [(30, 6, 0.2)]}
    assert claims_compared.c7([setting(**arms, **{LWF: [(30, 5, 0.1)]})]).verdict == "agrees"
    assert claims_compared.c7([setting(**arms, **{LWF: [(30, 30, 0.1)]})]).verdict == "disagrees"
    further = claims_compared.c7([setting(**arms, **{LWF: [(30, 30, 2.0)]})])
    assert further.verdict == "can't be told here"
    assert claims_compared.c7([setting(**arms)]).verdict == "can't be told here"


def test_c8_each_baseline_has_to_be_matched_by_one_recipe():
    others = {name: [(30, 10)] for name in (LWF, LORA, MOE, WISE_FT)}
    narrow = {"sa_proj": [(24, 1)], "mlp_gate_up": [(10, 10)]}
    assert claims_compared.c8([setting(**others, **narrow)]).verdict == "agrees"
    better = {**others, LORA: [(40, 1)]}
    assert claims_compared.c8([setting(**better, **narrow)]).verdict == "disagrees"
    fewer = {name: runs for name, runs in others.items() if name != MOE}
    assert claims_compared.c8([setting(**fewer, **narrow)]).verdict == "can't be told here"


def test_claims_are_not_read_from_runs_that_lack_seeds_or_learned_nothing():
    made = setting(language_model=[(40, 12)], full=[(40, 12)], mlp=[(40, 12)], projector=[(0, 0)])
    runs = {**made.runs, "full": {seed: made.runs["full"][seed] for seed in (0, 1)}}
    read = replace(made, runs=runs).readable(3, {"projector"})
    assert set(read.runs) == {"language_model", "mlp"}
    assert read.left_out == {"full": "2 of 3 seeds", "projector": "learns nothing at any rate"}
    assert claims.c1([made], None, 2).verdict == "agrees"
    assert claims.c1([read], None, 2).verdict == "can't be told here"


def test_c9_and_c10_need_every_setting():
    def judge(*settings):
        return claims_compared.everywhere("C9", "", settings, ["one", "two"]).verdict

    arms = {"language_model": [(40, 20)], "sa_proj": [(30, 1)], "mlp_gate_up": [(35, 5)]}
    one, two = setting("one", **arms), setting("two", **arms)
    assert judge(one, two) == "agrees"
    assert judge(one) == "can't be told here"
    assert judge(one, setting("two", **{**arms, "sa_proj": [(30, 40)]})) == "disagrees"


def test_c11_both_together():
    singles = {"sa_proj": [(20, 1)], "mlp_gate_up": [(30, 1)]}
    for both, verdict in (((28, 1), "agrees"), ((45, 1), "disagrees"), ((25, 1), "agrees")):
        made = setting(**singles, **{"sa_proj+mlp_gate_up": [both]})
        assert claims_compared.c11([made]).verdict == verdict
        # Which of the two is the better alone is not known without one of them.
        one = replace(made, runs={arm: r for arm, r in made.runs.items() if arm != "sa_proj"})
        if verdict == "disagrees":
            assert claims_compared.c11([one]).verdict == "can't be told here"


def test_c12_half_has_to_come_back():
    for after, verdict in ((2, "agrees"), (17, "disagrees")):
        made = chain(language_model=[(9, 1), (9, 20), (9, after)])
        assert claims_compared.c12([], made, 2).verdict == verdict
    for lenient, verdict in ((2, "agrees"), (20, "disagrees")):
        made = setting(language_model=[(30, 20, 0.1, lenient)])
        assert claims_compared.c12([made], None, 2).verdict == verdict


@pytest.mark.parametrize(("held", "verdict"), [(2, "agrees"), (20, "disagrees"), (10, None)])
def test_c12_reads_answers_held_to_the_right_form(held, verdict):
    made = setting(language_model=[(30, 20, 0.1, 10.5)])
    kept = {"charts": task("held_out", 0.9), "forms": task("held_out", 0.9)}
    after = {name: task("held_out", 0.9 - held / 100) for name in kept}
    runs = {
        arm: {
            seed: [stage.model_copy(update={"constrained": after}) for stage in run]
            for seed, run in runs.items()
        }
        for arm, runs in made.runs.items()
    }
    base = made.base.model_copy(update={"constrained": kept})
    claim = claims_compared.c12([replace(made, base=base, runs=runs)], None, 2)
    assert claim.readings[-1].setting.endswith("held to the right form")
    assert claim.readings[-1].verdict == (verdict or "can't be told here")
    # Not asked for, not told.
    assert claims_compared.c12([made], None, 2).readings[-1].verdict == "can't be told here"


def rates(arm, pairs, seed):
    return [
        stage(arm, 1, "counting", learned, lost, seed, rate=10.0**-place).model_copy(
            update={"validation": task("target", learned / 100)}
        )
        for place, (learned, lost) in enumerate(pairs)
    ]


def test_the_frontier_compares_at_equal_learning_and_not_reached_is_untold():
    wide = [r for seed in (0, 1, 2) for r in rates(LM, [(20, 10 + seed), (40, 30 + seed)], seed)]

    def parts(pairs, seeds=(0, 1, 2)):
        narrow = [r for seed in seeds for r in rates("sa_proj", pairs, seed)]
        return on_frontier([BEFORE, *wide, *narrow], (0, 1, 2), "sa_proj", 0.5)

    assert [part.holds for part in parts([(30, 1)])] == [True, True]
    assert [part.holds for part in parts([(30, 29)])] == [True, False]
    (never,) = parts([(10, 0)])
    assert (never.holds, never.what.endswith("not reached")) == (None, True)
    narrow = rates("sa_proj", [(30, 1)], 0) + rates("sa_proj", [(10, 0)], 1)
    (some,) = on_frontier([BEFORE, *wide, *narrow], (0, 1), "sa_proj", 0.5)
    assert (some.holds, some.what.endswith("reached by 1 of 2 seeds")) == (None, True)
    assert on_frontier([BEFORE, *wide], (0, 1, 2), "sa_proj", 0.5)[0].holds is None
