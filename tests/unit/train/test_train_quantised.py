"""A frozen part in fewer bits: the same loss and gradients as its dequantised weights, the
checkpoint's own bits before and after, and a delta that fits the checkpoint."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from narrowtune.core.config import RunConfig, parse_config
from narrowtune.core.errors import DeltaError, ModelError, SelectionError, TrainingError, UsageError
from narrowtune.core.study_settings import StudySettings
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.collate import collate, padding_id
from narrowtune.data.examples import Example, Message, Text
from narrowtune.delta.apply import apply, undo
from narrowtune.delta.extract import extract
from narrowtune.delta.store import Delta
from narrowtune.engine import quantised as engine
from narrowtune.engine.arithmetic import Arithmetic, autocast
from narrowtune.engine.forward import labelled_cross_entropy
from narrowtune.engine.generate import generate_greedy
from narrowtune.engine.memory import SavedTensors, sum_bytes
from narrowtune.engine.quantised import QuantisedLinear, check_quantiser, quantise
from narrowtune.models.fingerprint import fingerprint, tensor_hashes
from narrowtune.models.load import load_model
from narrowtune.models.select import resolve, select
from narrowtune.pipeline.checks import check_run
from narrowtune.train import quantised as module
from narrowtune.train.fit import fit
from narrowtune.train.plan import make_plan
from narrowtune.train.quantised import is_quantised, quantised_cost, quantised_frozen
from narrowtune.train.workload import Workload
from quantisers import quantise_by_hand

FLOAT32 = Arithmetic(compute_dtype="float32", threads=1)
BFLOAT16 = Arithmetic(compute_dtype="bfloat16", threads=1)
MLP = ("gate_proj", "up_proj", "down_proj")


@pytest.fixture
def by_hand(monkeypatch):
    return quantise_by_hand(monkeypatch)


@pytest.fixture(params=["by hand", "int8", "nf4"])
def kind(request):
    if request.param == "by hand":
        return request.getfixturevalue("by_hand")
    pytest.importorskip(engine.LIBRARIES[request.param])
    return request.param


def _rows(loaded, count=16):
    encoder = ChatEncoder(loaded.tokenizer, loaded.processor)
    words = ["dog", "sun", "tree", "bread"]
    return [
        encoder.encode(
            Example(
                str(i),
                (
                    Message("user", (Text(f"Say {i}."),)),
                    Message("assistant", (Text(words[i % 4]),)),
                ),
                (words[i % 4],),
            )
        )
        for i in range(count)
    ]


def _config(folder: Path, **training) -> RunConfig:
    training = {
        "learning_rate": 3e-3,
        "global_batch_size": 8,
        "per_device_train_batch_size": 8,
        "num_train_epochs": 6,
        **training,
    }
    values = {"model": "m", "recipe": "sa_proj", "skill": "s", "output_dir": str(folder)}
    return parse_config({**values, "training": training}, "a test")


def _bits(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def _same_bits(model, before) -> bool:
    return all(
        torch.equal(p.detach().view(torch.uint8), before[name].view(torch.uint8))
        for name, p in model.named_parameters()
    )


def _loss_and_gradients(loaded, names, arithmetic):
    batch = collate(_rows(loaded, 4), padding_id(loaded.tokenizer))
    loaded.model.zero_grad(set_to_none=True)
    with autocast(arithmetic, "cpu"):
        loss, _ = labelled_cross_entropy(loaded.model, batch)
    loss.backward()
    parameters = dict(loaded.model.named_parameters())
    return float(loss.detach()), {name: parameters[name].grad.clone() for name in names}


@pytest.mark.parametrize("arithmetic", [FLOAT32, BFLOAT16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "again"])
@pytest.mark.parametrize(
    ("family", "recipe"),
    [("llama", "sa_proj"), ("qwen2", "mlp_gate_up"), ("phi3", "sa_proj"), ("llava", "sa_o")],
)
def test_loss_and_gradients_are_those_of_the_dequantised_weights(
    tiny, tmp_path, kind, family, recipe, arithmetic, checkpointing
):
    """Exactly in fp32, and bf16 rounds the same products in the same places."""
    loaded, plain = (load_model(str(tiny(family)), device="cpu") for _ in range(2))
    selection = select(loaded.model, recipe)
    select(plain.model, recipe)
    if checkpointing:
        for each in (loaded, plain):
            each.model.gradient_checkpointing_enable({"use_reentrant": False})
            each.model.train()
    with quantised_frozen(loaded, selection, kind, tmp_path):
        layers = {p: m for p, m in loaded.model.named_modules() if isinstance(m, QuantisedLinear)}
        for path, layer in layers.items():
            with torch.no_grad():
                weight = plain.model.get_submodule(path).weight
                assert not torch.equal(weight, layer.weight_in(torch.float32))
                weight.copy_(layer.weight_in(torch.float32))
        loss, gradients = _loss_and_gradients(loaded, selection.names, arithmetic)
    expected_loss, expected = _loss_and_gradients(plain, selection.names, arithmetic)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    for name, gradient in gradients.items():
        assert gradient.norm() > 0, name
        assert (gradient - expected[name]).norm() <= 1e-6 * expected[name].norm(), name


def test_answers_are_those_of_the_dequantised_weights(tiny, tmp_path, kind):
    loaded, plain = (load_model(str(tiny("llama")), device="cpu") for _ in range(2))
    encoder = ChatEncoder(loaded.tokenizer, loaded.processor)
    prompts = [
        encoder.encode_prompt((Message("user", (Text(f"Tell me about {i}."),)),)) for i in range(5)
    ]

    def answers(which):
        found = generate_greedy(which, prompts, max_new_tokens=6, batch_size=3)
        return [each.token_ids for each in found]

    with quantised_frozen(loaded, resolve(loaded.model, "sa_proj"), kind, tmp_path):
        for path, layer in loaded.model.named_modules():
            if isinstance(layer, QuantisedLinear):
                plain.model.get_submodule(path).weight.data = layer.weight_in(torch.float32)
        found = answers(loaded)
    assert found == answers(plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("arithmetic", [FLOAT32, BFLOAT16], ids=["fp32", "bf16"])
def test_training_moves_the_selection_alone_and_the_delta_fits_the_checkpoint(
    tiny, tmp_path, kind, dtype, arithmetic
):
    folder = tiny("llama", dtype)
    loaded, base = (load_model(str(folder), device="cpu") for _ in range(2))
    before, hashes = _bits(loaded.model), tensor_hashes(loaded.model)
    selection = resolve(loaded.model, "sa_proj")
    with quantised_frozen(loaded, selection, kind, tmp_path) as note:
        fitted = fit(
            loaded,
            selection,
            _rows(loaded),
            _config(tmp_path, quantize_frozen=kind),
            arithmetic=arithmetic,
        )
    log = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in log if "loss" in line]
    assert losses[-1] < 0.8 * losses[0]
    assert fitted.proof.frozen_identical
    now = dict(loaded.model.named_parameters())
    assert {n for n in now if not torch.equal(now[n], before[n])} == set(selection.names)
    assert all(p.dtype == dtype for p in now.values())

    delta = extract(loaded.model, selection, fitted.base, base_hashes=hashes, notes=[note])
    delta.save(tmp_path / "delta.safetensors")
    delta = Delta.load(tmp_path / "delta.safetensors")
    assert kind in delta.metadata.notes[0]
    assert delta.metadata.base_fingerprint == fingerprint(base.model)
    apply(base.model, delta)
    assert _same_bits(base.model, _bits(loaded.model))
    undo(base.model, delta)
    assert _same_bits(base.model, before)


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3", "llava"])
def test_afterwards_and_after_an_error_the_model_is_what_it_was(tiny, tmp_path, by_hand, family):
    loaded = load_model(str(tiny(family, torch.bfloat16)), device="cpu")
    model, before = loaded.model, _bits(loaded.model)
    objects = {name: id(p) for name, p in model.named_parameters()}
    held = set()

    def fail():
        with quantised_frozen(loaded, resolve(model, "sa_proj"), by_hand, tmp_path):
            held.update(n for n, m in model.named_modules() if isinstance(m, QuantisedLinear))
            assert sum_bytes(model.parameters()) < sum(p.nbytes for p in before.values())
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    layers = loaded.family.language_model.layers
    mlp = ("gate_up_proj", "down_proj") if family == "phi3" else MLP
    assert held == {f"{layers}.{i}.mlp.{name}" for i in range(2) for name in mlp}
    assert {name: id(p) for name, p in model.named_parameters()} == objects
    assert _same_bits(model, before)
    assert list(tmp_path.iterdir()) == []


def test_the_tower_is_left_alone_where_the_projector_trains(tiny, tmp_path, by_hand):
    loaded = load_model(str(tiny("llava")), device="cpu")
    with quantised_frozen(loaded, resolve(loaded.model, "projector"), by_hand, tmp_path):
        held = [n for n, m in loaded.model.named_modules() if isinstance(m, QuantisedLinear)]
    assert len(held) == 2 * 7
    assert {loaded.family.component(name) for name in held} == {"language_model"}


def test_nothing_more_is_kept_for_the_backward_pass(tiny, tmp_path, kind):
    """A layer of torchao's own keeps its weight there as floating-point numbers."""
    loaded = load_model(str(tiny("llama")), device="cpu")
    selection = select(loaded.model, "sa_proj")
    batch = collate(_rows(loaded, 4), padding_id(loaded.tokenizer))

    def kept():
        with SavedTensors(loaded.model) as saved:
            _loss = labelled_cross_entropy(loaded.model, batch)
        return saved.num_bytes

    plain = kept()
    with quantised_frozen(loaded, selection, kind, tmp_path):
        assert kept() <= plain


def test_the_plan_counts_the_bytes_that_are_held(tiny, tmp_path, kind):
    loaded = load_model(str(tiny("llama", torch.bfloat16)), device="cpu")
    selection = resolve(loaded.model, "sa_proj")

    def plan(**training):
        config = _config(tmp_path, **training)
        return make_plan(loaded, config, Workload(), arithmetic=FLOAT32, measure_time=False)

    before = _bits(loaded.model)
    plain, found = plan(), plan(quantize_frozen=kind)
    assert _same_bits(loaded.model, before)
    buffers = sum_bytes(loaded.model.buffers())
    with quantised_frozen(loaded, selection, kind, tmp_path):
        numbers = sum(p.numel() for p in loaded.model.parameters())
        held = sum_bytes(loaded.model.buffers()) - buffers
    in_plan = 4 * (numbers - selection.num_parameters) + held + buffers
    in_plan += 2 * selection.num_parameters  # the base's copy of what trains
    assert found.memory.weights == in_plan
    assert found.memory.weights < plain.memory.weights
    assert found.memory.activations == plain.memory.activations
    assert any(kind in note and "full precision" in note for note in found.notes)


def test_dequantising_is_part_of_the_planned_time(tiny, tmp_path, by_hand, monkeypatch):
    loaded = load_model(str(tiny("llama")), device="cpu")
    monkeypatch.setattr(module, "_seconds", lambda _: 10.0)
    config = _config(tmp_path, quantize_frozen=by_hand, per_device_train_batch_size=4)
    plan = make_plan(loaded, config, Workload(), arithmetic=FLOAT32)
    # Six layers, forward and backward, in two micro-batches.
    assert plan.time.measured_step_seconds == pytest.approx(240, rel=0.05)


@pytest.mark.parametrize("recipe", ["language_model", "full"])
def test_a_recipe_that_leaves_nothing_frozen(tiny, tmp_path, by_hand, recipe):
    loaded = load_model(str(tiny("llava" if recipe == "full" else "llama")), device="cpu")
    selection = resolve(loaded.model, recipe)
    with pytest.raises(SelectionError, match="no linear layer") as caught:
        quantised_cost(loaded, selection, by_hand)
    assert recipe in caught.value.asked
    with (
        pytest.raises(SelectionError, match="no linear layer"),
        quantised_frozen(loaded, selection, by_hand, tmp_path),
    ):
        pass


def test_experts_are_not_quantised(tiny, tmp_path, by_hand):
    loaded = load_model(str(tiny("mixtral")), device="cpu")
    selection = resolve(loaded.model, "sa_proj")
    with (
        pytest.raises(SelectionError, match="and experts are not quantised"),
        quantised_frozen(loaded, selection, by_hand, tmp_path),
    ):
        pass


@pytest.mark.parametrize(("kind", "library"), engine.LIBRARIES.items())
def test_a_missing_library_is_named_before_anything_is_loaded(tmp_path, monkeypatch, kind, library):
    monkeypatch.setitem(sys.modules, library, None)
    rows = tmp_path / "rows.jsonl"
    rows.touch()
    config = parse_config(
        {
            "model": str(tmp_path),
            "skill": str(rows),
            "training": {"quantize_frozen": kind},
        },
        "a test",
    )
    with pytest.raises(UsageError, match=f"{library} is not installed") as caught:
        check_run(config)
    assert "narrowtune[quant]" in caught.value.do


def test_a_library_that_can_not_be_imported_says_why(monkeypatch):
    def broken(name):
        raise OSError("libsomething.so: cannot open shared object file")

    monkeypatch.setattr(engine.importlib, "import_module", broken)
    with pytest.raises(UsageError, match="torchao fails: libsomething"):
        check_quantiser("int8")


def test_several_processes_are_refused(tmp_path, by_hand):
    rows = tmp_path / "rows.jsonl"
    rows.touch()
    config = parse_config(
        {"model": str(tmp_path), "skill": str(rows), "training": {"quantize_frozen": "int8"}},
        "a test",
    )
    check_run(config)
    with pytest.raises(UsageError, match="one process"):
        check_run(config, num_processes=2)


def test_another_device_is_refused():
    with pytest.raises(UsageError, match="the device meta"):
        quantise(torch.empty(4, 4, device="meta"), "int8")


@pytest.mark.parametrize("other", [{"deepspeed": "zero.json"}, {"fsdp": True}])
def test_sharded_training_is_refused(tmp_path, other):
    with pytest.raises(UsageError, match="quantize_frozen can't be used with"):
        _config(tmp_path, quantize_frozen="int8", **other)


def test_a_study_is_refused():
    with pytest.raises(ValueError, match="quantize_frozen is for a run"):
        StudySettings.model_validate(
            {
                "model": "m",
                "skills": [{"path": "s", "test_path": "t"}],
                "keep": ["k"],
                "arms": [{"recipe": "sa_proj", "learning_rates": [1e-3]}],
                "training": {"quantize_frozen": "int8"},
            }
        )


def test_training_outside_of_it_is_one_clear_error(tiny, tmp_path, by_hand):
    loaded = load_model(str(tiny("llama")), device="cpu")
    before = _bits(loaded.model)
    selection = resolve(loaded.model, "sa_proj")
    config = _config(tmp_path, quantize_frozen=by_hand)
    with pytest.raises(TrainingError, match="not quantised"):
        fit(loaded, selection, _rows(loaded), config, arithmetic=FLOAT32)
    assert _same_bits(loaded.model, before)


def test_a_full_disk_is_seen_before_anything_is_quantised(tiny, tmp_path, by_hand, monkeypatch):
    loaded = load_model(str(tiny("llama")), device="cpu")
    before = _bits(loaded.model)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with (
        pytest.raises(DeltaError, match="1,000 bytes free"),
        quantised_frozen(loaded, resolve(loaded.model, "sa_proj"), by_hand, tmp_path),
    ):
        pass
    assert _same_bits(loaded.model, before)


def test_what_the_disk_damaged_is_not_taken_back(tiny, tmp_path, by_hand):
    loaded = load_model(str(tiny("llama")), device="cpu")

    def damage():
        with quantised_frozen(loaded, resolve(loaded.model, "sa_proj"), by_hand, tmp_path):
            (file, *_) = tmp_path.glob(".frozen-*/*.safetensors")
            save_file({name: 0 * value for name, value in load_file(file).items()}, file)

    with pytest.raises(ModelError, match="other bits than were written"):
        damage()
    # All others came back, and nothing is quantised any more.
    assert not is_quantised(loaded.model)
    assert sum(not p.numel() for p in loaded.model.parameters()) == 1


def test_what_a_killed_run_has_left_on_the_disk_goes(tiny, tmp_path, by_hand):
    loaded = load_model(str(tiny("llama")), device="cpu")
    (tmp_path / ".frozen-old").mkdir()
    (tmp_path / ".frozen-old/0.safetensors").write_bytes(b"weights")
    (tmp_path / "kept.json").write_text("{}", encoding="utf-8")
    with quantised_frozen(loaded, resolve(loaded.model, "sa_proj"), by_hand, tmp_path):
        assert not (tmp_path / ".frozen-old").exists()
        assert len(list(tmp_path.glob(".frozen-*"))) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["kept.json"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_is_the_same_however_many_rows_are_dequantised_at_a_time(monkeypatch, dtype):
    pytest.importorskip("torchao")
    weight = torch.randn(37, 24).to(dtype)
    whole = quantise(weight, "int8").dequantise()
    monkeypatch.setattr(engine, "_CHUNK", 100)
    cut = quantise(weight, "int8")
    with torch.inference_mode():
        assert torch.equal(cut.dequantise(), whole)
    assert (whole - weight).norm() < 0.02 * weight.norm()
