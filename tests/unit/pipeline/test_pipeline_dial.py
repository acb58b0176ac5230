"""The dial parts items before it measures, walks up, and stops before the budget is at stake."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from narrowtune.core.config import DialSettings, RunConfig
from narrowtune.core.errors import UsageError
from narrowtune.core.results import ItemResult
from narrowtune.data.examples import Example, Message, Text
from narrowtune.evaluate.evaluate import summarise
from narrowtune.evaluate.tasks import Task
from narrowtune.models.blended import set_between
from narrowtune.pipeline.dial import Halves, restrict, turn


def task(name, role, number, per_group=1):
    examples = [
        Example(
            id=f"{name} {k}",
            messages=(Message("user", (Text("?"),)),),
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
            assert one is two is whole
            continue
        ids = [{e.id for e in part.examples} for part in (one, two)]
        assert not ids[0] & ids[1]
        assert ids[0] | ids[1] == {e.id for e in whole.examples}
        assert len(ids[0]) == 200


def test_items_of_one_picture_stay_together():
    halves = Halves([task("charts", "held_out", 40, per_group=5)], DialSettings(share=0.3), 0)
    groups = [{e.group for e in part[0].examples} for part in (halves.searched, halves.confirming)]
    assert not groups[0] & groups[1]
    assert len(halves.searched[0].examples) == 15


def test_what_can_not_be_parted_or_shown_is_refused_before_training():
    with pytest.raises(UsageError, match="can't be parted"):
        Halves([task("charts", "held_out", 8, per_group=8)], DialSettings(), 0)
    with pytest.raises(UsageError, match=r"20 items a task in the part that finds α, .* 13\.92"):
        Halves([task("charts", "held_out", 40)], DialSettings(), 0).check(config())
    halves = Halves([task("charts", "held_out", 400)], DialSettings(share=0.95), 0)
    with pytest.raises(UsageError, match="20 items a task in the part that confirms it"):
        halves.check(config())
    Halves(TASKS, DialSettings(), 0).check(config())
    with pytest.raises(ValueError, match="dial needs keep"):
        config(keep=[])


def walk(lost_at, **changes):
    """Turn the dial where `lost_at(α)` of each keep set's 400 items are lost."""
    settings = config(**changes)
    halves = Halves(TASKS, settings.dial, 0)
    base = {"skill": 200, "charts": 0, "forms": 0}
    asked = []

    def score(alpha, tasks):
        asked.append(alpha)
        assert [t.name for t in tasks] == [t.name for t in TASKS]
        lost = lost_at(alpha)
        return answers(tasks, {"skill": 200 - 200 * alpha, "charts": lost, "forms": lost})

    return turn(halves, answers(TASKS, base), score, settings), asked


def test_it_stops_at_the_first_step_that_does_not_show_the_budget_kept():
    dial, asked = walk(lambda alpha: 60 * alpha)
    assert asked == [0.1, 0.2, 0.3]
    assert dial.alpha == 0.2
    assert [step.within for step in dial.steps] == [True, True, False]
    assert dial.steps[1].forgetting.upper_bound <= 5 < dial.steps[2].forgetting.upper_bound
    assert dial.steps[2].forgetting.value < 5, "the bound decides, not the point"
    assert dial.steps[2].learning.value == pytest.approx(30)
    assert (dial.num_items, dial.num_confirming) == (400, 400)


def test_it_does_not_look_behind_a_step_that_breaks_the_budget():
    dial, asked = walk(lambda alpha: 100 if alpha == 0.3 else 0)
    assert asked == [0.1, 0.2, 0.3]
    assert dial.alpha == 0.2


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_between_are_rounded_and_the_ends_exact(dtype):
    model = nn.Linear(40, 30, dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    base = {
        n: torch.randn(p.shape, generator=generator).to(dtype) for n, p in model.named_parameters()
    }
    tuned = {
        n: (t.float() + 0.01 * torch.randn(t.shape, generator=generator)).to(dtype)
        for n, t in base.items()
    }
    for alpha, expected in ((0, base), (1, tuned)):
        set_between(model, base, tuned, alpha)
        assert all(p.equal(expected[n]) for n, p in model.named_parameters())
    set_between(model, base, tuned, 0.3)
    for name, parameter in model.named_parameters():
        exact = base[name].double() + 0.3 * (tuned[name].double() - base[name].double())
        assert torch.allclose(
            parameter.double(), exact, rtol=2**-8 if dtype == torch.bfloat16 else 1e-6, atol=1e-7
        )
    set_between(nn.Linear(40, 30, dtype=dtype), {"bias": base["bias"]}, tuned, 0.5)
