"""Compiled layers: the same training, taken only where gradients agree, and gone afterwards."""

from __future__ import annotations

import shutil
from functools import partial

import pytest
import torch

from narrowtune.core.config import RunConfig, TrainingSettings
from narrowtune.core.errors import UsageError
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.examples import Example, Message, Text
from narrowtune.engine.arithmetic import Arithmetic
from narrowtune.engine.compiled import compiled_layers
from narrowtune.models.load import load_model
from narrowtune.models.select import resolve
from narrowtune.pipeline.checks import check_launch
from narrowtune.train.fit import fit

FLOAT32 = Arithmetic(compute_dtype="float32", threads=1)
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")


def train(folder, model_folder, recipe="sa_proj", **training):
    loaded = load_model(str(model_folder), device="cpu")
    encoder = ChatEncoder(loaded.tokenizer, loaded.processor)
    rows = []
    for number in range(24):
        answer = " ".join(["dog", "sun", "tree", "bread", "rain"][: number % 5 + 1])
        turns = (
            Message("user", (Text(f"Say it {number}." + " Please." * (number % 3)),)),
            Message("assistant", (Text(answer),)),
        )
        rows.append(encoder.encode(Example(str(number), turns, (answer,))))
    fields = {"learning_rate": 1e-3, "global_batch_size": 8, "per_device_train_batch_size": 4}
    config = RunConfig.model_validate(
        {
            "model": "tiny",
            "skill": "unused",
            "output_dir": str(folder),
            "training": {**fields, **training},
        }
    )
    fitted = fit(loaded, resolve(loaded.model, recipe), rows, config, arithmetic=FLOAT32)
    return loaded, fitted


def count_calls(monkeypatch, compiling):
    """Compile by `compiling`; return a list that grows with every call of what is compiled."""
    calls = []

    def counted(function, **options):
        made = compiling(function, **options)

        def compiled(*args, **kwargs):
            calls.append(1)
            return made(*args, **kwargs)

        return compiled

    monkeypatch.setattr(torch, "compile", counted)
    return calls


def layers_of(loaded):
    return list(loaded.model.get_submodule(loaded.family.language_model.layers).children())


def difference(first, second) -> float:
    """‖difference‖ / ‖first's update‖ over the selected tensors."""
    one, two = (dict(loaded.model.named_parameters()) for loaded, _ in (first, second))
    base = first[1].base
    off = sum(float((one[n] - two[n]).double().square().sum()) for n in base)
    return (off / sum(float((one[n] - base[n]).double().square().sum()) for n in base)) ** 0.5


@pytest.mark.parametrize(
    ("backend", "checkpointed"),
    # All but the kernels themselves, whose making takes half a minute.
    [pytest.param("inductor", False, marks=needs_compiler), ("aot_eager", True)],
)
def test_training_through_compiled_layers_is_the_same_training(
    tiny, tmp_path, monkeypatch, backend, checkpointed
):
    options = {"gradient_checkpointing": checkpointed}
    calls = count_calls(monkeypatch, partial(torch.compile, backend=backend))
    plain = train(tmp_path / "plain", tiny("llama"), **options)
    compiled = train(tmp_path / "compiled", tiny("llama"), torch_compile=True, **options)
    found = compiled[1].summary.compilation
    assert found.used
    assert found.error <= 1e-5
    assert found.seconds > 0
    # Two layers: once to compare, and in three steps of two passes.
    assert len(calls) == 2 * (1 + 3 * 2)
    assert difference(plain, compiled) <= 1e-4
    assert plain[1].summary.compilation is None
    assert not any("forward" in vars(layer) for layer in layers_of(compiled[0]))


def test_layers_that_disagree_are_left_as_they_are(tiny, tmp_path, monkeypatch):
    def wrong(function, **_):
        def compiled(*args, **kwargs):
            return 1.5 * function(*args, **kwargs)

        return compiled

    plain = train(tmp_path / "plain", tiny("llama"))
    monkeypatch.setattr(torch, "compile", wrong)
    other = train(tmp_path / "other", tiny("llama"), torch_compile=True)
    found = other[1].summary.compilation
    assert not found.used
    assert found.error > found.limit
    assert difference(plain, other) == 0.0


@pytest.mark.parametrize(
    ("problem", "told"),
    [
        (RuntimeError("no compiler\nand more of it"), "RuntimeError: no compiler\n"),
        (NotImplementedError(), "NotImplementedError: \n"),
    ],
)
def test_what_cannot_be_compiled_is_told_before_training(
    tiny, tmp_path, monkeypatch, problem, told
):
    monkeypatch.setattr(torch, "compile", failing(problem))
    with pytest.raises(UsageError) as caught:
        train(tmp_path, tiny("llama"), torch_compile=True)
    assert f"Found: {told}" in str(caught.value)


def test_too_little_memory_is_said_to_be_that(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", failing(torch.OutOfMemoryError("too much")))
    with pytest.raises(torch.OutOfMemoryError):
        train(tmp_path, tiny("llama"), torch_compile=True)


def failing(problem):
    def compile_nothing(function, **_):
        def compiled(*args, **kwargs):
            raise problem

        return compiled

    return compile_nothing


def test_layers_that_drop_by_chance_are_not_compared(tiny, tmp_path, monkeypatch):
    load = load_model

    def with_dropout(*args, **kwargs):
        loaded = load(*args, **kwargs)
        layers_of(loaded)[0].mlp.act_fn = torch.nn.Sequential(
            layers_of(loaded)[0].mlp.act_fn, torch.nn.Dropout(0.1)
        )
        return loaded

    monkeypatch.setitem(globals(), "load_model", with_dropout)
    with pytest.raises(UsageError, match="dropout"):
        train(tmp_path, tiny("llama"), torch_compile=True)


def test_rows_that_teach_nothing_of_what_trains_are_no_comparison(tiny, tmp_path):
    with pytest.raises(UsageError, match="without a gradient"):
        train(tmp_path, tiny("qwen2_5_vl"), recipe="vision_tower", torch_compile=True)


def test_several_processes_are_refused():
    training = TrainingSettings(torch_compile=True)
    check_launch(training, 1)
    with pytest.raises(UsageError, match="torch_compile in 2 processes"):
        check_launch(training, 2)


def test_only_passes_that_train_go_through_compiled_layers(tiny, monkeypatch):
    loaded = load_model(str(tiny("llama")), device="cpu")
    calls = count_calls(monkeypatch, lambda function, **_: function)
    model, layers = loaded.model, layers_of(loaded)
    ids = torch.tensor([[5, 6, 7, 8]])
    with compiled_layers(layers):
        model.eval()
        model(input_ids=ids)
        model.train()
        with torch.no_grad():
            model(input_ids=ids)
        assert not calls
        model(input_ids=ids)
        assert len(calls) == len(layers)
    model(input_ids=ids)
    assert len(calls) == len(layers)


def test_a_run_of_no_steps_compiles_nothing(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", None)
    _, fitted = train(tmp_path, tiny("llama"), torch_compile=True, max_steps=0)
    assert fitted.summary.compilation is None


@pytest.mark.parametrize("other", [{"fsdp": True}, {"quantize_frozen": "int8"}])
def test_what_it_was_not_made_for_is_refused(other):
    values = {"model": "tiny", "skill": "rows", "training": {"torch_compile": True, **other}}
    with pytest.raises(ValueError, match="torch_compile can't be used"):
        RunConfig.model_validate(values)
