"""The first rows of a run by both paths: what disagrees is not taken, and training is as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from narrowtune.core.config import RunConfig
from narrowtune.core.path_results import Comparison
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.examples import Example, Message, Text
from narrowtune.engine import attention
from narrowtune.engine.arithmetic import Arithmetic, apply_arithmetic
from narrowtune.engine.attention import by_products
from narrowtune.engine.packing import is_packing_allowed
from narrowtune.engine.passes import Pass
from narrowtune.models.load import LoadedModel, load_model
from narrowtune.models.select import resolve
from narrowtune.train import fit as fit_module
from narrowtune.train import selfcheck
from narrowtune.train.fit import fit
from narrowtune.train.selfcheck import Checked, plain_path

FP32 = Arithmetic(compute_dtype="float32", attention="products", threads=1)
BF16 = FP32.model_copy(update={"compute_dtype": "bfloat16"})
EXACT = FP32.model_copy(update={"packing": False})


@pytest.fixture
def train(tiny: Callable, tmp_path: Path) -> Callable:
    def run(
        arithmetic: Arithmetic = FP32,
        change: Callable[[LoadedModel], None] = lambda _: None,
        **training: Any,
    ) -> tuple[dict[str, Tensor], Comparison | None]:
        loaded = load_model(str(tiny("llama", torch.float32)), device="cpu")
        change(loaded)
        encoder = ChatEncoder(loaded.tokenizer, loaded.processor)
        rows = []
        for number in range(12):
            turns = (
                Message("user", (Text(f"Say it {number}." + " Please." * (number % 3)),)),
                Message("assistant", (Text("dog sun tree"),)),
            )
            rows.append(encoder.encode(Example(str(number), turns, ("dog",))))
        given = {"global_batch_size": 4, "per_device_train_batch_size": 4, "max_steps": 3}
        values = {"model": "tiny", "skill": "unused", "output_dir": str(tmp_path)}
        config = RunConfig.model_validate({**values, "training": {**given, **training}})
        with apply_arithmetic(arithmetic):
            fitted = fit(
                loaded, resolve(loaded.model, "sa_proj"), rows, config, arithmetic=arithmetic
            )
        weights = dict(loaded.model.named_parameters())
        return {n: weights[n].detach().clone() for n in fitted.base}, fitted.summary.first_step

    return run


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in other)


def _deaf(loaded: LoadedModel) -> None:
    """Make a model that honours no layout's mask and positions."""
    forward = loaded.model.forward

    def deaf(*args: Any, **kwargs: Any) -> Any:
        if kwargs["attention_mask"] is not None and kwargs["attention_mask"].ndim == 4:
            kwargs["attention_mask"] = kwargs["position_ids"] = None
        return forward(*args, **kwargs)

    loaded.model.forward = deaf


@pytest.mark.parametrize(("arithmetic", "limit"), [(FP32, 1e-5), (BF16, 0.1)])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_what_agrees_is_taken_and_training_is_as_without_the_comparison(
    train: Callable,
    monkeypatch: pytest.MonkeyPatch,
    arithmetic: Arithmetic,
    limit: float,
    checkpointed: bool,
) -> None:
    weights, found = train(arithmetic, gradient_checkpointing=checkpointed)
    assert found.used
    assert 0 < found.error <= limit
    monkeypatch.setattr(
        fit_module, "check_first_step", lambda *_, features, **__: Checked(features)
    )
    unchecked, nothing = train(arithmetic, gradient_checkpointing=checkpointed)
    assert nothing is None
    assert _equal(weights, unchecked)


@pytest.mark.parametrize("arithmetic", [FP32, BF16])
def test_a_model_that_is_deaf_to_layouts_trains_by_the_plain_path(
    train: Callable, arithmetic: Arithmetic
) -> None:
    plain, nothing = train(arithmetic.model_copy(update={"packing": False}))
    assert nothing is None
    weights, found = train(arithmetic, _deaf)
    assert not found.used
    assert found.error > found.limit
    assert _equal(weights, plain)


def test_where_bf16_is_too_coarse_to_tell_fp32_decides(
    train: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, _ = train(BF16)
    monkeypatch.setitem(selfcheck.MAX_ERROR, "bfloat16", 1e-9)
    again, found = train(BF16)
    assert found.used
    assert found.error > found.limit
    assert 0 < found.float32_error <= 1e-5
    assert _equal(weights, again)
    _, found = train(BF16, _deaf)
    assert not found.used
    assert found.float32_error > 0.1
    run_pass = selfcheck.run_pass

    def fails_in_bf16(model: Any, chosen: Any, batch: Any, arithmetic: Arithmetic) -> Pass:
        if arithmetic.compute_dtype == "bfloat16" and is_packing_allowed():
            raise TypeError("a kernel that bf16 has not")
        return run_pass(model, chosen, batch, arithmetic)

    monkeypatch.setattr(selfcheck, "run_pass", fails_in_bf16)
    _, found = train(BF16)
    assert not found.used, "what fails is not taken, whatever fp32 says"

    def without_room(model: Any, chosen: Any, batch: Any, arithmetic: Arithmetic) -> Pass:
        if arithmetic.compute_dtype == "float32":
            raise torch.OutOfMemoryError("too much")
        return run_pass(model, chosen, batch, arithmetic)

    monkeypatch.setattr(selfcheck, "run_pass", without_room)
    _, found = train(BF16)
    assert not found.used
    assert found.float32_error is None


def test_attention_that_computes_something_else_while_training_is_seen(
    train: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def wrong(*given: Any) -> Tensor:
        calls.append(1)
        found = by_products(*given)
        # Only backwards: logits, and so the loss, are right.
        return found + 0.01 * (given[2].sum() - given[2].sum().detach())

    monkeypatch.setattr(attention, "by_products", wrong)
    plain, _ = train(EXACT)
    assert not calls
    weights, found = train(FP32)
    assert len(calls) == 2  # layers, in the comparison alone
    assert not found.used
    assert _equal(weights, plain)


def test_what_drops_by_chance_or_finds_no_memory_is_not_compared(
    train: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_dropout(loaded: LoadedModel) -> None:
        for layer in loaded.model.model.layers:
            layer.self_attn.attention_dropout = 0.1

    assert train(FP32, with_dropout)[1] is None

    def with_bare_dropout(loaded: LoadedModel) -> None:
        loaded.model.model.layers[0].mlp.dropout = 0.1

    assert train(FP32, with_bare_dropout)[1] is None

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("too much")

    monkeypatch.setattr("narrowtune.train.selfcheck.run_pass", full)
    assert train(FP32)[1] is None


def test_the_plain_path_attends_as_torch_does(tiny: Callable) -> None:
    model = load_model(str(tiny("llama")), device="cpu").model

    def chooses() -> bool:
        return hasattr(attention.ALL_ATTENTION_FUNCTIONS["sdpa"], "fused")

    with attention.attention_by_products(True):
        assert chooses()
        with plain_path(model):
            assert not chooses()
        assert chooses()


def test_a_run_of_no_steps_compares_nothing(train: Callable) -> None:
    assert train(FP32, max_steps=0)[1] is None
