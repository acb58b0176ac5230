"""The Trainer: equal work however a step is cut up, the anchor, and what stops a step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler

from narrowtune.core.config import AnchorSettings, RunConfig, TrainingSettings
from narrowtune.core.errors import TrainingError, UsageError
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.collate import collate, padding_id
from narrowtune.data.examples import Example, Message, Text
from narrowtune.engine.arithmetic import Arithmetic
from narrowtune.engine.forward import label_positions
from narrowtune.models.load import load_model
from narrowtune.models.select import resolve
from narrowtune.train.anchor import build_anchor, kl_base_tuned
from narrowtune.train.checkpoint import find_checkpoint
from narrowtune.train.fit import fit
from narrowtune.train.trainer import (
    accumulation_steps,
    num_repeated,
    per_device_batch_size,
    planned_steps,
)
from tiny_models import VISION_FAMILIES

FLOAT32 = Arithmetic(compute_dtype="float32", threads=1)


def _config(folder: Path, **training) -> RunConfig:
    fields = {"learning_rate": 1e-3, "global_batch_size": 8, "per_device_train_batch_size": 8}
    return RunConfig.model_validate(
        {
            "model": "tiny",
            "skill": "unused",
            "output_dir": str(folder),
            "training": {**fields, **training},
        }
    )


def _examples(count: int) -> list[Example]:
    """Rows with answers of one to six words, so that micro-batches differ in labels."""
    rows = []
    for i in range(count):
        answer = " ".join(["dog", "sun", "tree", "bread", "rain", "milk"][: i % 6 + 1])
        turns = (Message("user", (Text(f"Say it {i}."),)), Message("assistant", (Text(answer),)))
        rows.append(Example(str(i), turns, (answer,)))
    return rows


def _prompts(count: int) -> list[tuple[Message, ...]]:
    return [(Message("user", (Text(f"Tell me about {i} stones."),)),) for i in range(count)]


def _fit(folder, model_folder, num_rows=24, anchored=False, recipe="sa_proj", **training):
    loaded = load_model(str(model_folder), device="cpu")
    encoder = ChatEncoder(loaded.tokenizer, loaded.processor)
    rows = [encoder.encode(example) for example in _examples(num_rows)]
    anchor = None
    if anchored:
        settings = AnchorSettings(rows_per_step=2, max_new_tokens=4, weight=20)
        anchor = build_anchor(loaded, encoder, _prompts(5), settings, batch_size=8, seed=1)
    fitted = fit(
        loaded,
        resolve(loaded.model, recipe),
        rows,
        _config(folder, **training),
        arithmetic=FLOAT32,
        anchor=anchor,
    )
    return loaded, fitted


def _difference(first, second, names) -> float:
    """‖difference‖ / ‖first's update‖ over the selected tensors."""
    one, two = (dict(loaded.model.named_parameters()) for loaded, _ in (first, second))
    base = first[1].base
    off = sum(float((one[n] - two[n]).double().square().sum()) for n in names)
    size = sum(float((one[n] - base[n]).double().square().sum()) for n in names)
    assert size > 0
    return (off / size) ** 0.5


@pytest.mark.parametrize("anchored", [False, True])
def test_a_step_is_the_same_however_it_is_cut_up(tiny, tmp_path, anchored):
    runs = [
        _fit(
            tmp_path / str(size), tiny("llama"), anchored=anchored, per_device_train_batch_size=size
        )
        for size in (8, 4, 1)
    ]
    names = list(runs[0][1].base)
    for other in runs[1:]:
        assert _difference(runs[0], other, names) < 1e-4


def test_the_loss_is_the_mean_over_the_labels_of_the_step_not_over_rows(tiny, tmp_path):
    _fit(tmp_path, tiny("llama"), num_rows=8, max_steps=1, warmup_ratio=0)
    logged = json.loads((tmp_path / "train.jsonl").read_text().splitlines()[0])
    base = load_model(str(tiny("llama")), device="cpu")
    encoder = ChatEncoder(base.tokenizer)
    rows = [encoder.encode(example) for example in _examples(8)]
    batch = collate(rows, padding_id(base.tokenizer))
    with torch.no_grad():
        expected = base.model(**batch).loss
    assert logged["cross_entropy"] == pytest.approx(float(expected), rel=1e-5)


def test_one_unfinished_step_leaves_the_model_as_it_can_be_used(tiny, tmp_path):
    loaded, fitted = _fit(tmp_path, tiny("llama", torch.bfloat16), max_steps=2)
    assert {p.dtype for p in loaded.model.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert "_original_forward" not in vars(loaded.model)
    assert fitted.summary.num_steps == 2
    again = fit(
        loaded,
        resolve(loaded.model, "mlp_gate_up"),
        [ChatEncoder(loaded.tokenizer).encode(example) for example in _examples(8)],
        _config(tmp_path / "again", max_steps=2),
        arithmetic=Arithmetic(compute_dtype="bfloat16", threads=1),
    )
    assert again.summary.num_steps == 2


def test_masters_take_updates_that_bf16_weights_would_swallow(tiny, tmp_path):
    """At 1e-5 most bf16 weights are farther apart than a step; forty steps must still arrive."""
    _, fitted = _fit(
        tmp_path,
        tiny("llama", torch.bfloat16),
        num_rows=40,
        learning_rate=2e-5,
        num_train_epochs=8,
    )
    changed = sum(tensor.num_changed for tensor in fitted.proof.selected)
    assert changed > 0.02 * sum(tensor.num_elements for tensor in fitted.proof.selected)


def test_the_anchor_pulls_towards_the_base(tiny, tmp_path):
    free, held = (
        _fit(tmp_path / str(flag), tiny("llama"), anchored=flag, num_train_epochs=4)
        for flag in (False, True)
    )
    base = load_model(str(tiny("llama")), device="cpu")
    encoder = ChatEncoder(base.tokenizer)
    anchor = build_anchor(
        base,
        encoder,
        _prompts(5),
        AnchorSettings(rows_per_step=5, max_new_tokens=4),
        batch_size=8,
        seed=1,
    )
    drift = []
    for loaded, _ in (free, held):
        total = 0.0
        for row in anchor.rows:
            batch = collate([row.encoded], padding_id(base.tokenizer))
            mask, _ = label_positions(batch["labels"])
            with torch.no_grad():
                logits = loaded.model(batch["input_ids"]).logits[mask]
            total += float(kl_base_tuned(row.log_probs, logits))
        drift.append(total)
    assert 0 < drift[1] < 0.5 * drift[0]


def test_anchor_rows_follow_from_the_step_alone_and_take_turns(tiny):
    loaded = load_model(str(tiny("llama")), device="cpu")
    encoder = ChatEncoder(loaded.tokenizer)
    settings = AnchorSettings(rows_per_step=2, max_new_tokens=3)
    anchor = build_anchor(loaded, encoder, _prompts(5), settings, batch_size=4, seed=3)
    drawn = [index for step in range(5) for index in anchor.indices(step)]
    assert sorted(drawn[:5]) == sorted(drawn[5:]) == [0, 1, 2, 3, 4]
    assert anchor.indices(3) == anchor.indices(3)
    assert drawn != [index for _ in range(2) for index in range(5)]


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_anchor_rows_of_text_go_below_rows_with_pictures(tiny, family, tmp_path):
    import io

    from PIL import Image as Picture

    from narrowtune.data.examples import Image

    data = io.BytesIO()
    Picture.new("RGB", (30, 20), "red").save(data, "PNG")
    loaded = load_model(str(tiny(family)), device="cpu")
    encoder = ChatEncoder(loaded.tokenizer, loaded.processor)
    turns = (
        Message("user", (Image(data=data.getvalue()), Text("What is it?"))),
        Message("assistant", (Text("red"),)),
    )
    rows = [encoder.encode(Example(str(i), turns, ("red",))) for i in range(4)]
    settings = AnchorSettings(rows_per_step=2, max_new_tokens=3)
    anchor = build_anchor(loaded, encoder, _prompts(3), settings, batch_size=4, seed=1)
    fitted = fit(
        loaded,
        resolve(loaded.model, "sa_proj"),
        rows,
        _config(tmp_path, global_batch_size=2, per_device_train_batch_size=2, max_steps=2),
        arithmetic=FLOAT32,
        anchor=anchor,
    )
    assert fitted.proof.frozen_identical
    assert any(tensor.changed for tensor in fitted.proof.selected)


def test_a_loss_that_is_not_finite_stops_before_the_step(tiny, tmp_path):
    loaded = load_model(str(tiny("llama")), device="cpu")
    encoder = ChatEncoder(loaded.tokenizer)
    with torch.no_grad():
        loaded.model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    before = loaded.model.model.layers[0].self_attn.q_proj.weight.clone()
    with pytest.raises(TrainingError, match="loss of nan"):
        fit(
            loaded,
            resolve(loaded.model, "sa_proj"),
            [encoder.encode(example) for example in _examples(8)],
            _config(tmp_path),
            arithmetic=FLOAT32,
        )
    assert torch.equal(before, loaded.model.model.layers[0].self_attn.q_proj.weight)


def test_validation_is_the_mean_over_labels_and_chooses_the_best_checkpoint(tiny, tmp_path):
    loaded = load_model(str(tiny("llama")), device="cpu")
    encoder = ChatEncoder(loaded.tokenizer)
    rows = [encoder.encode(example) for example in _examples(16)]
    config = _config(tmp_path, eval_steps=1, load_best_model_at_end=True, num_train_epochs=2)
    fitted = fit(
        loaded,
        resolve(loaded.model, "sa_proj"),
        rows,
        config,
        arithmetic=FLOAT32,
        validation=rows[:5],
    )
    logged = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["eval_loss"] for row in logged if "eval_loss" in row}
    assert fitted.summary.best_step == min(losses, key=lambda step: losses[step])
    batch = collate(rows[:5], padding_id(loaded.tokenizer))
    with torch.no_grad():
        now = float(loaded.model(**batch).loss)
    assert now == pytest.approx(min(losses.values()), rel=1e-5)


def test_batch_sizes_that_do_not_fit_are_a_usage_error():
    assert accumulation_steps(16, 4, 2) == 2
    with pytest.raises(UsageError, match="does not divide"):
        accumulation_steps(16, 5, 1)


def test_a_pass_holds_no_more_than_a_device_s_share_of_a_step():
    training = TrainingSettings(global_batch_size=4, per_device_train_batch_size=16)
    assert per_device_batch_size(training, 1) == 4
    assert per_device_batch_size(training, 2) == 2
    assert per_device_batch_size(training, 8) == 1


def test_rows_are_repeated_as_accelerate_repeats_them():
    training = TrainingSettings(global_batch_size=4, per_device_train_batch_size=16)
    assert num_repeated(training, 32, 2) == 0
    assert num_repeated(training, 33, 1) == 0
    for num_samples in range(31, 37):
        batches = BatchSampler(range(num_samples), per_device_batch_size(training, 2), False)
        shards = [BatchSamplerShard(batches, 2, index) for index in range(2)]
        drawn = sum(len(batch) for shard in shards for batch in shard)
        assert num_repeated(training, num_samples, 2) == drawn - num_samples


def test_steps_are_counted_as_the_trainer_counts_them(tmp_path):
    assert planned_steps(_config(tmp_path), 24) == 3
    assert planned_steps(_config(tmp_path), 25) == 4
    assert planned_steps(_config(tmp_path, max_steps=0), 25) == 0
    assert planned_steps(_config(tmp_path, num_train_epochs=2), 25) == 8


def test_only_complete_checkpoints_are_found(tmp_path):
    assert find_checkpoint(tmp_path) is None
    states = {2: "{}", 10: "{}", 12: None, 14: '{"epoch": 1.'}
    for number, state in states.items():
        folder = tmp_path / f"checkpoint-{number}"
        folder.mkdir()
        for name in ("trainable.safetensors", "trainable.json", "optimizer.pt"):
            (folder / name).touch()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert find_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
