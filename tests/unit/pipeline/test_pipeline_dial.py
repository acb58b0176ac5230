"""The dial parts items before it measures, walks up, and stops before the budget is at stake."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from narrowtune.core.config import DialSettings, RunConfig
from narrowtune.core.delta_results import DialResult
from narrowtune.core.errors import UsageError
from narrowtune.core.results import ItemResult
from narrowtune.data.examples import Example, Message, Text
from narrowtune.evaluate.clusters import effective_items_together
from narrowtune.evaluate.evaluate import summarise
from narrowtune.evaluate.tasks import Task
from narrowtune.models.blended import between, largest, set_between
from narrowtune.pipeline.dial import Halves, look_beyond, restrict, turn
from narrowtune.train.workload import TaskLoad


def task(name, role, number, per_group=1):
    examples = [
        Example(
            id=f"{name} {k}",
            messages=(Message("user", (Text(f"{name} {k}?"),)),),
            answers=("yes",),
            group=None if per_group == 1 else f"picture {k // per_group}",
        )
        for k in range(number)
    ]
    return Task(name, role, "exact_match", "generate", 4, tuple(examples))


TASKS = [
    task("skill", "target", 200),
    task("charts", "held_out", 400),
    task("forms", "held_out", 400),
]


def config(**changes):
    values = {"model": "m", "skill": {"path": "a.jsonl"}, "keep": [{"path": "b.jsonl"}]}
    return RunConfig.model_validate({**values, "budget": 5.0, "dial": True, **changes})


def answers(asked, wrong):
    """Results in which `wrong` of each task's items, by number in the whole task, are wrong."""
    found = []
    for each in asked:
        items = [
            ItemResult(
                id=example.id,
                question="?",
                answer="",
                reference=["yes"],
                strict=float(int(example.id.split()[1]) >= wrong[each.name]),
                lenient=1.0,
                valid_format=True,
                group=example.group,
            )
            for example in each.examples
        ]
        found.append(summarise(each, items, 0.0))
    return found


def test_parts_are_drawn_by_seed_and_nothing_else():
    first = Halves(TASKS, DialSettings(), 1)
    again = Halves([TASKS[0], *TASKS[:0:-1]], DialSettings(), 1)
    other = Halves(TASKS, DialSettings(), 2)
    assert first.searched[1].examples == again.searched[2].examples
    assert first.searched[1].examples != other.searched[1].examples
    for whole, one, two in zip(TASKS, first.searched, first.confirming, strict=True):
        if whole.role == "target":
            assert one == two == whole
            continue
        ids = [{e.id for e in part.examples} for part in (one, two)]
        assert not ids[0] & ids[1]
        assert ids[0] | ids[1] == {e.id for e in whole.examples}
        assert len(ids[0]) == 200


def test_items_of_one_picture_stay_together_in_all_tasks():
    tasks = [task("charts", "held_out", 40, per_group=5), task("signs", "held_out", 80, 10)]
    halves = Halves(tasks, DialSettings(share=0.3), 0)
    groups = [
        {e.group for each in part for e in each.examples}
        for part in (halves.searched, halves.confirming)
    ]
    assert not groups[0] & groups[1]
    assert [len(each.examples) for each in halves.searched] in ([10, 20], [15, 30])


def test_a_small_group_drawn_first_does_not_pull_a_large_one_along():
    small, large = task("charts", "held_out", 1), task("charts", "held_out", 120, per_group=120)
    examples = (*small.examples[:1], *large.examples[1:])
    whole = Task("charts", "held_out", "exact_match", "generate", 4, examples)
    for seed in range(8):
        halves = Halves([whole], DialSettings(), seed)
        assert {len(halves.searched[0].examples), len(halves.confirming[0].examples)} == {1, 119}


def test_what_can_not_be_parted_or_shown_is_refused_before_training():
    with pytest.raises(UsageError, match="can't be parted"):
        Halves([task("charts", "held_out", 8, per_group=8)], DialSettings(), 0)
    with pytest.raises(UsageError, match=r"a task has 20 in one part .* no less than 23\.9"):
        Halves([task("charts", "held_out", 40)], DialSettings(), 0).check(config())
    halves = Halves([task("charts", "held_out", 400)], DialSettings(share=0.95), 0)
    with pytest.raises(UsageError, match="a task has 20 in one part"):
        halves.check(config())
    with pytest.raises(ValueError, match="dial needs keep"):
        config(keep=[])


def test_the_budget_of_single_tasks_must_be_provable_too():
    halves = Halves(TASKS, DialSettings(), 0)
    halves.check(config())
    mean, worst = halves.provable()
    assert mean < worst
    with pytest.raises(UsageError, match="a budget for single tasks of 1 points"):
        halves.check(config(budget_task=1.0))
    # Items of one group count as less.
    grouped = [task("charts", "held_out", 400, per_group=20)]
    assert Halves(grouped, DialSettings(), 0).provable()[0] > 5 * mean


def walk(lost_at, *, beyond=False, **changes):
    """Turn the dial where `lost_at(α)` of each keep set's 400 items are lost; and look beyond."""
    settings = config(**changes)
    halves = Halves(TASKS, settings.dial, 0)
    base = {"skill": 200, "charts": 0, "forms": 0}
    asked = []

    def score(alpha, tasks):
        asked.append(alpha)
        assert [t.name for t in tasks] == [t.name for t in TASKS]
        lost = lost_at(alpha)
        return answers(tasks, {"skill": 200 - 200 * alpha, "charts": lost, "forms": lost})

    given = halves, answers(TASKS, base), score, settings
    dial = turn(*given)
    return look_beyond(dial, *given) if beyond else dial, asked


def test_it_stops_at_the_first_step_that_would_not_be_confirmed():
    dial, asked = walk(lambda alpha: 60 * alpha)
    assert asked == [0.1, 0.2]
    assert dial.alpha == 0.1
    assert [step.within for step in dial.steps] == [True, False]
    first, second = dial.steps
    assert first.expected <= 5 < second.expected
    assert second.forgetting.upper_bound < 5, "its own bound alone would have let it pass"
    assert second.stopped_by == "the mean of the held-out tasks"
    wide = second.forgetting.upper_bound - second.forgetting.value
    assert second.expected == pytest.approx(
        second.forgetting.value + wide * (1 + 2**0.5 * 0.8416 / 1.6449), abs=1e-3
    )
    assert second.learning.value == pytest.approx(20)
    assert (dial.num_items, dial.num_confirming) == (400, 400)


def test_it_does_not_look_behind_a_step_that_breaks_the_budget():
    dial, asked = walk(lambda alpha: 100 if alpha == 0.3 else 0)
    assert asked == [0.1, 0.2, 0.3]
    assert dial.alpha == 0.2


def test_what_lies_beyond_is_drawn_and_decides_nothing():
    def lost_at(alpha):
        return 100 if alpha == 0.3 else 0  # all is well behind it

    found, asked = walk(lost_at, beyond=True)
    decided, _ = walk(lost_at)
    assert asked == pytest.approx([number / 10 for number in range(1, 11)])
    assert (found.alpha, found.walked) == (0.2, decided.steps)
    assert found.model_copy(update={"steps": decided.steps}) == decided
    assert [step.after_decision for step in found.steps] == [False] * 3 + [True] * 7
    assert found.beyond[-1].alpha == 1
    assert found.beyond[-1].forgetting.value == 0
    assert found.beyond[-1].learning.value == pytest.approx(100)
    # Where it went all the way, nothing is left.
    whole, asked = walk(lambda _: 0, beyond=True)
    assert (len(asked), whole.beyond, whole.alpha) == (10, [], 1)


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_the_plan_counts_every_answer_of_a_whole_curve(share):
    settings = config(dial={"num_steps": 4, "share": share})
    halves = Halves(TASKS, settings.dial, 0)
    # The base's on all items, and those that confirm, beside the dial's.
    answered = {t.name: len(t.examples) for t in TASKS}
    for each in halves.confirming:
        answered[each.name] += len(each.examples)

    def score(alpha, tasks):
        for each in tasks:
            answered[each.name] += len(each.examples)
        return answers(tasks, {t.name: 200 * alpha for t in tasks})

    given = halves, answers(TASKS, dict.fromkeys(answered, 0)), score, settings
    dial = look_beyond(turn(*given), *given)
    assert dial.beyond
    for each in TASKS:
        load = TaskLoad(each.role, len(each.examples), 0.0)
        assert answered[each.name] == load.num_items * load.passes(settings.dial)


def test_steps_of_older_records_were_all_walked():
    dial, _ = walk(lambda alpha: 60 * alpha)
    values = dial.model_dump()
    for step in values["steps"]:
        del step["after_decision"]
    assert DialResult.model_validate(values) == dial
    assert dial.walked == dial.steps


def test_it_may_go_all_the_way_or_nowhere():
    dial, asked = walk(lambda _: 0, dial={"num_steps": 4})
    assert asked == [0.25, 0.5, 0.75, 1.0]
    assert dial.alpha == 1
    dial, _ = walk(lambda _: 100)
    assert dial.alpha == 0
    assert len(dial.steps) == 1


def test_the_worst_task_has_a_budget_of_its_own():
    dial, _ = walk(lambda alpha: 30 * alpha, budget_task=2.0)
    assert dial.alpha == 0
    assert dial.steps[0].stopped_by in ("charts", "forms")
    assert dial.steps[0].expected < 5
    dial, _ = walk(lambda alpha: 30 * alpha)
    assert dial.alpha > 0


def test_results_are_restricted_to_the_items_of_a_part():
    halves = Halves(TASKS, DialSettings(), 0)
    whole = answers(TASKS, {"skill": 0, "charts": 100, "forms": 0})
    parts = [restrict(whole, tasks)[1] for tasks in (halves.searched, halves.confirming)]
    assert [part.num_items for part in parts] == [200, 200]
    wrong = [sum(1 - item.strict for item in part.items) for part in parts]
    assert sum(wrong) == 100
    assert parts[0].strict.mean == 1 - wrong[0] / 200


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_weights_between_are_rounded_once_and_the_ends_are_exact(dtype):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(200, 30, generator=generator).to(dtype)
    # Drawn by itself: its difference from the base has no exact value in the base's dtype.
    tuned = torch.randn(200, 30, generator=generator).to(dtype)
    tuned[:, 0] = base[:, 0]
    base[0, 0] = tuned[0, 0] = -0.0
    assert between(base, tuned, 0).equal(base)
    assert between(base, tuned, 1).equal(tuned)
    found = between(base, tuned, 0.7)
    exact = base.double() + 0.7 * (tuned.double() - base.double())
    step = torch.finfo(dtype).eps
    assert ((found.double() - exact).abs() <= step * (exact.abs() + base.abs().double())).all()
    assert found[:, 0].equal(base[:, 0])
    assert torch.signbit(found[0, 0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("density", [0.01, 0.3, 0.5, 0.999])
def test_what_moved_furthest_is_tuned_and_the_rest_the_base(dtype, density):
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(40, 50, generator=generator).to(dtype)
    tuned = (base.double() + torch.randn(40, 50, generator=generator).double() ** 3).to(dtype)
    base[0, 0] = tuned[0, 0] = -0.0
    found = largest(base, tuned, density)
    stays = found != base
    assert found[stays].equal(tuned[stays])
    moved = (tuned.double() - base.double()).abs()
    # Elements that moved equally far stay together.
    wanted = min(round(density * 2000), int((moved > 0).sum()))
    assert wanted <= stays.sum() <= wanted + 40
    assert moved[stays].min() >= moved[~stays].max() * (1 - 1e-6)
    assert torch.signbit(found[0, 0])


def test_the_ends_of_what_moved_furthest_are_exact():
    base, tuned = torch.zeros(7), torch.tensor([1.0, -3.0, 0.0, 2.0, 0.0, 0.5, -0.25])
    assert largest(base, tuned, 0).equal(base)
    assert largest(base, tuned, 1).equal(tuned)
    assert largest(base, tuned, 2 / 7).tolist() == [0, -3, 0, 2, 0, 0, 0]
    assert largest(base, tuned, 6 / 7).equal(tuned)  # two did not move at all
    assert largest(base, base, 0.5).equal(base)
    assert largest(base, torch.ones(7), 0.5).equal(torch.ones(7))
    assert largest(base, tuned, 1e-9).tolist() == [0, -3, 0, 0, 0, 0, 0]


def test_a_models_named_parameters_are_set_and_no_others():
    model = nn.Linear(4, 3)
    weight = model.weight.detach().clone()
    set_between(model, {"bias": torch.zeros(3)}, {"bias": torch.ones(3)}, 0.25)
    assert model.bias.equal(torch.full((3,), 0.25))
    assert model.weight.equal(weight)
    set_between(model, {"bias": torch.zeros(3)}, {"bias": torch.arange(3.0)}, 0.34, "largest")
    assert model.bias.tolist() == [0, 0, 2]


def test_a_question_that_is_asked_twice_is_in_one_part_and_counts_once():
    first, second = task("charts", "held_out", 40), task("more", "held_out", 40)
    twice = Task("more", "held_out", "contains", "generate", 4, first.examples)
    halves = Halves([first, twice], DialSettings(), seed=3)
    searched, confirming = (
        {example.prompt for part in parts for example in part.examples}
        for parts in (halves.searched, halves.confirming)
    )
    assert not searched & confirming
    assert effective_items_together([first.groups, twice.groups]) == pytest.approx([20, 20])
    assert effective_items_together([first.groups, second.groups]) == pytest.approx([40, 40])
