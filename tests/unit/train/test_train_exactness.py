"""Fifty steps by the fast path end where fifty steps by the plain path end."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import PIL.Image
import pytest
import torch
from torch import Tensor

from narrowtune.core.config import RunConfig
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.collate import Encoded
from narrowtune.data.examples import Example, Image, Message, Text
from narrowtune.engine import attention, packing
from narrowtune.engine.arithmetic import Arithmetic, apply_arithmetic
from narrowtune.engine.attention import by_products
from narrowtune.engine.features import FeatureStore
from narrowtune.models.load import LoadedModel, load_model
from narrowtune.models.select import resolve
from narrowtune.train.fit import FitResult, fit

FAST = Arithmetic(compute_dtype="float32", attention="products", threads=1)
EXACT = FAST.model_copy(update={"packing": False})
WORDS = ("dog", "sun", "tree", "bread", "rain")
NUM_STEPS = 50


def _rows(loaded: LoadedModel, *, pictured: bool) -> list[Encoded]:
    """Rows that share a system turn; with pictures also a picture, each by four of them."""
    encoder = ChatEncoder(loaded.tokenizer, loaded.processor)
    made = []
    for number in range(24):
        parts = (Text(f"Say it {number}." + " Please." * (number % 3)),)
        first = (Message("system", (Text("You answer with a word or two."),)),)
        if pictured:
            first, parts = (), (_picture(number // 4), *parts)
        answer = " ".join(WORDS[: number % 5 + 1])
        turns = (*first, Message("user", parts), Message("assistant", (Text(answer),)))
        made.append(encoder.encode(Example(str(number), turns, (answer,))))
    return made


def _picture(number: int) -> Image:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (40, 30), (30 * number, 200 - 20 * number, 90)).save(buffer, "PNG")
    return Image(data=buffer.getvalue())


def _trained(
    folder: Path, base: Path, arithmetic: Arithmetic, store: FeatureStore | None, *, pictured: bool
) -> tuple[dict[str, Tensor], FitResult]:
    loaded = load_model(str(base), device="cpu")
    training = {
        "learning_rate": 1e-3,
        "global_batch_size": 8,
        "per_device_train_batch_size": 8,
        "max_steps": NUM_STEPS,
        "group_by_picture": pictured,
    }
    values = {"model": "tiny", "skill": "unused", "output_dir": str(folder), "training": training}
    with apply_arithmetic(arithmetic):
        fitted = fit(
            loaded,
            resolve(loaded.model, "sa_proj"),
            _rows(loaded, pictured=pictured),
            RunConfig.model_validate(values),
            arithmetic=arithmetic,
            features=store,
        )
    weights = dict(loaded.model.named_parameters())
    return {name: weights[name].detach() for name in fitted.base}, fitted


@pytest.mark.parametrize("family", ["llama", "qwen2_5_vl"])
def test_fifty_steps_by_the_fast_path_are_fifty_by_the_plain_path(
    family: str, tiny: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictured = family != "llama"
    taken = {"layouts": 0, "products": 0}

    def counted(name: str, function: Callable) -> Callable:
        def call(*args: object, **kwargs: object) -> object:
            found = function(*args, **kwargs)
            taken[name] += found is not None
            return found

        return call

    monkeypatch.setattr(packing, "_laid_out", counted("layouts", packing._laid_out))
    monkeypatch.setattr(attention, "by_products", counted("products", by_products))
    base, store = tiny(family, torch.float32), FeatureStore() if pictured else None
    exact, plain = _trained(tmp_path / "exact", base, EXACT, None, pictured=pictured)
    assert not any(taken.values())
    found, fast = _trained(tmp_path / "fast", base, FAST, store, pictured=pictured)
    # Of lines in every step; of branches in those that they make cheaper.
    assert taken["layouts"] >= NUM_STEPS // 2
    assert taken["products"] >= taken["layouts"]
    if store is not None:
        assert store.num_computed == 6
        assert store.num_found > NUM_STEPS
    assert fast.summary.num_steps == plain.summary.num_steps == NUM_STEPS

    def norm(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
        gaps = [(one[name].double() - other[name].double()).norm() for name in plain.base]
        return float(torch.stack(gaps).norm())

    moved = norm(exact, plain.base)
    assert moved > 0
    assert norm(found, exact) / moved <= 1e-4
