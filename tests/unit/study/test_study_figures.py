"""A study's figures show every arm, seed and stage that there are numbers for."""

import re

from narrowtune.core.layers import LayerContributions
from narrowtune.core.results import DriftResult, TokenGroupMass
from narrowtune.study.figures import draw_study
from narrowtune.study.results import BASE, ChainKey, StageResult, TaskScores


def scores(role, mean):
    return TaskScores(role=role, mean=mean, lenient=mean, valid_format=1.0, items="")


def stage(arm, rate, seed, number, skill, learned, kept):
    return StageResult(
        chain=ChainKey(arm=arm, learning_rate=rate, order="default", seed=seed),
        stage=number,
        skill=skill,
        tasks={
            "count": scores("target", learned),
            "clock": scores("target", learned),
            "charts": scores("held_out", kept),
        },
    )


def results(arms=("sa_proj", "a$b$c")):
    found = [stage(BASE, 0.0, 0, 0, "", 0.1, 0.9)]
    for arm in arms:
        for rate in (1e-4, 1e-3):
            for seed in (0, 1):
                found.append(stage(arm, rate, seed, 1, "count", 0.3, 0.8 - seed / 20))
                found.append(stage(arm, rate, seed, 2, "clock", 0.4, 0.7 - seed / 10))
    return found


def test_each_figure_names_every_arm(tmp_path):
    drawn = draw_study(results(), {"default": ["count", "clock"]}, tmp_path)
    assert drawn == ["frontier", "stages"]
    for name in drawn:
        text = (tmp_path / f"{name}.svg").read_text()
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
        for arm in ("sa_proj", "a$b$c"):
            assert re.search(rf"<!-- {re.escape(arm)}", text), (name, arm)


def test_arms_are_compared_at_equal_learning_and_what_is_not_reached_is_said(tmp_path):
    learned = {"language_model": (0.4, 0.8), "sa_proj": (0.3, 0.6)}
    found = [stage(BASE, 0.0, 0, 0, "", 0.0, 0.9)]
    for arm, values in learned.items():
        for rate, value in zip((1e-4, 1e-3), values, strict=True):
            for seed in (0, 1):
                one = stage(arm, rate, seed, 1, "count", value, 0.8 - seed / 20)
                kept_back = scores("target", value)
                found.append(one.model_copy(update={"validation": kept_back}))
    drawn = draw_study(found, {"default": ["count"]}, tmp_path)
    assert drawn == ["frontier", "matched"]
    text = (tmp_path / "matched.svg").read_text()
    assert all(f"<!-- {arm} -->" in text for arm in learned)
    # 60 points are three quarters of the best 80, and less than nine tenths of it.
    assert text.count("<!-- not reached: 2 of 2 -->") == 1


def test_orders_have_figures_of_their_own_and_missing_chains_none(tmp_path):
    orders = {"default": ["count", "clock"], "reversed": ["clock", "count"]}
    drawn = draw_study(results(), orders, tmp_path)
    assert drawn == ["frontier-default", "stages-default"]


def test_more_arms_than_colours_can_be_told_apart(tmp_path):
    arms = tuple(f"arm {number}" for number in range(20))
    drawn = draw_study(results(arms), {"default": ["count", "clock"]}, tmp_path)
    text = (tmp_path / f"{drawn[0]}.svg").read_text()
    assert all(f"<!-- {arm} -->" in text for arm in arms)


def drift(tuned):
    group = TokenGroupMass(
        name="numbers",
        num_tokens_in_group=10,
        base_max=0.1,
        tuned_max=tuned,
        base_mass=0.1,
        tuned_mass=tuned,
    )
    return DriftResult(
        num_prompts=1,
        num_tokens=1,
        kl_base_tuned=tuned,
        kl_stderr=0.0,
        top1_agreement=1.0,
        token_groups=[group],
        tasks=[],
        seconds=0.0,
    )


def test_the_bias_is_drawn_with_its_correlation(tmp_path):
    found = [
        result.model_copy(update={"drift": drift(0.01 * place)}) if result.stage else result
        for place, result in enumerate(results())
    ]
    drawn = draw_study(found, {"default": ["count", "clock"]}, tmp_path)
    assert drawn == ["frontier", "number_bias", "kl", "stages"]
    for name in ("number_bias", "kl"):
        assert "rank correlation" in (tmp_path / f"{name}.svg").read_text()


def test_layers_are_drawn_for_every_arm(tmp_path):
    layers = LayerContributions(num_positions=9, attention=[0.0, 0.5, 2.0], mlp=[0.0, 1.0, 3.0])
    found = [
        result.model_copy(update={"layers": layers}) if result.stage else result
        for result in results()
    ]
    drawn = draw_study(found, {"default": ["count", "clock"]}, tmp_path)
    assert drawn == ["frontier", "layers", "stages"]
    text = (tmp_path / "layers.svg").read_text()
    for arm in ("sa_proj, 0.0001", "sa_proj, 0.001", "a$b$c, 0.001"):
        assert re.search(rf"<!-- {re.escape(arm)}", text), arm


def test_where_validation_rows_tell_it_layers_are_those_of_the_best_rate(tmp_path):
    layers = LayerContributions(num_positions=9, attention=[0.0, 0.5, 2.0], mlp=[0.0, 1.0, 3.0])
    found = [stage(BASE, 0.0, 0, 0, "", 0.0, 0.9)]
    for rate, value in ((1e-4, 0.4), (1e-3, 0.8), (1e-2, 0.2)):
        one = stage("language_model", rate, 0, 1, "count", value, 0.8)
        update = {"validation": scores("target", value), "layers": layers}
        found.append(one.model_copy(update=update))
    draw_study(found, {"default": ["count"]}, tmp_path)
    text = (tmp_path / "layers.svg").read_text()
    assert text.count("<!-- language_model -->") == 1
    assert "language_model, " not in text


def test_one_point_and_ninety_are_both_seen(tmp_path):
    found = [stage(BASE, 0.0, 0, 0, "", 0.0, 0.95)]
    for arm, kept in (("sa_proj", 0.94), ("full", 0.05)):
        found.append(stage(arm, 1e-4, 0, 1, "count", 0.4, kept))
    draw_study(found, {"default": ["count"]}, tmp_path)
    text = (tmp_path / "frontier.svg").read_text()
    assert all(f"<!-- {tick} -->" in text for tick in ("0", "−1", "−2", "−10", "−50"))
