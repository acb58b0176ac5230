from __future__ import annotations

import io
import random

import numpy as np
import PIL.Image
import pytest
import torch

from narrowtune.core.config import parse_config
from narrowtune.core.errors import UsageError
from narrowtune.core.results import Plan
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.collate import Encoded
from narrowtune.data.examples import Example, Image, Message, Text
from narrowtune.delta.extract import extract
from narrowtune.engine.arithmetic import Arithmetic
from narrowtune.evaluate.statistics import smallest_provable_budget
from narrowtune.models.load import load_model
from narrowtune.models.select import resolve
from narrowtune.train import plan as module
from narrowtune.train import plan_evaluation
from narrowtune.train.plan import make_plan
from narrowtune.train.trial import borrowed, seconds_at, time_pass, time_update
from narrowtune.train.workload import Batches, TaskLoad, Workload

BF16 = Arithmetic(compute_dtype="bfloat16", threads=1)
FP32 = Arithmetic(compute_dtype="float32", threads=1)


@pytest.fixture
def base(tiny):
    return load_model(str(tiny("llama", torch.bfloat16)), device="cpu")


def settings(tmp_path, **changes):
    training = {
        "global_batch_size": 8,
        "per_device_train_batch_size": 8,
        **changes.pop("training", {}),
    }
    values = {"model": "m", "skill": "s.json", "output_dir": str(tmp_path), "training": training}
    return parse_config({**values, **changes}, "test")


def text_rows(count=12, length=20, labels=4):
    made = []
    for number in range(count):
        ids = [5 + (number + place) % 50 for place in range(length + number % 3)]
        made.append(Encoded(ids, [-100] * (len(ids) - labels) + ids[-labels:]))
    return made


def picture_rows(loaded, count=6):
    file = io.BytesIO()
    PIL.Image.linear_gradient("L").resize((60, 30)).convert("RGB").save(file, "PNG")
    picture = Image(data=file.getvalue())
    encoder = ChatEncoder(loaded.tokenizer, loaded.processor)
    messages = (
        Message("user", (picture, Text("What colour?"))),
        Message("assistant", (Text("red"),)),
    )
    return [encoder.encode(Example(str(i), messages, ("red",))) for i in range(count)]


def state(model):
    """Everything that a plan must leave alone."""
    tensors = dict(model.state_dict(keep_vars=True)) | dict(model.named_buffers())
    return {
        "bits": {n: (t.dtype, t.detach().view(-1).clone()) for n, t in tensors.items()},
        "objects": {n: id(t) for n, t in tensors.items()},
        "flags": {n: p.requires_grad for n, p in model.named_parameters()},
        "gradients": {n: id(p.grad) for n, p in model.named_parameters()},
        "modes": [m.training for m in model.modules()],
        "random": (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()),
        "checkpointing": model.is_gradient_checkpointing,
        "config": model.config.to_dict(),
        "torch": (torch.get_float32_matmul_precision(), torch.get_num_threads()),
    }


def assert_same(before, after):
    for name, (dtype, bits) in before.pop("bits").items():
        now = after["bits"][name]
        assert now[0] == dtype, name
        assert torch.equal(now[1].view(torch.uint8), bits.view(torch.uint8)), name
    random_before, random_after = before.pop("random"), after["random"]
    assert torch.equal(random_before[0], random_after[0])
    assert random_before[1] == random_after[1]
    assert np.array_equal(random_before[2], random_after[2])
    for key, value in before.items():
        assert after[key] == value, key


@pytest.mark.parametrize("arithmetic", [BF16, FP32], ids=["bf16", "fp32"])
@pytest.mark.parametrize(
    ("family", "dtype", "recipe", "checkpointing"),
    [
        ("llama", torch.bfloat16, "sa_proj", False),
        ("llama", torch.float32, "language_model", False),
        ("qwen2", torch.bfloat16, "sa_proj", True),
        ("gemma3_text", torch.bfloat16, "mlp", False),
        ("llava", torch.bfloat16, "full", False),
        ("qwen2_5_vl", torch.bfloat16, "mlp_gate_up", False),
    ],
)
def test_a_plan_changes_nothing(tiny, tmp_path, family, dtype, recipe, checkpointing, arithmetic):
    loaded = load_model(str(tiny(family, dtype)), device="cpu")
    model = loaded.model
    for number, parameter in enumerate(model.parameters()):  # what a caller may have set
        parameter.requires_grad_(number % 2 == 0)
        if number == 0:
            parameter.grad = torch.ones_like(parameter)
    model.train(recipe == "full")
    rows = picture_rows(loaded) if loaded.processor is not None else text_rows()
    tasks = [TaskLoad("held_out", 4, 4, prompts=rows[:2], max_new_tokens=2)]
    workload = Workload(rows=rows, num_samples=40, tasks=tasks)
    training = {"gradient_checkpointing": checkpointing}
    before = state(model)
    found = make_plan(
        loaded,
        settings(tmp_path, recipe=recipe, training=training),
        workload,
        arithmetic=arithmetic,
    )
    assert_same(before, state(model))
    assert found.time is not None
    assert not list(tmp_path.iterdir())


def test_a_step_that_fails_changes_nothing_either(base):
    before = state(base.model)
    names = resolve(base.model, "sa_proj").names

    def fail():
        with borrowed(base.model, names, FP32) as parameters:
            parameters[0].data.zero_()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert_same(before, state(base.model))


def test_inside_it_stands_as_it_trains(base):
    names = resolve(base.model, "mlp_gate_up").names
    with borrowed(base.model, names, BF16) as parameters:
        dtypes = {n: p.dtype for n, p in base.model.named_parameters()}
        trained = [n for n, p in base.model.named_parameters() if p.requires_grad]
        assert base.model.training
        assert trained == list(names)
        assert {dtypes[n] for n in names} == {torch.float32}
        assert {d for n, d in dtypes.items() if n not in names} == {torch.bfloat16}
        masters = [p.detach().clone() for p in parameters]
        ids = torch.arange(5, 25)[None]
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
        assert time_pass(base.model, batch, BF16) > 0
        assert time_update(parameters, torch.optim.AdamW, 1.0) > 0
        assert all(not torch.equal(a, b) for a, b in zip(masters, parameters, strict=True))
    with borrowed(base.model, names, FP32):
        assert {p.dtype for p in base.model.parameters()} == {torch.float32}


def test_eyes_are_planned_for_rows_without_pictures_too(tiny, tmp_path):
    loaded = load_model(str(tiny("llava_onevision")), device="cpu")
    before = state(loaded.model)
    workload = Workload(rows=text_rows(), num_samples=100)
    config = settings(tmp_path, recipe="projector")
    found = make_plan(loaded, config, workload, arithmetic=FP32, measure_time=True)
    assert found.num_trainable > 0
    assert_same(before, state(loaded.model))


@pytest.mark.parametrize("recipe", ["sa_proj", "mlp_gate_up", "language_model"])
def test_counts_are_the_selections(base, tmp_path, recipe):
    workload = Workload(rows=text_rows(), num_samples=100)
    found = make_plan(
        base, settings(tmp_path, recipe=recipe), workload, arithmetic=BF16, measure_time=False
    )
    selection = resolve(base.model, recipe)
    parameters = dict(base.model.named_parameters())
    assert found.num_trainable == sum(parameters[n].numel() for n in selection.names)
    assert found.num_parameters == sum(p.numel() for p in parameters.values())
    assert found.num_tensors == len(selection.names)
    assert sum(part.num_trainable for part in found.components) == found.num_trainable
    assert sum(layer.num_trainable for layer in found.layers) == found.num_trainable
    assert found.memory.masters == found.memory.gradients == 4 * found.num_trainable
    assert found.memory.optimizer == pytest.approx(8 * found.num_trainable, rel=1e-3)
    assert (found.dtype, found.family, found.recipe) == ("bfloat16", "llama", recipe)
    assert Plan.model_validate_json(found.model_dump_json()) == found


def test_the_deltas_size(base, tmp_path):
    selection = resolve(base.model, "sa_proj")
    config = settings(tmp_path, recipe="sa_proj")
    found = make_plan(base, config, Workload(rows=text_rows()), arithmetic=BF16, measure_time=False)
    parameters = dict(base.model.named_parameters())
    before = {name: parameters[name].detach().clone() for name in selection.names}
    path = tmp_path / "delta.safetensors"
    extract(base.model, selection, before).save(path)
    # In so small a model half of the file is names and hashes.
    assert found.delta_bytes == pytest.approx(path.stat().st_size, rel=0.2)
    content = 2 * found.num_trainable
    assert content < found.delta_bytes < content + 1000 * found.num_tensors


def test_totals_of_the_run(base, tmp_path):
    rows = text_rows(count=30, length=20)
    config = settings(tmp_path, training={"num_train_epochs": 2.0})
    found = make_plan(
        base, config, Workload(rows=rows, num_samples=90), arithmetic=BF16, measure_time=False
    )
    assert found.num_steps == 2 * 12  # 90 rows in batches of 8, twice
    assert found.num_samples == 2 * 90
    assert found.tokens_per_sample == 21
    assert found.labels_per_sample == 4
    # Every batch of 8 has, or nearly has, a row of 22 tokens.
    # Padded rows come with a mask, under which no half of attention's square is skipped.
    alone = found.flops_per_token * 24 * 8 * 22
    assert alone < found.flops_total < 1.15 * alone
    assert found.flops_per_token < found.flops_per_token_full
    assert found.time is None
    assert found.cost is None


def test_without_samples_there_are_no_totals(base, tmp_path):
    costs = {"power_watts": 100, "price_per_hour": 1}
    config = settings(tmp_path, cost=costs)
    found = make_plan(base, config, Workload(rows=text_rows()), arithmetic=BF16)
    assert (found.num_steps, found.flops_total, found.cost) == (None, None, None)
    assert found.time is not None
    assert found.time.measured_step_seconds > 0
    assert found.time.training_seconds is None
    assert found.time.evaluation_seconds is None


def test_without_rows_it_says_what_it_assumed(base, tmp_path):
    found = make_plan(base, settings(tmp_path), Workload(), arithmetic=BF16, measure_time=False)
    assert (found.tokens_per_sample, found.labels_per_sample) == (128, 16)
    assert any("No rows given" in note for note in found.notes)


def test_time_and_cost(base, tmp_path):
    costs = {"power_watts": 100, "co2_kg_per_kwh": 0.5, "price_per_hour": 36}
    config = settings(tmp_path, cost=costs, keep=["k.json"])
    tasks = [
        TaskLoad("target", 50, 50, prompts=text_rows(3), max_new_tokens=3),
        TaskLoad("held_out", 40, 20, options=[text_rows(2), text_rows(2)]),
        TaskLoad("held_out", 300, 300, prompts=text_rows(3), max_new_tokens=3),
    ]
    workload = Workload(rows=text_rows(), num_samples=80, tasks=tasks)
    found = make_plan(base, config, workload, arithmetic=FP32)
    assert found.time is not None
    assert found.cost is not None
    assert found.time.compute_dtype == "float32"
    assert found.time.training_seconds == pytest.approx(10 * found.time.measured_step_seconds)
    assert found.time.evaluation_seconds is not None
    total = found.time.training_seconds + found.time.evaluation_seconds
    assert found.cost.energy_kwh == pytest.approx(100 * total / 3.6e6)
    assert found.cost.co2_kg == pytest.approx(found.cost.energy_kwh / 2)
    assert found.cost.money == pytest.approx(total / 100)
    assert found.smallest_budget == smallest_provable_budget([20, 300])


def test_measuring_evaluation_ends_after_a_while(base, tmp_path, monkeypatch):
    measured = []
    monkeypatch.setattr(plan_evaluation, "_ENOUGH_SECONDS", 0.0)
    monkeypatch.setattr(
        plan_evaluation, "_seconds_per_item", lambda _, task, __: measured.append(task) or 0.5
    )
    tasks = [TaskLoad("held_out", num, num, prompts=text_rows(1)) for num in (10, 30)]
    workload = Workload(rows=text_rows(), num_samples=8, tasks=tasks)
    found = make_plan(base, settings(tmp_path), workload, arithmetic=BF16)
    assert measured == tasks[:1]
    assert found.time is not None
    assert found.time.evaluation_seconds == 2 * 0.5 * 40


def memory(loaded, tmp_path, *, training=None, workload=None, **changes):
    config = settings(tmp_path, training=training or {}, **changes)
    given = workload or Workload(rows=text_rows(length=60))
    return make_plan(loaded, config, given, arithmetic=BF16, measure_time=False).memory


def test_activations_follow_the_batch_and_checkpointing(base, tmp_path):
    sizes = {"global_batch_size": 16, "per_device_train_batch_size": 16}
    small, large = memory(base, tmp_path), memory(base, tmp_path, training=sizes)
    assert large.activations / small.activations == pytest.approx(2, rel=0.1)
    assert large.logits == 2 * small.logits
    half = {"global_batch_size": 16, "per_device_train_batch_size": 8}
    accumulated = memory(base, tmp_path, training=half)
    assert accumulated.activations == small.activations
    checkpointed = memory(base, tmp_path, training={"gradient_checkpointing": True})
    assert checkpointed.activations < 0.8 * small.activations


def test_what_weights_are_pulled_back_to_is_counted(base, tmp_path, monkeypatch):
    asked = []

    def watched(**given):
        asked.append(given["base_on_device"])
        return estimate(**given)

    estimate = module.estimate_memory
    monkeypatch.setattr(module, "estimate_memory", watched)
    for pull in (0.0, 2.0):
        memory(base, tmp_path, training={"pull_to_base": pull})
    assert asked == [False, True]


def test_an_anchor_adds_rows_logits_and_its_distributions(base, tmp_path):
    prompts = [Encoded(list(range(5, 15)), [-100] * 10) for _ in range(20)]
    workload = Workload(rows=text_rows(length=60), anchor_prompts=prompts)
    plain = memory(base, tmp_path, workload=workload)
    anchor = {"rows_per_step": 4, "max_new_tokens": 10}
    anchored = memory(base, tmp_path, workload=workload, anchor=anchor)
    assert plain.anchor == 0
    vocabulary = base.model.get_output_embeddings().weight.shape[0]
    assert anchored.anchor == 4 * 20 * 10 * vocabulary
    assert anchored.activations / plain.activations == pytest.approx(12 / 8, rel=0.1)
    assert anchored.logits > plain.logits
    fewer = memory(base, tmp_path, workload=workload, anchor={**anchor, "top_k": 16})
    assert fewer.anchor == 20 * 10 * (8 * 16 + 4)
    assert fewer.logits == anchored.logits
    whole = memory(base, tmp_path, workload=workload, anchor={**anchor, "top_k": vocabulary})
    assert whole.anchor == anchored.anchor


@pytest.mark.parametrize(("num_taught", "share"), [(0, 2 / 12), (2, 1 / 2), (10, 1 / 2)])
def test_an_anchor_gives_earlier_skills_every_other_place(base, tmp_path, num_taught, share):
    # Told apart by their length; without earlier skills, all are drawn alike.
    general = [Encoded(list(range(5, 15)), [-100] * 10) for _ in range(12 - (num_taught or 2))]
    taught = [Encoded(list(range(5, 45)), [-100] * 40) for _ in range(num_taught or 2)]
    workload = Workload(
        rows=text_rows(length=60), anchor_prompts=[*general, *taught], num_taught=num_taught
    )
    anchor = {"rows_per_step": 3, "max_new_tokens": 10}
    batches = Batches(base, settings(tmp_path, anchor=anchor), workload, 1)
    generator, size = random.Random(0), batches.batch_size
    drawn = [row for _ in range(200) for row in batches.draw(generator, size)[size:]]
    assert len(drawn) == 600
    long = sum(len(row.input_ids) >= 50 for row in drawn)
    assert long / 600 == pytest.approx(share, abs=0.06)


def test_an_anchor_without_prompts_is_said(base, tmp_path):
    config = settings(tmp_path, anchor=True)
    found = make_plan(base, config, Workload(rows=text_rows()), arithmetic=BF16, measure_time=False)
    assert any("anchor" in note for note in found.notes)


def test_it_does_not_run_out_of_memory_to_find_out(base, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "available_bytes", lambda _: 1000)
    found = make_plan(base, settings(tmp_path), Workload(rows=text_rows()), arithmetic=BF16)
    assert found.time is None
    assert any("Not timed" in note for note in found.notes)


def test_a_busy_machine_is_said(base, tmp_path, monkeypatch):
    busy = {"load_average": [7.5, 1, 1], "cores": 2}
    monkeypatch.setattr(module, "hardware", lambda: busy)
    found = make_plan(base, settings(tmp_path), Workload(rows=text_rows()), arithmetic=BF16)
    assert any("load of 7.5 on 2 cores" in note for note in found.notes)


def test_batch_sizes_that_do_not_fit(base, tmp_path):
    sizes = {"global_batch_size": 10, "per_device_train_batch_size": 4}
    with pytest.raises(UsageError, match="does not divide"):
        make_plan(base, settings(tmp_path, training=sizes), Workload(), arithmetic=BF16)


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(100, 2.0), (200, 3.0)], 5.0),  # one second whatever the batch, one per 100 positions
        ([(50, 0.1), (100, 2.0), (200, 3.0)], 5.0),  # through the last two
        ([(200, 3.0)], 6.0),
        ([(200, 3.0), (200, 2.0)], 4.0),
        ([(100, 5.0), (200, 3.0)], 6.0),  # noise: a line would fall
        ([(100, 1.0), (200, 3.0)], 6.0),  # noise: a line would start below zero
    ],
)
def test_seconds_are_carried_on(points, expected):
    assert seconds_at(points, 400) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("seconds", "free", "sizes"),
    [(0.1, 10**12, [2, 4, 8]), (9.0, 10**12, [2, 4]), (0.1, None, [2, 4])],
)
def test_a_whole_batch_is_timed_where_it_is_quick_and_fits_twice(
    base, tmp_path, monkeypatch, seconds, free, sizes
):
    found = make_plan(
        base, settings(tmp_path), Workload(rows=text_rows()), arithmetic=BF16, measure_time=False
    ).memory
    needed = found.total - found.workspace - found.weights
    clocked = []
    monkeypatch.setattr(module, "available_bytes", lambda _: free or int(1.9 * needed))
    monkeypatch.setattr(
        module,
        "time_pass",
        lambda _model, batch, _arithmetic: clocked.append(len(batch["input_ids"])) or seconds,
    )
    make_plan(base, settings(tmp_path), Workload(rows=text_rows()), arithmetic=BF16)
    assert clocked == sizes


def _mixed_rows(short, long, seed):
    """Return 60 rows of two lengths, a fifth of them long: draws of them are often alike."""
    ids = [[5 + place % 50 for place in range(n)] for n in [short] * 48 + [long] * 12]
    random.Random(seed).shuffle(ids)
    return [Encoded(each, [-100] * (len(each) - 4) + each[-4:]) for each in ids]


def test_rows_of_two_lengths_are_planned_whatever_is_drawn(base, tmp_path):
    found = [
        memory(base, tmp_path, workload=Workload(rows=_mixed_rows(20, 40, seed))).activations
        for seed in range(12)
    ]
    assert max(found) < 1.2 * min(found)


def test_a_plan_for_long_texts_keeps_little_itself(base, tmp_path, monkeypatch):
    seen = []
    kept = module.kept_bytes

    def watched(model, batch, arithmetic):
        seen.append(tuple(batch["input_ids"].shape))
        return kept(model, batch, arithmetic)

    monkeypatch.setattr(module, "kept_bytes", watched)
    one = {"global_batch_size": 1, "per_device_train_batch_size": 1}
    long = memory(
        base, tmp_path, workload=Workload(rows=text_rows(length=900)), training=one
    ).activations
    assert seen == [(1, 512), (2, 512)]
    short = memory(
        base, tmp_path, workload=Workload(rows=text_rows(length=300)), training=one
    ).activations
    assert long / short == pytest.approx(900 / 300, rel=0.1)
