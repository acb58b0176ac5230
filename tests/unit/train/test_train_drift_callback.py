"""DriftCallback under a plain transformers.Trainer."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

import narrowtune as nt
from narrowtune.core.errors import UsageError
from narrowtune.train import drift_callback

PROMPTS = ["Tell me about the sea.", "What is bread?"]


def _train(folder, model_folder, callback, learning_rate=1e-2, tokenizer=True, again=False):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    loaded = AutoTokenizer.from_pretrained(model_folder)
    nt.select(model, "sa_proj")
    ids = loaded("say the word dog")["input_ids"]
    row = {"input_ids": ids, "labels": ids}
    trainer = Trainer(
        model,
        args=TrainingArguments(
            output_dir=str(folder),
            max_steps=6,
            learning_rate=learning_rate,
            report_to="none",
            use_cpu=True,
            save_strategy="no",
            disable_tqdm=True,
            per_device_train_batch_size=2,
        ),
        train_dataset=[row] * 12,
        data_collator=lambda rows: {k: torch.tensor([r[k] for r in rows]) for k in rows[0]},
        processing_class=loaded if tokenizer else None,
        callbacks=[callback],
    )
    trainer.train()
    if again:
        trainer.train()
    return trainer


def test_drift_is_measured_and_grows(tiny, tmp_path):
    callback = nt.DriftCallback(PROMPTS, every=2, max_new_tokens=4)
    _train(tmp_path, tiny("llama"), callback)
    assert [step for step, _ in callback.history] == [2, 4, 6]
    values = [kl for _, kl in callback.history]
    assert values[0] > 0
    assert values[-1] > values[0]
    assert callback.stopped is None


def test_a_measurement_logs_the_bias_and_the_form(tiny, tmp_path):
    callback = nt.DriftCallback(PROMPTS, every=3, max_new_tokens=4)
    trainer = _train(tmp_path, tiny("llama"), callback)
    logged = [entry for entry in trainer.state.log_history if "drift" in entry]
    assert [step for step, _ in callback.readings] == [3, 6]
    for entry, (_, reading) in zip(logged, callback.readings, strict=True):
        assert 0 < entry["number_bias"] == reading.number_bias < 1
        assert 0 < entry["base_number_bias"] == reading.base_number_bias < 1
        assert entry["format_valid"] == reading.format_valid in (0.0, 0.5, 1.0)
    (_, first), (_, last) = callback.readings
    assert first.base_number_bias == last.base_number_bias
    assert first.number_bias != last.number_bias


def test_a_log_of_an_earlier_version_is_taken_up():
    callback = nt.DriftCallback(PROMPTS)
    log = [{"step": 2, "drift": 0.1, "drift_seconds": 0.5}]
    callback.take_up(SimpleNamespace(log_history=log))
    assert callback.history == [(2, 0.1)]
    [(_, reading)] = callback.readings
    assert (reading.number_bias, reading.base_number_bias, reading.format_valid) == (None,) * 3
    assert callback.seconds == 0.5


def test_a_second_training_is_still_measured_from_the_first_base(tiny, tmp_path):
    callback = nt.DriftCallback(PROMPTS, every=6, max_new_tokens=4)
    _train(tmp_path, tiny("llama"), callback, again=True)
    (_, first), (_, second) = callback.history
    assert second > first
    alone = nt.DriftCallback(PROMPTS, every=6, max_new_tokens=4)
    _train(tmp_path, tiny("llama"), alone)
    assert alone.history == [(6, first)]


def test_without_training_there_is_no_drift(tiny, tmp_path):
    callback = nt.DriftCallback(PROMPTS, every=3, max_new_tokens=4)
    _train(tmp_path, tiny("llama"), callback, learning_rate=0.0)
    assert [kl for _, kl in callback.history] == [0.0, 0.0]


def test_the_budget_stops_training(tiny, tmp_path):
    callback = nt.DriftCallback(PROMPTS, every=1, budget=1e-9, max_new_tokens=4)
    trainer = _train(tmp_path, tiny("llama"), callback)
    assert callback.stopped is not None
    assert trainer.state.global_step == callback.stopped < 6


def test_a_run_that_drift_stopped_is_not_to_go_on():
    log = [{"step": 2, "drift": 0.1}, {"step": 4, "loss": 1.0}, {"step": 4, "drift": 0.3}]
    callback = nt.DriftCallback(PROMPTS, budget=0.2)
    assert not callback.has_stopped(log, 2)
    assert not callback.has_stopped(log, 3)
    assert callback.stopped is None
    assert callback.has_stopped(log, 4)
    assert callback.stopped == 4
    for other in ({"budget": 0.2, "action": "lower_rate"}, {"budget": 0.5}, {}):
        assert not nt.DriftCallback(PROMPTS, **other).has_stopped(log, 4)


def test_a_trainer_without_a_tokenizer_is_told_what_is_missing(tiny, tmp_path):
    with pytest.raises(UsageError, match="processing_class"):
        _train(tmp_path, tiny("llama"), nt.DriftCallback(PROMPTS), tokenizer=False)


def test_no_prompts_is_an_error():
    with pytest.raises(UsageError, match="0 prompts"):
        nt.DriftCallback([])


def test_over_the_budget_the_rate_is_halved_at_every_measurement(tiny, tmp_path):
    options = {"every": 2, "max_new_tokens": 4, "budget": 1e-9, "action": "lower_rate"}
    callback = nt.DriftCallback(PROMPTS, **options)
    trainer = _train(tmp_path, tiny("llama"), callback)
    assert callback.acted == [2, 4, 6]
    assert trainer.state.global_step == 6
    assert trainer.lr_scheduler.base_lrs[0] == pytest.approx(1e-2 / 8)
    free = nt.DriftCallback(PROMPTS, every=2, max_new_tokens=4)
    _train(tmp_path, tiny("llama"), free)
    assert free.history[0] == callback.history[0]
    assert callback.history[-1][1] < free.history[-1][1]


def test_over_the_budget_the_anchor_pulls_harder(tiny, tmp_path):
    anchor = SimpleNamespace(weight=4.0)
    options = {"every": 3, "max_new_tokens": 4, "budget": 1e-9, "action": "raise_anchor"}
    callback = nt.DriftCallback(PROMPTS, anchor=anchor, **options)
    trainer = _train(tmp_path, tiny("llama"), callback)
    assert anchor.weight == 16.0
    logged = [entry for entry in trainer.state.log_history if "drift" in entry]
    assert [entry["anchor_weight"] for entry in logged] == [8.0, 16.0]
    assert 0 < sum(entry["drift_seconds"] for entry in logged) < callback.seconds
    # A resumed run's state has what was logged; the anchor is built anew.
    again = nt.DriftCallback(PROMPTS, anchor=SimpleNamespace(weight=4.0), **options)
    again.take_up(trainer.state)
    assert again.anchor.weight == 16.0
    assert again.readings == callback.readings


def test_within_the_budget_nothing_is_done(tiny, tmp_path):
    anchor = SimpleNamespace(weight=4.0)
    options = {"every": 3, "max_new_tokens": 4, "budget": 1e9, "action": "raise_anchor"}
    _train(tmp_path, tiny("llama"), nt.DriftCallback(PROMPTS, anchor=anchor, **options))
    assert anchor.weight == 4.0


def test_an_anchor_that_is_not_there_can_not_be_raised():
    with pytest.raises(UsageError, match="no anchor"):
        nt.DriftCallback(PROMPTS, action="raise_anchor")


def test_all_devices_go_by_the_first_ones_measurement(tiny, tmp_path, monkeypatch):
    def first(values):
        assert len(values) == 1
        return [7.0]

    monkeypatch.setattr(drift_callback, "broadcast_object_list", first)
    callback = nt.DriftCallback(PROMPTS, every=2, budget=5.0, max_new_tokens=4)
    _train(tmp_path, tiny("llama"), callback)
    assert callback.history == [(2, 7.0)]
    assert callback.stopped == 2
