"""A stage that runs out of memory ends with what takes less of it; other errors are untouched."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

from narrowtune.core.errors import ModelError, TrainingError
from narrowtune.models import load as loading
from narrowtune.models.load import load_model
from narrowtune.pipeline.stopwatch import Stopwatch

GPU = "CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation"
FAR_TOO_MUCH = 2**60


@pytest.fixture
def watch():
    return Stopwatch(Console(file=io.StringIO()), loud=True)


@pytest.mark.parametrize(
    ("name", "kind", "advice"),
    [
        ("train", TrainingError, "training.per_device_train_batch_size"),
        ("plan", TrainingError, "training.per_device_train_batch_size"),
        ("evaluate the tuned model", TrainingError, "eval_batch_size"),
        ("delta", TrainingError, "with more memory"),
        # What every way of a comparison would need.
        ("load the model", ModelError, "bfloat16"),
        ("evaluate the base", ModelError, "eval_batch_size"),
    ],
)
def test_a_device_without_room_is_one_clear_error(watch, name, kind, advice):
    with pytest.raises(kind) as error, watch.stage(name):
        raise torch.OutOfMemoryError(GPU)
    assert error.value.asked == f"to {name}"
    assert error.value.found == f"too little memory: {GPU.splitlines()[0]}"
    assert advice in error.value.do
    # Which refuses settings that training depends on.
    assert ("--resume" in error.value.do) == (advice == "eval_batch_size")
    assert isinstance(error.value.__cause__, torch.OutOfMemoryError)
    assert name not in watch.seconds


def test_so_is_a_model_that_does_not_fit(tiny, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError(GPU)

    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(ModelError) as error:
        load_model(str(tiny("llama")))
    assert "with more memory" in error.value.do


def test_so_is_a_cpu_without_room(watch):
    with pytest.raises(TrainingError, match="too little memory"), watch.stage("train"):
        torch.empty(FAR_TOO_MUCH, dtype=torch.uint8)


def test_other_errors_stay_what_they_are(watch):
    with pytest.raises(RuntimeError, match="shapes") as error, watch.stage("train"):
        raise RuntimeError("shapes that don't fit")
    assert type(error.value) is RuntimeError
    with watch.stage("train"):
        pass
    assert watch.seconds["train"] >= 0
