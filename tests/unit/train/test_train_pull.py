"""How much of a change the pull to the base leaves."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from transformers import get_scheduler

from narrowtune.train.pull import PullBack, sum_of_rates


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "constant_with_warmup"])
@pytest.mark.parametrize(("rate", "steps"), [(1e-5, 7), (3e-3, 40)])
def test_what_was_there_before_the_first_step_shrinks_by_the_e_folds(schedule, rate, steps):
    """Whatever the rate, the schedule and the number of steps are."""
    base, moved = torch.randn(3, 2), torch.randn(3, 2)
    model = torch.nn.Linear(2, 3, bias=False)
    with torch.no_grad():
        model.weight.copy_(base + moved)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    scheduler = get_scheduler(schedule, optimizer, num_warmup_steps=2, num_training_steps=steps)
    given = {"model": model, "optimizer": optimizer, "lr_scheduler": scheduler}
    args, state = SimpleNamespace(learning_rate=rate), SimpleNamespace(max_steps=steps)
    pull = PullBack(1.5, {"weight": base})
    pull.on_train_begin(args, state, None, **given)
    for _ in range(steps):
        optimizer.step()
        pull.on_optimizer_step(args, state, None, **given)
        scheduler.step()
    torch.testing.assert_close(model.weight.detach(), base + math.exp(-1.5) * moved)


def test_half_of_the_training_pulls_by_its_share_of_the_rates():
    base = {"weight": torch.zeros(2, 2)}
    model = torch.nn.Linear(2, 2, bias=False)
    torch.nn.init.ones_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=4)
    assert sum_of_rates(scheduler, 0.1, 4) == pytest.approx(0.1 + 0.075 + 0.05 + 0.025)
    given = {"model": model, "optimizer": optimizer, "lr_scheduler": scheduler}
    args, state = SimpleNamespace(learning_rate=0.1), SimpleNamespace(max_steps=4)
    pull = PullBack(1.0, base)
    pull.on_train_begin(args, state, None, **given)
    for _ in range(2):
        optimizer.step()
        pull.on_optimizer_step(args, state, None, **given)
        scheduler.step()
    torch.testing.assert_close(model.weight.detach(), torch.full((2, 2), math.exp(-0.7)))


def test_a_schedule_that_looks_at_the_loss_counts_as_one_rate():
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    assert sum_of_rates(plateau, 0.1, 5) == pytest.approx(0.5)
