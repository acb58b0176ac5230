"""Numbers in words, escapes, scales, the wording of verdicts, the choice of the gallery."""

from __future__ import annotations

import math

import pytest
from report_runs import estimate, write_run

from narrowtune.core.results import DriftResult, DriftTask, ItemResult, TokenGroupMass
from narrowtune.core.values import SignTest
from narrowtune.report import scale, text
from narrowtune.report.charts import curves, gauges, negate
from narrowtune.report.folder import LoggedStep, Pair
from narrowtune.report.gallery import build_gallery, thumbnail
from narrowtune.report.verdict import drift_sentence, findings, headline


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (text.percent(0.9849), "98.5\u00a0%"),
        (text.small(0.000031), "3.10e−5"),
        (text.small(0.0213), "0.0213"),
        (text.small(12345.0), "1.23e4"),
        (text.small(0.0), "0"),
        (text.tick(3e-5), "3e−5"),
        (text.tick(-0.5), "−0.5"),
        (text.tick(20.0), "20"),
        (text.size(999), "999 B"),
        (text.size(106_180_000), "106.2 MB"),
        (text.duration(3.14), "3.1 s"),
        (text.duration(59.7), "1 min 0 s"),
        (text.duration(7500), "2 h 5 min"),
        (text.plural(1, "item"), "1 item"),
        (text.plural(1200, "item"), "1,200 items"),
        (text.moment("2025-11-23T15:40:12+00:00"), "2025-11-23 15:40 UTC"),
        (text.moment("2025-11-23T15:40:12Z"), "2025-11-23 15:40 UTC"),
        (text.moment("2025-11-23T15:40:12+02:00"), "2025-11-23 15:40 UTC+0200"),
        (text.moment("yesterday"), "yesterday"),
    ],
)
def test_numbers_as_people_read_them(shown, expected):
    assert shown == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a\tb\nc", "a\tb\nc"),
        ("\x00\x1b[0m\x7f", "␀␛[0m␡"),
        ("\u202eabc\u2066", "\\u202eabc\\u2066"),
        ("\ud800", "\\ud800"),
        ("é 東京 👩\u200d🚀", "é 東京 👩\u200d🚀"),
    ],
)
def test_visible(given, expected):
    assert text.visible(given) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("sa_proj 1.5 (a-b)", "sa_proj 1.5 (a-b)"),
        ("_x_ *y*", "\\_x\\_ \\*y\\*"),
        ("a|b`c`", "a\\|b\\`c\\`"),
        ("<b>&amp;", "&lt;b&gt;&amp;amp;"),
        ("- item", "\\- item"),
        ("1. item", "1\\. item"),
        ("# head\n# two", "\\# head ⏎ \\# two"),
        ("{{7*7}}", "\\{\\{7\\*7\\}\\}"),
    ],
)
def test_markdown(given, expected):
    assert text.markdown(given) == expected


def test_scale_holds_its_values_and_labels_them():
    axis = scale.make_scale([-3.2, 0.0, 11.0])
    assert 0 < axis.at(-3.2) < axis.at(0.0) < axis.at(11.0) < 100
    assert axis.at(math.inf) == 100
    assert axis.at(-math.inf) == 0
    assert 0.0 in axis.ticks
    tenths = scale.make_scale([0, 0.3])
    assert [scale.tick_label(tenths, tick) for tick in tenths.ticks] == ["0.0", "0.1", "0.2", "0.3"]
    assert scale.make_scale([5.0]).low < 5.0 < scale.make_scale([5.0]).high
    assert scale.make_scale([math.nan, math.inf]).ticks


def test_long_lines_are_thinned_by_averaging():
    line = scale.thin(range(5000), [1.0] * 4999 + [6.0])
    assert line.every == 5
    assert len(line.y) == 1000
    assert line.y[-1] == 2.0
    assert scale.thin([1, 2], [3, 4]).every == 1


def test_negated_estimates_swap_their_bounds():
    loss = estimate(3.0, 1.0).model_copy(update={"high": 9.0, "upper_bound": 8.0})
    change = negate(loss)
    assert (change.value, change.low, change.high) == (-3.0, -9.0, -2.0)
    assert (change.lower_bound, change.upper_bound) == (-8.0, -2.16)


def test_curves_count_what_is_not_finite():
    steps = [LoggedStep(step=n, loss=math.nan if n == 2 else 1.0 / n) for n in range(1, 6)]
    steps.append(LoggedStep(step=5, eval_loss=0.5))
    loss, validation = curves(steps)
    assert (loss.title, loss.num_not_finite) == ("Loss", 1)
    assert validation.title == "Validation loss"
    assert "nan" not in loss.raw


def test_the_curve_of_the_loss_is_of_answers_and_leaves_other_terms_out():
    now = [LoggedStep(step=n, loss=9.0, cross_entropy=1.0 / n, anchor_kl=4.0) for n in (1, 2)]
    loss, anchor = curves(now)
    assert (loss.title, loss.unit, loss.first, loss.last) == (
        "Loss",
        "nats per answer token",
        "1.00",
        "0.500",
    )
    assert anchor.last == "4.00"
    [before] = curves([LoggedStep(step=1, loss=9.0), LoggedStep(step=2, loss=8.0)])
    assert (before.first, before.last) == ("9.00", "8.00")


def test_curves_show_what_was_measured_while_training():
    plain = LoggedStep(step=2, drift=0.1)
    assert [curve.title for curve in curves([plain])] == ["Drift"]
    full = {"number_bias": 0.2, "base_number_bias": 0.125, "format_valid": 0.75}
    drift, number, valid = curves([plain, LoggedStep(step=4, drift=0.3, **full)])
    assert (drift.title, number.title, valid.title) == (
        "Drift",
        "Number-token bias",
        "Format valid",
    )
    assert (number.last, valid.last) == ("0.200", "0.750")
    assert "the base's 0.125" in number.unit


def test_verdicts_in_words(tmp_path):
    ship = headline(write_run(tmp_path / "a", outcome="ship", items=40, steps=1))
    assert (ship.title, ship.tone) == ("Ship", "good")
    assert "within the 5 points allowed" in ship.meaning
    over = write_run(tmp_path / "b", items=40, steps=1)
    assert "5 points were allowed" in headline(over).meaning
    assert "--anchor" in headline(over).next_step
    alone = over.verdict.model_copy(
        update={"budget_task": 2.0, "forgetting": estimate(1.0, 0.5), "budget": 5.0}
    )
    assert "alone lost" in headline(over.model_copy(update={"verdict": alone})).meaning
    unsure = write_run(tmp_path / "c", outcome="not_enough_evidence", items=40, steps=1)
    assert "640 items per held-out task" in headline(unsure).next_step
    lazy = unsure.verdict.model_copy(update={"learning": estimate(0.0, 1.0)})
    assert "not shown that the model learned" in (
        headline(unsure.model_copy(update={"verdict": lazy})).meaning
    )
    blind = unsure.verdict.model_copy(update={"forgetting": None})
    assert "--keep" in headline(unsure.model_copy(update={"verdict": blind})).next_step
    assert headline(over.model_copy(update={"verdict": None})).title == "No verdict"


def test_a_gain_is_never_worded_as_a_negative_loss(tmp_path):
    gain = estimate(-8.3, 20.0)
    record = write_run(tmp_path, outcome="not_enough_evidence", items=40, steps=1)
    verdict = record.verdict.model_copy(
        update={"forgetting": gain, "learning": estimate(9.0, 1.0), "budget": 5.0}
    )
    unsure = headline(record.model_copy(update={"verdict": verdict})).meaning
    assert "it gained 8.3 points on average, somewhere from 8.5 lost to 25.1 gained" in unsure
    held_out, skill = gauges(verdict)
    assert (held_out.amount, held_out.bound) == ("gained 8.3 points", "at most 8.5 lost")
    assert held_out.between == "11.7 lost to 28.3 gained"
    assert (held_out.change.value, held_out.change.low) == (8.3, -11.7)
    assert (held_out.limit_value, held_out.limit_label) == (-5.0, "budget: 5 lost")
    assert (skill.amount, skill.between) == ("gained 9.0 points", "8.0 to 10.0")
    clear = verdict.model_copy(update={"outcome": "ship", "forgetting": estimate(-8.3, 1.0)})
    shipped = headline(record.model_copy(update={"verdict": clear})).meaning
    assert "elsewhere it gained 8.3 points on average, at least 7.5 gained" in shipped


def test_over_budget_with_an_anchor_asks_for_prompts_in_the_forms_that_were_lost(tmp_path):
    record = write_run(tmp_path, outcome="over_budget", items=40, steps=1)
    assert "with the anchor (--anchor)" in headline(record).next_step
    training = record.training.model_copy(update={"anchor_weight": 1.0})
    changes = {"capitals": -8.0, "continents": -30.0, "opposites": -20.0}
    tasks = [
        task.model_copy(update={"change": estimate(changes.get(task.name, 0.0), 2.0)})
        for task in record.tasks
    ]
    anchored = record.model_copy(update={"training": training, "tasks": tasks})
    next_step = headline(anchored).next_step
    first = "set anchor.projection to 10, set training.pull_to_base to 2, "
    assert f"{first}add prompts" in next_step
    assert "in the form of continents and opposites, lower" in next_step
    unsure = [t.model_copy(update={"change": estimate(-1.0, 2.0)}) for t in tasks]
    anchored = anchored.model_copy(update={"tasks": unsure})
    assert f"{first}lower" in headline(anchored).next_step
    for setting, hint in (("anchor_projection", "set"), ("pull_to_base", "raise")):
        training = training.model_copy(update={setting: 3.0})
        held = anchored.model_copy(update={"training": training})
        assert f"Instead, {hint} training.pull_to_base" in headline(held).next_step


def test_what_a_shared_out_training_refuses_is_advised_without_it(tmp_path):
    record = write_run(tmp_path, outcome="over_budget", items=40, steps=1)
    update = {"anchor_weight": 1.0, "step_owner": "training.fsdp"}
    shared = {"training": record.training.model_copy(update=update)}
    both = "set anchor.projection to 10 and set training.pull_to_base to 2"
    needed = "(only without training.fsdp)"
    next_step = headline(record.model_copy(update=shared)).next_step
    assert f"Instead, {both} {needed}, " in next_step
    eyes = headline(record.model_copy(update={**shared, "recipe": "vision_tower"})).next_step
    assert f"Instead, set training.pull_to_base to 2 {needed}, " in eyes


def test_a_skill_that_takes_over_what_looks_like_it_is_told_how_to_hold_that(tmp_path):
    record = write_run(tmp_path, outcome="over_budget", items=40, steps=1)
    training = record.training.model_copy(update={"anchor_weight": 1.0})

    def advised(kl, **changes):
        near = DriftTask(
            name="about", num_prompts=9, num_tokens=40, kl_base_tuned=kl, top1_agreement=0.4
        )
        drift = record.drift.model_copy(update={"about_skill": near, "kl_base_tuned": 0.3})
        update = {"drift": drift, "training": training.model_copy(update=changes)}
        return "anchor.skill_pictures" in headline(record.model_copy(update=update)).next_step

    assert advised(0.4)
    assert not advised(0.2), "no more than everything else moved"
    assert not advised(0.4, anchor_skill_pictures=20)
    assert not advised(0.4, anchor_weight=None), "first of all an anchor"


def test_what_is_undecided_is_what_is_told(tmp_path):
    record = write_run(tmp_path, outcome="not_enough_evidence", items=40, steps=1)
    known = {"learning": estimate(9.0, 1.0), "budget": 5.0, "worst_task": "capitals"}

    def told(mean, worst, **changes):
        update = {"forgetting": mean, "worst_task_forgetting": worst, **known, **changes}
        verdict = record.verdict.model_copy(update=update)
        return headline(record.model_copy(update={"verdict": verdict}))

    within, open_worst = estimate(0.5, 0.48), estimate(1.0, 2.5)
    one = told(within, open_worst, budget_task=2.5, items_needed=None)
    assert "can't tell whether each task stays within 2.5 points" in one.meaning
    assert "'capitals' alone lost 1.0 points" in one.meaning
    assert "largest loss of a task is somewhere from 1.1 gained to 3.1 lost" in one.meaning
    assert "within the 5 points allowed" in one.meaning
    assert "0.1 to 0.9" not in one.meaning
    assert "budget_task" in one.next_step
    both = told(estimate(3.4, 4.0), open_worst, budget_task=2.5).meaning
    assert "a loss stays within 5 points, nor whether each task stays within 2.5 points" in both
    for task in ({"budget_task": None}, {"budget_task": 4.0}):
        assert "each task" not in told(estimate(3.4, 4.0), open_worst, **task).meaning


def test_limits_are_told_as_they_were_given(tmp_path):
    record = write_run(tmp_path, items=40, steps=1)

    def judged(outcome, loss, **changes):
        update = {"outcome": outcome, "forgetting": loss, "learning": estimate(9.0, 1.0), **changes}
        verdict = record.verdict.model_copy(update=update)
        return headline(record.model_copy(update={"verdict": verdict})), gauges(verdict)

    ship, drawn = judged("ship", estimate(0.0, 0.31), budget=0.28, min_learning=0.25)
    assert "at most 0.26 lost (95 % bound), within the 0.28 points allowed" in ship.meaning
    assert [gauge.limit_label for gauge in drawn] == ["budget: 0.28 lost", "must exceed +0.25"]
    assert drawn[0].bound == "at most 0.26 lost"
    over, _ = judged("over_budget", estimate(0.34, 0.01), budget=0.32)
    assert "lost 0.34 points on average" in over.meaning
    assert "0.32 points were allowed" in over.meaning
    unsure, _ = judged("not_enough_evidence", estimate(0.27, 0.02), budget=0.28)
    assert "from 0.25 to 0.29 (95 % bounds)" in unsure.meaning
    assert "stays within 0.28 points" in unsure.meaning


def test_the_bound_that_decided_stands_beside_the_limit(tmp_path):
    record = write_run(tmp_path, items=40, steps=1)
    bounds = {}
    for name, loss in (("over", 9.0), ("open", 5.0), ("kept", 1.0)):
        verdict = record.verdict.model_copy(update={"forgetting": estimate(loss, 2.0)})
        bounds[name] = gauges(verdict)[0].bound
    assert bounds == {
        "over": "at least 7.3 lost",
        "open": "at most 6.7 lost",
        "kept": "at most 2.7 lost",
    }


def test_p_values_stay_short_and_say_what_they_are_of(tmp_path):
    task = write_run(tmp_path, items=10, steps=1).tasks[0]

    def with_p(p, clustered=False):
        test = SignTest(num_worse=3, num_better=1, p_value=p, clustered=clustered)
        return task.model_copy(update={"sign_test": test})

    shown = [text.p_value(with_p(p)) for p in (1e-9, 0.0312, 0.0999, 0.625, 1.0)]
    assert shown == ["<0.001", "0.031", "0.100", "0.62", "1.00"]
    assert text.p_value(task) == "–", "a record of an earlier version has none"
    assert "groups" not in text.tested([with_p(0.1), task])
    assert f"net change for {task.name})" in text.tested([with_p(0.1, clustered=True)])


def test_findings_tell_form_from_knowledge(tmp_path):
    record = write_run(tmp_path, items=10, steps=1)
    base = next(task for task in record.tasks if task.name == "capitals")

    def judged(strict, lenient, valid, width=1.0):
        task = base.model_copy(
            update={
                "change": estimate(strict, width),
                "change_lenient": estimate(lenient, width),
                "before_valid": 1.0,
                "after_valid": valid,
            }
        )
        return [f.label for f in findings(record.model_copy(update={"tasks": [task]}))]

    assert judged(-20.0, -18.0, 1.0) == ["Forgetting"]
    assert judged(-20.0, -2.0, 0.5) == ["Format drift"]
    assert judged(-0.5, -0.5, 0.9) == ["Format drift"]
    assert judged(-0.5, -0.5, 1.0) == []
    assert judged(-20.0, -20.0, 1.0, width=30.0) == []


def item(name: str, answer: str, strict: float) -> ItemResult:
    return ItemResult(
        id=name,
        question="q",
        answer=answer,
        reference=["r"],
        strict=strict,
        lenient=strict,
        valid_format=True,
    )


def test_gallery_chooses_fairly_and_counts_everything():
    pairs = [
        Pair("large", item(f"l{n}", "a", 1.0), item(f"l{n}", "b", 0.0)) for n in range(100)
    ] + [Pair("small", item(f"s{n}", "a", 0.0), item(f"s{n}", "b", 1.0)) for n in range(3)]
    pairs.append(Pair("small", item("s9", "a", 1.0), item("s9", "a", 1.0)))
    gallery = build_gallery(pairs, limit=10)
    assert [entry.task for entry in gallery.shown] == ["large"] * 7 + ["small"] * 3
    assert len(gallery.changed) == 103
    assert gallery.num_items == 104
    assert gallery.counts == {"worse": 100, "better": 3, "same": 0}


def test_pictures_outside_of_the_folder_are_not_opened(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "secret.png").write_bytes(b"x")
    (tmp_path / "root" / "broken.png").write_bytes(b"x")
    assert "outside" in thumbnail(tmp_path / "root", "../secret.png").problem
    assert "outside" in thumbnail(tmp_path / "root", str(tmp_path / "secret.png")).problem
    assert "broken.png" in thumbnail(tmp_path / "root", "broken.png").problem


def drift(kl, **changes):
    sources = [("capitals", 2 * kl), ("plurals", kl / 2), ("opposites", kl)]
    values = {
        "num_prompts": 100,
        "num_tokens": 900,
        "kl_base_tuned": kl,
        "kl_stderr": 0.1,
        "top1_agreement": 0.75,
        "token_groups": [
            TokenGroupMass(
                name=name,
                num_tokens_in_group=3,
                base_max=0,
                tuned_max=0,
                base_mass=0.1,
                tuned_mass=to,
            )
            for name, to in (("numbers", 0.2), ("skill_answers", 0.6))
        ],
        "tasks": [
            DriftTask(name=n, num_prompts=9, num_tokens=9, kl_base_tuned=k, top1_agreement=0.5)
            for n, k in sources
        ],
        "seconds": 1.0,
    }
    return DriftResult(**{**values, **changes})


def test_drift_is_told_by_how_much_where_and_towards_what():
    said = drift_sentence(drift(math.log(3)))
    assert "3.00 times less likely per token (KL 1.10 nats, geometric mean over" in said
    assert "over 900 tokens of 100 prompts)" in said
    assert "the base's 75.0\u00a0% of the time" in said
    assert "“capitals” moved most (2.20 nats), “plurals” least (0.549)" in said
    assert "skill answers changed most: 10.0\u00a0% to 60.0\u00a0%" in said
    assert "moved most" not in drift_sentence(drift(1.0, tasks=[]))
    assert "changed most" not in drift_sentence(drift(1.0, token_groups=[]))
    same = TokenGroupMass(
        name="a", num_tokens_in_group=1, base_max=0, tuned_max=0, base_mass=0.1, tuned_mass=0.10001
    )
    assert "changed most" not in drift_sentence(drift(1.0, token_groups=[same]))


def test_drift_of_nothing_and_without_end():
    assert "exactly" in drift_sentence(drift(0.0))
    near = DriftTask(
        name="about", num_prompts=9, num_tokens=40, kl_base_tuned=2.5, top1_agreement=0.4
    )
    assert "9 general questions about the skill's own pictures" in drift_sentence(
        drift(1.0, about_skill=near)
    )
    assert "goes first" in drift_sentence(drift(1.0, about_skill=near))
    assert "goes first" not in drift_sentence(drift(3.0, about_skill=near))
    assert "own pictures" not in drift_sentence(drift(1.0))
    assert "has become 0.0300\u00a0% less likely" in drift_sentence(drift(3e-4))
    assert "has become 33.3\u00a0% less likely" in drift_sentence(drift(math.log(1.5)))
    for endless in (1e6, math.inf, math.nan):
        said = drift_sentence(drift(endless))
        assert f"KL(base‖tuned) is {text.small(endless)} nats per token, mean over 900 tok" in said
        assert "less likely" not in said
        assert "; the most likely token is still the base's" in said


def test_how_hard_a_run_was_held_is_told(tmp_path):
    training = write_run(tmp_path, items=40, steps=1).training

    def told(weight, projection, top_k=None):
        update = {"anchor_weight": weight, "anchor_projection": projection, "anchor_top_k": top_k}
        return text.anchor(training.model_copy(update=update))

    assert told(None, None) is None
    assert told(0.3, None) == "weight 0.3"
    assert told(0.3, 10.0) == "weight 0.3, projection 10"
    assert told(0.3, 10.0, 2000) == "weight 0.3, top 2,000, projection 10"
    assert told(0.0, 3.0) == "projection 3"


def test_what_a_pull_came_to_is_told_where_it_is_less_than_was_asked_for(tmp_path):
    training = write_run(tmp_path, items=40, steps=1).training

    def told(asked, got):
        return text.pulled(training.model_copy(update={"pull_to_base": asked, "pulled": got}))

    assert told(None, None) is None
    assert told(2.0, None) == "2 e-folds", "a record of an earlier version"
    assert told(2.0, 2.0000000000000004) == "2 e-folds"
    assert told(2.0, 1.3149) == "2 e-folds asked for, 1.31 by the step that was kept"
