"""How much of a change the pull to the base leaves."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import (
    PretrainedConfig,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    get_scheduler,
)

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


class Line(PreTrainedModel):
    """A weight that trains, as far up as it gets, and one that does not."""

    config_class = PretrainedConfig

    def __init__(self, config):
        super().__init__(config)
        self.trains = nn.Parameter(torch.tensor([2.0]))
        self.rests = nn.Parameter(torch.tensor([3.0]), requires_grad=False)

    def forward(self, labels=None):
        return {"loss": -self.trains.sum() * labels.float().mean()}


class Ones(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return {"labels": torch.ones(1)}


def test_under_another_trainer_the_base_is_what_the_training_finds(tmp_path):
    def train(callbacks):
        model = Line(PretrainedConfig())
        args = TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=2,
            num_train_epochs=1,
            optim="sgd",
            learning_rate=0.1,
            lr_scheduler_type="constant",
            report_to=[],
            use_cpu=True,
            save_strategy="no",
            disable_tqdm=True,
        )
        Trainer(model, args, train_dataset=Ones(), callbacks=callbacks).train()
        return model.trains.item(), model.rests.item()

    assert train([]) == pytest.approx((2.4, 3.0))
    # Each of four steps of 0.1 is left with exp(-1/4) of itself for every step from its own on.
    left = 0.1 * sum(math.exp(-n / 4) for n in (1, 2, 3, 4))
    assert train([PullBack(1.0)]) == pytest.approx((2.0 + left, 3.0))
