"""Intervals over seeds and items, and correlations over parts of the runs."""

import json
from random import Random

import numpy as np
import pytest
from scipy import stats

from narrowtune.core.results import DriftResult
from narrowtune.study.correlations import correlate, points_in
from narrowtune.study.effects import Effect, Items, learned, lost, over_seeds, remaining
from narrowtune.study.readings import judged
from narrowtune.study.results import BASE, ChainKey, StageResult, TaskScores, pack_scores


def effect(*seeds, scale=1.0):
    return Effect({n: {"x": Items(np.array(v, float), scale)} for n, v in enumerate(seeds)})


def test_one_seed_has_the_t_interval_of_its_items():
    values = [3.0, 5.0, 10.0, -2.0, 4.0]
    found = effect(values).interval()
    low, high = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    assert (found.mean, found.low, found.high) == pytest.approx((4, low, high))
    assert found.seeds == pytest.approx((4,))


def test_seeds_that_differ_widen_it():
    same = effect([1, 3, 1, 3], [1, 3, 1, 3]).interval()
    differ = effect([0, 2, 0, 2], [2, 4, 2, 4]).interval()
    assert same.mean == differ.mean == 2
    assert differ.high - differ.low > 2 * (same.high - same.low)
    assert differ.seeds == (1, 3)


def test_no_change_at_all_is_not_certainty():
    found = effect([0.0] * 50, scale=100).interval()
    assert found.mean == 0
    assert 2 < found.high < 8  # the exact bound is 6 points
    assert effect([0.0] * 500, scale=100).interval().high < found.high / 5


def test_pairs_cancel_what_they_share():
    noise = [Random(n).choice((0, 100)) for n in range(60)]
    better = [value + (5 if place % 2 else 3) for place, value in enumerate(noise)]
    difference = effect(better).plus(effect(noise), -1).interval()
    assert difference.mean == pytest.approx(4)
    assert difference.high - difference.low < 1
    alone = effect(better).interval()
    assert alone.high - alone.low > 20


def test_a_difference_is_over_the_seeds_that_both_have_and_the_terms_of_either():
    other = Effect({1: {"y": Items(np.array([10.0, 20.0]), 1.0)}})
    found = effect([1, 3], [5, 7]).plus(other, -0.1)
    assert found.interval().seeds == pytest.approx((6 - 1.5,))
    assert set(found.terms[1]) == {"x", "y"}
    assert effect([1]).plus(Effect({9: {}})).interval() is None


@pytest.mark.parametrize(
    ("number", "between", "least"), [(2, 1, 0.93), (2, 4, 0.86), (3, 1, 0.93), (3, 4, 0.89)]
)
def test_the_interval_covers(number, between, least):
    # Seeds that differ more than items tell are few values for a wide spread: docs/decisions/0012.
    draw, hits = np.random.default_rng(0), 0
    for _ in range(600):
        items = draw.normal(0, 10, 100)
        seeds = [items + draw.normal(0, between) + draw.normal(0, 5, 100) for _ in range(number)]
        found = effect(*seeds).interval()
        hits += found.low <= 0 <= found.high
    assert least <= hits / 600 <= 0.98


def test_numbers_per_seed_have_a_t_interval_too():
    found = over_seeds([1.0, 2.0, 6.0])
    low, high = stats.t.interval(0.95, 2, 3, stats.sem([1, 2, 6]))
    assert (found.low, found.high) == pytest.approx((low, high))
    for values in ([1.0], [2.0, 2.0, 2.0]):  # no certainty in either
        open_ = over_seeds(values)
        assert (open_.mean, open_.low, open_.high) == (values[0], None, None)
        assert judged("", open_, 0).holds is None
        json.dumps(json.loads(open_.model_dump_json()), allow_nan=False)
        assert "Infinity" not in open_.model_dump_json()
    assert over_seeds([]) is None


def scores(role, items):
    mean = sum(items) / len(items)
    packed = pack_scores(items)
    return TaskScores(role=role, mean=mean, lenient=mean, valid_format=1.0, items=packed)


def stage(arm, number, skill, drift=None, rate=1e-3, seed=0, **tasks):
    roles = {"count": "target", "clock": "target"}
    return StageResult(
        chain=ChainKey(arm=arm, learning_rate=rate, order="default", seed=seed),
        stage=number,
        skill=skill,
        tasks={name: scores(roles.get(name, "held_out"), items) for name, items in tasks.items()},
        drift=drift,
    )


BEFORE = stage(BASE, 0, "", count=[0, 0], clock=[0, 1], charts=[1, 1], forms=[1, 0.4])
FIRST = stage("a", 1, "count", count=[1, 1], clock=[0, 0], charts=[1, 0], forms=[1, 0.4])
SECOND = stage("a", 2, "clock", count=[0, 1], clock=[1, 1], charts=[0, 0], forms=[0.5, 0.4])


def value(terms):
    return Effect({0: terms}).interval().mean


def test_learning_is_at_each_skills_own_stage_and_loss_a_mean_over_stages():
    assert value(learned(BEFORE, [FIRST])) == pytest.approx(100)
    assert value(learned(BEFORE, [FIRST, SECOND])) == pytest.approx((100 + 50) / 2)
    assert value(lost(BEFORE, [FIRST])) == pytest.approx(25)
    assert value(lost(BEFORE, [SECOND])) == pytest.approx((100 + 25) / 2)
    assert value(lost(BEFORE, [FIRST, SECOND])) == pytest.approx((25 + 62.5) / 2)


def test_what_remains_is_what_the_last_stage_leaves_of_every_skill():
    third = stage("a", 3, "signs", count=[0, 0], clock=[1, 0], charts=[0, 0], signs=[1, 1])
    base = BEFORE.model_copy(update={"tasks": {**BEFORE.tasks, "signs": scores("target", [1, 0])}})
    assert value(remaining(BEFORE, [FIRST])) == value(learned(BEFORE, [FIRST]))
    assert value(remaining(BEFORE, [FIRST, SECOND])) == pytest.approx((50 + 50) / 2)
    # One is gone, one is where the base was, and the last is there.
    assert value(remaining(base, [FIRST, SECOND, third])) == pytest.approx((0 + 0 + 50) / 3)


def drift(kl):
    return DriftResult(
        num_prompts=1,
        num_tokens=1,
        kl_base_tuned=kl,
        kl_stderr=0.0,
        top1_agreement=1.0,
        token_groups=[],
        tasks=[],
        seconds=0.0,
    )


def runs(arm, rate, pairs):
    return [
        stage(arm, 1, "count", drift(kl), rate, seed, count=[0, 0], charts=[1 - lost] * 2)
        for seed, (kl, lost) in enumerate(pairs)
    ]


def test_correlations_show_what_one_arm_or_one_rate_makes():
    base = stage(BASE, 0, "", count=[0, 0], charts=[1, 1])
    # Within "a" KL and loss go apart; "b", the outlier, turns the sign over all.
    found = [base, *runs("a", 1e-3, [(0.1, 0.3), (0.2, 0.2), (0.3, 0.1)])]
    found += runs("b", 1e-2, [(0.9, 0.9), (0.8, 0.8), (0.7, 0.7), (1.0, 1.0)])
    points = points_in([found, found])
    assert len(points) == 7  # each run once
    made = correlate(points, "KL")
    assert made.overall > 0.8
    assert made.without == {"a": pytest.approx(1), "b": pytest.approx(-1)}
    assert made.lowest_without == pytest.approx(-1)
    assert made.within == {}  # one arm at each rate
    assert correlate(points, "number-token bias").stages == 0


def test_rates_are_grouped_in_units_of_the_arms_own_grid():
    base = stage(BASE, 0, "", count=[0, 0], charts=[1, 1])
    found = [base]
    for place, arm in enumerate(("a", "c", "d"), 1):
        found += runs(arm, 3e-4, [(place / 10, place / 10)])
    found += runs("adapters", 3e-3, [(0.4, 0.4)])
    found += runs("b", 3e-3, [(0.9, 0.1), (0.8, 0.2), (0.7, 0.3), (0.6, 0.4)])
    points = points_in([found])
    assert correlate(points, "KL", {"adapters": 10}).within == {3e-4: pytest.approx(1)}
    assert correlate(points, "KL").within == {}  # three arms, and two


def test_within_a_rate_seeds_are_no_runs_of_their_own():
    base = stage(BASE, 0, "", count=[0, 0], charts=[1, 1])
    found = [base]
    for place, arm in enumerate("abcd", 1):
        # Within an arm KL and loss go apart, between arms together.
        found += runs(arm, 1e-3, [(place / 10, place / 10), (place / 10 - 0.3, place / 10 + 0.3)])
    made = correlate(points_in([found]), "KL")
    assert made.within == {1e-3: pytest.approx(1)}
    assert made.overall < 0.5
    # Where nobody lost anything, an order of losses is noise.
    still = [base]
    for place, arm in enumerate("abcd", 1):
        still += runs(arm, 1e-3, [(place / 10, place / 1000)])
    assert correlate(points_in([still]), "KL").within == {}
