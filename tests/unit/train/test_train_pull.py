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

from narrowtune.core.config import RunConfig
from narrowtune.core.errors import UsageError
from narrowtune.train.pull import PullBack, shares_of_steps


class Steps:
    """A model of one matrix, and what a Trainer tells its callbacks of it."""

    def __init__(self, weight, schedule, steps, rate=1e-3, optimizer=torch.optim.AdamW):
        self.model = nn.Linear(*weight.shape[::-1], bias=False)
        with torch.no_grad():
            self.model.weight.copy_(weight)
        self.optimizer = optimizer(self.model.parameters(), lr=rate)
        self.scheduler = schedule(self.optimizer, steps)
        self.state = SimpleNamespace(max_steps=steps, global_step=0)
        self.given = {"model": self.model, "lr_scheduler": self.scheduler}

    def take(self, pull, number):
        for _ in range(number):
            self.optimizer.step()  # without a gradient: nothing moves by itself
            pull.on_optimizer_step(None, self.state, None, **self.given)
            self.scheduler.step()
            self.state.global_step += 1

    @property
    def weight(self):
        return self.model.weight.detach()


def named(name):
    def make(optimizer, steps):
        return get_scheduler(name, optimizer, num_warmup_steps=2, num_training_steps=steps)

    return make


def annealing(optimizer, steps):
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)


def one_cycle(optimizer, steps):
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, steps + 1)


@pytest.mark.parametrize(
    "schedule",
    [*map(named, ("cosine", "linear", "constant", "constant_with_warmup")), annealing, one_cycle],
)
@pytest.mark.parametrize(("rate", "steps"), [(1e-5, 7), (3e-3, 40)])
def test_what_was_there_before_the_first_step_shrinks_by_the_e_folds(schedule, rate, steps):
    """Whatever the rate, the schedule and the number of steps are."""
    base, moved = torch.randn(3, 2), torch.randn(3, 2)
    run, pull = Steps(base + moved, schedule, steps, rate), PullBack(1.5, {"weight": base})
    pull.on_train_begin(None, run.state, None, **run.given)
    run.take(pull, steps)
    torch.testing.assert_close(run.weight, base + math.exp(-1.5) * moved)


def test_steps_pull_by_their_share_of_the_rates():
    base = torch.zeros(2, 2)
    run, pull = Steps(torch.ones(2, 2), named("linear"), 6), PullBack(1.0, {"weight": base})
    # Two steps of warm-up, at 0 and half the rate, then 1, 3/4, 1/2, 1/4 of it.
    shares = shares_of_steps(run.scheduler, 6)
    assert shares == pytest.approx([0, 0.5 / 3, 1 / 3, 0.75 / 3, 0.5 / 3, 0.25 / 3])
    pull.on_train_begin(None, run.state, None, **run.given)
    run.take(pull, 3)
    torch.testing.assert_close(run.weight, torch.full((2, 2), math.exp(-0.5)))


def test_a_schedule_that_looks_at_the_loss_pulls_by_equal_shares():
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    assert shares_of_steps(plateau, 5) == [0.2] * 5


@pytest.mark.parametrize(
    ("dtype", "make", "found"),
    [
        (torch.bfloat16, lambda model: None, "in fewer bits than fp32, such as weight"),
        (torch.float32, lambda model: model.state_dict(), "shares its memory with"),
        (torch.float32, lambda model: {}, "of which the base has none"),
        (torch.float32, lambda model: {"weight": torch.ones(2, 3)}, "another shape"),
    ],
)
def test_what_could_not_be_pulled_is_said_before_the_first_step(dtype, make, found):
    run = Steps(torch.ones(2, 2), named("linear"), 4)
    run.model.to(dtype)
    with pytest.raises(UsageError, match=found):
        PullBack(1.0, make(run.model)).on_train_begin(None, run.state, None, **run.given)


def test_a_checkpoint_is_not_taken_for_the_base():
    run = Steps(torch.ones(2, 2), named("constant"), 4)
    begun = PullBack(1.0)
    begun.on_train_begin(None, run.state, None, **run.given)
    run.take(begun, 2)
    with pytest.raises(
        UsageError, match=r"resumed at step 2, and no base[\s\S]*PullBack\(pull, ba"
    ):
        PullBack(1.0).on_train_begin(None, run.state, None, **run.given)
    PullBack(1.0, {"weight": torch.zeros(2, 2)}).on_train_begin(None, run.state, None, **run.given)
    begun.on_train_begin(None, run.state, None, **run.given)  # which knows its base


def test_names_of_the_base_that_do_not_train_are_passed_over():
    run = Steps(torch.ones(2, 2), named("constant"), 1)
    pull = PullBack(1e6, {"weight": torch.zeros(2, 2), "head": torch.ones(3)})
    pull.on_train_begin(None, run.state, None, **run.given)
    run.take(pull, 1)
    assert run.weight.equal(torch.zeros(2, 2))


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
    def train(callbacks, changes=lambda model: {}):
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
        Trainer(model, args, train_dataset=Ones(), callbacks=callbacks, **changes(model)).train()
        return model.trains.item(), model.rests.item()

    assert train([]) == pytest.approx((2.4, 3.0))
    # Each of four steps of 0.1 is left with exp(-1/4) of itself for every step from its own on.
    left = 0.1 * sum(math.exp(-n / 4) for n in (1, 2, 3, 4))
    assert train([PullBack(1.0)]) == pytest.approx((2.0 + left, 3.0))

    def own(model):  # whose rate is not the arguments'
        return {"optimizers": (torch.optim.SGD([model.trains], lr=0.2), None)}

    assert train([PullBack(1.0)], own) == pytest.approx((2.0 + 2 * left, 3.0))


@pytest.mark.parametrize(
    ("training", "found"),
    [
        ({"fsdp": True}, "can't be used with training.fsdp"),
        ({"deepspeed": "zero2.json"}, "can't be used with training.deepspeed"),
        ({"optim": "schedule_free_adamw"}, "used with training.optim: schedule_free_adamw: it"),
    ],
)
def test_where_steps_are_not_the_optimisers_alone_it_is_refused(training, found):
    with pytest.raises(ValueError, match=f"training.pull_to_base .*{found}"):
        RunConfig.model_validate(
            {"model": "m", "skill": "s", "training": {"pull_to_base": 1.0, **training}}
        )
