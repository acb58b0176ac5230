"""Rates: how grids are extended, and that test rows have no say in what is chosen."""

import math

import pytest

from narrowtune.core.errors import UsageError
from narrowtune.core.study_settings import ArmSettings
from narrowtune.study.choices import choose, extend, further_rate, points_of, step, trials
from narrowtune.study.results import BASE, ChainKey, StageResult, TaskScores

LOW, MIDDLE, HIGH = 1e-4, 3e-4, 1e-3


def scores(mean, role="target"):
    return TaskScores(role=role, mean=mean, lenient=mean, valid_format=1.0, items="")


def result(arm, rate, validation, test=0.5, kept=0.5):
    key = ChainKey(arm=arm, learning_rate=rate, order="default" if rate else "", seed=0)
    return StageResult(
        chain=key,
        stage=int(rate > 0),
        skill="counting" if rate else "",
        tasks={"counting": scores(test), "charts": scores(kept, "held_out")},
        validation=scores(validation) if validation is not None else None,
    )


def study(arms, tests=None, base=0.1):
    """Results of arms with a validation accuracy at each rate."""
    found = [result(BASE, 0.0, base)]
    for arm, rates in arms.items():
        for rate, validation in rates.items():
            test, kept = (tests or {}).get((arm, rate), (0.5, 0.5))
            found.append(result(arm, rate, validation, test, kept))
    return found


def points(arms):
    return points_of(study(arms), {arm: list(rates) for arm, rates in arms.items()}, 0)


INSIDE = {LOW: 0.2, MIDDLE: 0.8, HIGH: 0.6}
RISING = {LOW: 0.2, MIDDLE: 0.4, HIGH: 0.6}
FALLING = {LOW: 0.7, MIDDLE: 0.4, HIGH: 0.3}


@pytest.mark.parametrize(
    ("rate", "up", "expected"),
    [
        (1e-3, True, 3e-3),
        (3e-3, True, 1e-2),
        (1e-4, False, 3e-5),
        (3e-4, False, 1e-4),
        (1.7e-4, True, 3e-4),
    ],
)
def test_steps_are_of_half_a_decade(rate, up, expected):
    assert step(rate, up=up) == expected


def test_grids_are_extended_past_the_edge_and_equally(monkeypatch):
    found = extend(points({"inside": INSIDE, "rising": RISING, "falling": FALLING}))
    assert found["rising"] == [LOW, MIDDLE, HIGH, 3e-3]
    assert found["falling"] == [3e-5, LOW, MIDDLE, HIGH]
    # Halfway to the better neighbour of the best, which is HIGH.
    assert found["inside"] == [LOW, MIDDLE, 5.5e-4, HIGH]
    assert trials(found) == 4
    with pytest.raises(UsageError, match="as many"):
        trials({"a": [LOW], "b": [LOW, HIGH]})


def test_nothing_is_extended_where_every_best_is_inside():
    assert extend(points({"inside": INSIDE, "other": INSIDE})) is None


def test_runs_outside_the_grid_do_not_decide():
    # As after an interruption in a later round: the first round has to be decided as before.
    later = {**RISING, 3e-3: 0.1}
    now = points_of(study({"a": later}), {"a": [LOW, MIDDLE, HIGH]}, 0)
    assert further_rate(now["a"]) == 3e-3
    then = points_of(study({"a": later}), {"a": [LOW, MIDDLE, HIGH, 3e-3]}, 0)
    assert extend(then) is None


def test_missing_runs_and_missing_validation_are_errors():
    with pytest.raises(UsageError, match="missing"):
        points_of(study({"a": RISING}), {"a": [LOW, 1.0]}, 0)
    with pytest.raises(UsageError, match="no validation scores"):
        points_of(study({"a": {LOW: None}}), {"a": [LOW]}, 0)


ARMS = {
    arm.label: arm
    for arm in (
        ArmSettings(recipe="language_model", learning_rates=[1]),
        ArmSettings(recipe="sa_proj", learning_rates=[1]),
        ArmSettings(recipe="vision_tower", learning_rates=[1]),
        ArmSettings(recipe="mlp", learning_rates=[1], lora={"rank": 16}),
    )
}
VALIDATION = {
    "language_model": INSIDE,
    "sa_proj": {LOW: 0.44, MIDDLE: 0.7, HIGH: 0.74},
    "vision_tower": {LOW: 0.1, MIDDLE: 0.1, HIGH: 0.1},
    "mlp + LoRA 16": RISING,
}


def chosen(tests=None, base=0.1):
    results = study(VALIDATION, tests, base)
    found = points_of(results, {arm: list(rates) for arm, rates in VALIDATION.items()}, 0)
    return choose(found, results, ARMS, reference="language_model", made_from="x.jsonl")


def test_choices_follow_validation():
    made = chosen()
    assert made.base == pytest.approx(10)
    leader, narrow = made.arms["language_model"], made.arms["sa_proj"]
    assert (leader.best, leader.at_edge) == (MIDDLE, False)
    assert (narrow.best, narrow.at_edge) == (HIGH, True)
    # The best has 80 %, the base 10: half of the learning is at 45, three quarters at 62.5.
    assert narrow.near == {0.5: LOW, 0.75: MIDDLE, 0.9: HIGH}
    assert narrow.tried == pytest.approx({LOW: 44, MIDDLE: 70, HIGH: 74})
    assert narrow.rates == [LOW, MIDDLE, HIGH]
    # Of rates that are equally good, the lowest.
    assert made.arms["vision_tower"].best == LOW


def test_rates_past_the_best_are_no_candidates():
    # At 70 % on its way down, nearer to three quarters of the reference's learning than 45 %.
    falling = {LOW: 0.45, MIDDLE: 0.8, HIGH: 0.62}
    results = study({"language_model": INSIDE, "sa_proj": falling})
    found = points_of(results, {a: [LOW, MIDDLE, HIGH] for a in ("language_model", "sa_proj")}, 0)
    made = choose(found, results, ARMS, reference="language_model", made_from="x.jsonl")
    narrow = made.arms["sa_proj"]
    assert narrow.best == MIDDLE
    assert HIGH not in narrow.near.values()
    assert narrow.in_chains == narrow.near[0.75]


def test_the_base_moves_what_a_share_of_learning_is():
    # From 70 %, half of what is left to learn is 75 %.
    assert chosen(base=0.7).arms["sa_proj"].near[0.5] == HIGH


def test_the_papers_setting_is_one_rate():
    paper = {arm: choice.paper for arm, choice in chosen().arms.items()}
    assert paper == {
        "language_model": 3e-4,
        "sa_proj": 3e-4,
        "vision_tower": 1.2e-4,
        "mlp + LoRA 16": 3e-3,
    }


def test_test_rows_have_no_say():
    tests = {
        (arm, rate): (abs(math.sin(place)), abs(math.cos(place)))
        for place, (arm, rate) in enumerate(
            (a, r) for a, rates in VALIDATION.items() for r in rates
        )
    }
    assert chosen(tests) == chosen()


def test_a_base_without_validation_scores_is_an_error():
    with pytest.raises(UsageError, match="base without validation"):
        chosen(base=None)
