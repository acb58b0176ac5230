"""The Trainer: equal work however a step is cut up, the anchor, and what stops a step."""

from __future__ import annotations

import io
import json
from contextlib import closing
from pathlib import Path

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from PIL import Image as Picture
from rich.console import Console
from torch.utils.data import BatchSampler
from transformers import TrainerCallback, TrainingArguments

from narrowtune.core.anchor_settings import AnchorSettings
from narrowtune.core.config import RunConfig, TrainingSettings
from narrowtune.core.errors import ProofError, TrainingError, UsageError
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.collate import Encoded, collate, padding_id
from narrowtune.data.examples import Example, Image, Message, Text
from narrowtune.engine.arithmetic import Arithmetic
from narrowtune.engine.forward import label_positions, logits_at
from narrowtune.models.load import load_model
from narrowtune.models.select import resolve
from narrowtune.train.anchor import Anchor, build_anchor
from narrowtune.train.arguments import (
    accumulation_steps,
    num_repeated,
    per_device_batch_size,
    planned_samples,
    planned_steps,
    training_arguments,
    validation_batches,
    warmup_steps,
)
from narrowtune.train.callbacks import ProgressBar
from narrowtune.train.checkpoint import find_checkpoint, load_trainable
from narrowtune.train.distributions import Distributions, kl_base_tuned
from narrowtune.train.drift_callback import DriftCallback
from narrowtune.train.fit import fit
from narrowtune.train.pull import shares_of_steps
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


def _fit(
    folder,
    model_folder,
    num_rows=24,
    anchored=False,
    top_k=None,
    recipe="sa_proj",
    callbacks=(),
    resume=False,
    arithmetic=FLOAT32,
    **training,
):
    loaded = load_model(str(model_folder), device="cpu")
    encoder = ChatEncoder(loaded.tokenizer, loaded.processor)
    rows = [encoder.encode(example) for example in _examples(num_rows)]
    anchor = None
    if anchored:
        settings = AnchorSettings(rows_per_step=2, max_new_tokens=4, weight=20, top_k=top_k)
        anchor = build_anchor(loaded, encoder, _prompts(5), settings, batch_size=8, seed=1)
    fitted = fit(
        loaded,
        resolve(loaded.model, recipe),
        rows,
        _config(folder, **training),
        arithmetic=arithmetic,
        anchor=anchor,
        callbacks=callbacks,
        resume=resume,
    )
    return loaded, fitted


def _anchor_of(folder, numbers, rows_per_step):
    """Return an anchor of so many prompts each, answered by one model."""
    loaded = load_model(str(folder), device="cpu")
    encoder = ChatEncoder(loaded.tokenizer, loaded.processor)
    settings = AnchorSettings(rows_per_step=rows_per_step, max_new_tokens=2)
    prompts = _prompts(sum(numbers))
    parts = prompts[: numbers[0]], prompts[numbers[0] :]
    return [build_anchor(loaded, encoder, p, settings, batch_size=8, seed=1) for p in parts]


def test_answers_of_an_anchor_say_where_they_were_cut(tiny):
    """Without the token that stopped them, also where that is an ordinary word."""
    tokenizer = load_model(str(tiny("llama")), device="cpu").tokenizer
    seven, cat, full = (tokenizer.encode(t, add_special_tokens=False) for t in ("7", "a cat", "."))
    steps = [[*seven, *full], cat, [*cat, tokenizer.eos_token_id], full]
    rows = [Encoded([1, *ids], [-100, *ids]) for ids in steps]
    held = {"rows_per_step": 1, "weight": 0.0, "pad_token_id": 0, "seed": 0, "seconds": 0.0}
    stop = {tokenizer.eos_token_id, full[-1]}
    assert Anchor(rows, [], **held).answers(tokenizer, stop) == ["7", "a cat…", "a cat", ""]


@pytest.mark.parametrize("rows_per_step", [1, 2, 3])
def test_rows_of_earlier_skills_get_every_other_place_of_an_anchor(tiny, rows_per_step):
    general, taught = _anchor_of(tiny("llama"), (6, 4), rows_per_step)
    both = general.beside(taught)
    assert len(both.encoded) == len(both.distributions) == 10
    assert both.seconds == general.seconds + taught.seconds
    assert all(a is b for a, b in zip(both.encoded, general.encoded, strict=False))
    assert both.distributions[7] is taught.distributions[1]
    places = [place for step in range(24) for place in both.indices(step)]
    assert all((place >= 6) == (number % 2) for number, place in enumerate(places))
    # Each part goes through all of its rows before any comes again.
    for size, first, own in ((6, 0, places[::2]), (4, 6, places[1::2])):
        passes = [own[at : at + size] for at in range(0, len(own) - size + 1, size)]
        assert all(sorted(each) == list(range(first, first + size)) for each in passes)
    assert general.indices(0)[: (rows_per_step + 1) // 2] == both.indices(0)[::2]


def test_a_step_has_as_many_rows_as_are_asked_for_where_both_parts_have_them(tiny):
    general, taught = _anchor_of(tiny("llama"), (2, 4), 4)
    assert general.rows_per_step == 2
    assert len(general.beside(taught).indices(0)) == 4


def _difference(first, second, names) -> float:
    """‖difference‖ / ‖first's update‖ over the selected tensors."""
    one, two = (dict(loaded.model.named_parameters()) for loaded, _ in (first, second))
    base = first[1].base
    off = sum(float((one[n] - two[n]).double().square().sum()) for n in names)
    size = sum(float((one[n] - base[n]).double().square().sum()) for n in names)
    assert size > 0
    return (off / size) ** 0.5


@pytest.mark.parametrize(("anchored", "top_k"), [(False, None), (True, None), (True, 8)])
def test_a_step_is_the_same_however_it_is_cut_up(tiny, tmp_path, anchored, top_k):
    runs = [
        _fit(
            tmp_path / str(size),
            tiny("llama"),
            anchored=anchored,
            top_k=top_k,
            per_device_train_batch_size=size,
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


@pytest.mark.parametrize("top_k", [None, 8])
def test_the_anchor_pulls_towards_the_base(tiny, tmp_path, top_k):
    free, held = (
        _fit(tmp_path / str(flag), tiny("llama"), anchored=flag, top_k=top_k, num_train_epochs=4)
        for flag in (False, True)
    )
    assert held[1].summary.anchor_top_k == top_k
    log = (tmp_path / "True" / "train.jsonl").read_text().splitlines()
    last = [row for row in map(json.loads, log) if "loss" in row][-1]
    # What the record and the report call the loss is of the answers alone.
    assert held[1].summary.final_loss == last["cross_entropy"] < last["loss"]
    base = load_model(str(tiny("llama")), device="cpu")
    encoder = ChatEncoder(base.tokenizer)
    anchor = build_anchor(
        base,
        encoder,
        _prompts(5),
        AnchorSettings(rows_per_step=5, max_new_tokens=4, top_k=top_k),
        batch_size=8,
        seed=1,
    )
    drift = []
    for loaded, _ in (free, held):
        total = 0.0
        for row, kept in zip(anchor.encoded, anchor.distributions, strict=True):
            batch = collate([row], padding_id(base.tokenizer))
            mask, _ = label_positions(batch["labels"])
            with torch.no_grad():
                logits = loaded.model(batch["input_ids"]).logits[mask]
            total += float(kl_base_tuned(kept, logits))
        drift.append(total)
    assert 0 < drift[1] < 0.5 * drift[0]


def _same(one: Distributions, other: Distributions) -> bool:
    words = (one.tokens, other.tokens)
    alike = words == (None, None) or torch.equal(*words)
    return alike and torch.equal(one.log_probs, other.log_probs)


@pytest.mark.parametrize("top_k", [None, 7])
def test_distributions_beside_memory_are_those_in_memory(tiny, monkeypatch, tmp_path, top_k):
    base = load_model(str(tiny("llama")), device="cpu")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def build(held: int) -> Anchor:
        monkeypatch.setattr("narrowtune.train.anchor.HELD_BYTES", held)
        return build_anchor(
            base,
            ChatEncoder(base.tokenizer),
            _prompts(6),
            AnchorSettings(rows_per_step=3, max_new_tokens=4, top_k=top_k),
            batch_size=2,
            seed=1,
        )

    monkeypatch.setattr("narrowtune.data.spilled.PIECE_BYTES", 1000)
    inside, outside = build(2**30), build(0)
    assert isinstance(inside.distributions, list)
    assert [file.stat().st_size > 0 for file in tmp_path.glob("narrowtune-rows-*")] == [True]
    rows = inside.distributions, outside.distributions, inside.encoded
    for kept, read, row in zip(*rows, strict=True):
        assert _same(kept, read)
        assert len(kept) == sum(label != -100 for label in row.labels)
    batch = collate([inside.encoded[0]], padding_id(base.tokenizer))
    merged = [anchor.merge(batch, [2, 0, 5]) for anchor in (inside, outside)]
    assert _same(*(each["anchor_distributions"] for each in merged))
    monkeypatch.setattr("narrowtune.train.anchor.MAX_BYTES", 1000)
    with pytest.raises(TrainingError, match="use fewer prompts"):
        build(0)


def test_anchor_rows_follow_from_the_step_alone_and_take_turns(tiny):
    loaded = load_model(str(tiny("llama")), device="cpu")
    encoder = ChatEncoder(loaded.tokenizer)
    settings = AnchorSettings(rows_per_step=2, max_new_tokens=3)
    anchor = build_anchor(loaded, encoder, _prompts(5), settings, batch_size=4, seed=3)
    drawn = [index for step in range(5) for index in anchor.indices(step)]
    assert sorted(drawn[:5]) == sorted(drawn[5:]) == [0, 1, 2, 3, 4]
    assert anchor.indices(3) == anchor.indices(3)
    assert drawn != [index for _ in range(2) for index in range(5)]


def _picture(colour, side=(30, 20)):
    data = io.BytesIO()
    Picture.new("RGB", side, colour).save(data, "PNG")
    return Image(data=data.getvalue())


def _ask(colour):
    """A question of text, or about a picture of one colour."""
    picture = (_picture(colour),) if colour else ()
    return Message("user", (*picture, Text("What is it?")))


@pytest.mark.parametrize(
    ("colours", "anchored"),
    [(("red", "blue"), ("", "")), (("", ""), ("red", "")), (("red", ""), ("blue", "white"))],
)
@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_the_anchor_and_the_rows_may_each_have_pictures(tiny, family, colours, anchored, tmp_path):
    loaded = load_model(str(tiny(family)), device="cpu")
    encoder = ChatEncoder(loaded.tokenizer, loaded.processor)
    answer = Message("assistant", (Text("red"),))
    rows = [
        encoder.encode(Example(str(i), (_ask(colour), answer), ("red",)))
        for i, colour in enumerate(colours)
    ]
    settings = AnchorSettings(rows_per_step=2, max_new_tokens=3)
    prompts = [(_ask(colour),) for colour in anchored]
    anchor = build_anchor(loaded, encoder, prompts, settings, batch_size=1, seed=1)
    merged = anchor.merge(collate(rows, padding_id(loaded.tokenizer)), [0, 1])
    mask, held = merged.pop("anchor_mask"), merged.pop("anchor_distributions")
    with torch.no_grad():
        # The base is no distance from itself, if every picture is at its own prompt.
        found = logits_at(loaded.model, merged, mask).float().log_softmax(dim=-1)
    assert torch.allclose(found, held.log_probs, atol=1e-4)
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


@pytest.mark.parametrize("num_processes", [1, 2, 3])
@pytest.mark.parametrize("num_rows", [1, 5, 8, 13])
def test_every_validation_row_is_one_processes_once(num_rows, num_processes):
    shares = [validation_batches(num_rows, 2, num_processes, p) for p in range(num_processes)]
    assert len({len(share) for share in shares}) == 1
    rows = [row for share in shares for batch in share for row in batch]
    assert sorted(rows) == list(range(num_rows))
    assert max(len(batch) for share in shares for batch in share) <= 2


def test_a_short_run_has_no_warm_up_and_a_long_one_its_share(tmp_path, tiny):
    assert [warmup_steps(0.03, steps) for steps in (0, 1, 33, 34, 100)] == [0, 0, 0, 2, 3]
    assert [warmup_steps(1.0, steps) for steps in (1, 2)] == [0, 2]
    _, fitted = _fit(tmp_path, tiny("llama"), num_rows=8, max_steps=1)
    assert any(tensor.changed for tensor in fitted.proof.selected)


def test_a_resumed_run_counts_all_its_parts(tiny, tmp_path):
    """Stopped by an error in its third step, after a checkpoint of the second."""
    whole = _fit(tmp_path / "whole", tiny("llama"))[1].summary
    settings = {"save_steps": 2}

    class Stop(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _fit(tmp_path / "parts", tiny("llama"), callbacks=[Stop()], **settings)
    manifest = tmp_path / "parts" / "checkpoint-2" / "trainable.json"
    written = json.loads(manifest.read_text())
    assert written["progress"]["effort"]["seconds"] > 0
    peak = 2**50
    written["progress"]["effort"].update(seconds=1000.0, peak_memory_bytes=peak)
    # As if some gradients had been zero throughout: received is then more than is not zero.
    written["progress"]["nonzero"] = written["progress"]["received"][:1]
    manifest.write_text(json.dumps(written))
    loaded, fitted = _fit(tmp_path / "parts", tiny("llama"), resume=True, **settings)
    parts = fitted.summary
    assert parts.resumed_from == "checkpoint-2"
    for count in ("num_steps", "num_samples", "num_tokens", "num_labels"):
        assert getattr(parts, count) == getattr(whole, count)
    assert 1000 < parts.seconds < 1100
    assert fitted.earlier_seconds == 1000
    assert parts.samples_per_second == pytest.approx(parts.num_samples / parts.seconds)
    assert parts.peak_memory_bytes in (peak, None)  # None where the system doesn't say
    done = load_trainable(loaded.model, tuple(fitted.base), manifest.parent)
    assert done.received == tuple(sorted(fitted.base))
    assert done.nonzero == done.received[:1]


def test_what_is_known_of_gradients_is_restored_and_no_more(tiny, tmp_path):
    """Resumed after its last step, a run whose gradients were all zero is not proved."""
    _fit(tmp_path, tiny("llama"), num_rows=8, save_steps=1)
    manifest = tmp_path / "checkpoint-1" / "trainable.json"
    written = json.loads(manifest.read_text())
    written["progress"]["nonzero"] = []
    manifest.write_text(json.dumps(written))
    with pytest.raises(ProofError, match="zero throughout"):
        _fit(tmp_path, tiny("llama"), num_rows=8, save_steps=1, resume=True)


def test_a_checkpoint_of_another_version_is_refused(tiny, tmp_path):
    _fit(tmp_path, tiny("llama"), num_rows=8, save_steps=1)
    manifest = tmp_path / "checkpoint-1" / "trainable.json"
    written = json.loads(manifest.read_text())
    del written["progress"]["num_labels"]
    manifest.write_text(json.dumps(written))
    with pytest.raises(TrainingError, match="another version"):
        _fit(tmp_path, tiny("llama"), num_rows=8, save_steps=1, resume=True)


def test_an_error_in_a_step_gives_the_terminal_back(tiny, tmp_path):
    class Fails(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            raise RuntimeError("no space left")

    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True)
    with pytest.raises(RuntimeError), closing(ProgressBar(console, 8)) as bar:
        _fit(tmp_path, tiny("llama"), num_rows=8, callbacks=[bar, Fails()])
    hide, show = "\x1b[?25l", "\x1b[?25h"
    assert shown.getvalue().rfind(show) > shown.getvalue().rfind(hide) >= 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_drift_that_is_measured_while_training_is_in_the_log_file(tiny, tmp_path, dtype):
    callback = DriftCallback(["Tell me about the sea."], every=1, max_new_tokens=3)
    kind = str(dtype).removeprefix("torch.")
    _fit(
        tmp_path,
        tiny("llama", dtype),
        callbacks=[callback],
        arithmetic=Arithmetic(compute_dtype=kind, threads=1),
        logging_steps=2,
    )
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert [(row["step"], row["drift"]) for row in rows] == callback.history
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert ["loss" in row for row in rows] == [False, True, False]
    assert callback.history[-1][1] > 0


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
    assert planned_samples(_config(tmp_path), 25, 1) == 25
    # Three steps of 8 and one of 1 make an epoch.
    for steps, samples in ((0, 0), (2, 16), (4, 25), (5, 33), (8, 50)):
        assert planned_samples(_config(tmp_path, max_steps=steps), 25, 1) == samples
    # On two devices passes of two rows each are full, so an epoch shows three rows twice.
    for steps, samples in ((0, 0), (3, 24), (4, 28), (5, 36), (8, 56)):
        config = _config(tmp_path, max_steps=steps, per_device_train_batch_size=2)
        assert planned_samples(config, 25, 2) == samples


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


def _fit_eyes(folder, model_folder, recipe, *, pictured=True):
    """Train on four rows, one of which has a picture, one in each micro-batch of one step."""
    loaded = load_model(str(model_folder), device="cpu")
    encoder = ChatEncoder(loaded.tokenizer, loaded.processor)
    file = io.BytesIO()
    Picture.new("RGB", (48, 32), "red").save(file, "PNG")
    rows = [encoder.encode(example) for example in _examples(3 if pictured else 4)]
    turns = (
        Message("user", (Image(data=file.getvalue()), Text("what?"))),
        Message("assistant", (Text("red"),)),
    )
    if pictured:
        rows.insert(1, encoder.encode(Example("pictured", turns, ("red",))))
    config = _config(folder, global_batch_size=4, per_device_train_batch_size=1)
    return fit(loaded, resolve(loaded.model, recipe), rows, config, arithmetic=FLOAT32)


@pytest.mark.parametrize("recipe", ["projector", "vision_tower"])
def test_rows_without_pictures_teach_eyes_nothing_and_stop_nothing(tiny, tmp_path, recipe):
    fitted = _fit_eyes(tmp_path, tiny("llava_onevision"), recipe)
    assert fitted.summary.num_steps == 1
    assert fitted.proof.frozen_identical
    assert all(tensor.changed for tensor in fitted.proof.selected)


@pytest.mark.parametrize("recipe", ["projector", "full"])
@pytest.mark.parametrize("num_processes", [1, 2])
def test_eyes_that_no_picture_reached_are_not_proved(
    tiny, tmp_path, monkeypatch, recipe, num_processes
):
    # What one of several processes does: it gives its eyes a gradient of zeros for the others.
    monkeypatch.setattr(TrainingArguments, "world_size", property(lambda _: num_processes))
    with pytest.raises(ProofError, match=r"no gradient reached.*(projector|vision)"):
        _fit_eyes(tmp_path / "text", tiny("llava_onevision"), recipe, pictured=False)
    fitted = _fit_eyes(tmp_path / "pictured", tiny("llava_onevision"), recipe)
    assert all(tensor.received_gradient for tensor in fitted.proof.selected)


def test_the_users_own_mixed_precision_does_not_decide_the_arithmetic(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    sizes = {"num_samples": 8, "num_processes": 1}
    args = training_arguments(_config(tmp_path), bf16=False, on_cpu=True, **sizes)
    assert args.mixed_precision == "no"


def test_fsdp_is_its_second_version_with_the_options_given(tmp_path, monkeypatch) -> None:
    sizes = {"num_samples": 8, "bf16": False, "on_cpu": True, "num_processes": 1}

    def arguments(**training: object) -> TrainingArguments:
        config = _config(tmp_path)
        changed = config.training.model_copy(update=training)
        return training_arguments(config.model_copy(update={"training": changed}), **sizes)

    assert not arguments().fsdp
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    made = arguments(fsdp=True, fsdp_config={"fsdp_activation_checkpointing": True})
    assert made.fsdp
    assert made.fsdp_plugin_args["activation_checkpointing"]
    assert made.fsdp_plugin_args["fsdp_version"] == 2
    assert made.mixed_precision == "no"
    path = tmp_path / "options.json"
    path.write_text('{"reshard_after_forward": false}', encoding="utf-8")
    assert arguments(fsdp=True, fsdp_config=str(path)).fsdp_config["reshard_after_forward"] is False
    with pytest.raises(UsageError, match=r"missing\.json"):
        arguments(fsdp=True, fsdp_config=str(tmp_path / "missing.json"))
    for name in ("version", "fsdp_version"):
        with pytest.raises(UsageError, match="FSDP of version 1"):
            arguments(fsdp=True, fsdp_config={name: 1})
    for name in ("cpu_offload", "xla", "cpu_ram_efficient_loading"):
        with pytest.raises(UsageError, match=name):
            arguments(fsdp=True, fsdp_config={name: True})


def test_only_the_process_that_is_to_save_writes_what_trains(tiny, tmp_path, monkeypatch) -> None:
    written = {}
    for saves in (True, False):
        monkeypatch.setattr(TrainingArguments, "should_save", property(lambda _, own=saves: own))
        (folder := tmp_path / str(saves)).mkdir()
        _fit(folder, tiny("llama"), num_rows=8, max_steps=1, warmup_ratio=0, save_steps=1)
        written[saves] = sorted(path.name for path in folder.rglob("trainable.*"))
    assert written == {True: ["trainable.json", "trainable.safetensors"], False: []}


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"lr_scheduler_type": "warmup_stable_decay"}, "num_decay_steps"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "min_lr"),
        ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_circles": 2}}, "num_circles"),
        ({"lr_scheduler_type": "no_such_schedule"}, "no_such_schedule"),
        ({"optim": "lomo"}, "lomo"),
        ({"optim": "no_such_optimiser"}, "no_such_optimiser"),
    ],
)
def test_schedules_and_optimisers_that_can_not_be_made_are_told_at_once(tmp_path, training, words):
    config = _config(tmp_path)
    changed = config.model_copy(update={"training": config.training.model_copy(update=training)})
    with pytest.raises(UsageError) as error:
        training_arguments(changed, num_samples=8, bf16=False, on_cpu=True, num_processes=1)
    assert words in error.value.found


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        # Read in the decay alone, and at the last step alone.
        ("warmup_stable_decay", {"num_decay_steps": 4, "min_lr_ratio": "1e-6"}, "is '1e-6' times"),
        (
            "warmup_stable_decay",
            {"num_decay_steps": 4, "min_lr_ratio": float("nan")},
            "is nan times",
        ),
        ("polynomial", {"power": -1.0}, "negative power"),
    ],
)
def test_a_schedule_is_gone_through_before_anything_runs(tmp_path, name, options, words):
    config = _config(tmp_path)
    given = {"lr_scheduler_type": name, "lr_scheduler_kwargs": options}
    given |= {"max_steps": 1000, "warmup_ratio": 0.0}
    changed = config.model_copy(update={"training": config.training.model_copy(update=given)})
    with pytest.raises(UsageError) as error:
        training_arguments(changed, num_samples=8, bf16=False, on_cpu=True, num_processes=1)
    assert words in error.value.found


def test_a_schedule_is_told_what_it_has_to_be(tmp_path):
    config = _config(tmp_path)
    given = {
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
        "max_steps": 40,
    }
    changed = config.model_copy(update={"training": config.training.model_copy(update=given)})
    args = training_arguments(changed, num_samples=8, bf16=False, on_cpu=True, num_processes=1)
    assert args.lr_scheduler_kwargs == {"min_lr_rate": 0.1}


def test_a_pull_to_the_base_holds_weights_near_it_and_goes_on_after_a_stop(tiny, tmp_path):
    """A resumed run is pulled to the base, and not to its checkpoint."""

    def train(folder, **changes):
        loaded = load_model(str(tiny("llama", torch.float32)), device="cpu")
        training = {"learning_rate": 1e-2, "max_steps": 6, "global_batch_size": 2, **changes}
        config = RunConfig.model_validate(
            {"model": "m", "skill": "s", "output_dir": str(tmp_path / folder), "training": training}
        )
        rows = [Encoded([5 + n, 6, 7, 8 + n], [-100, -100, 7, 8 + n]) for n in range(12)]
        arithmetic = Arithmetic(compute_dtype="float32", threads=1)
        selection = resolve(loaded.model, "sa_proj")
        stop = changes.get("save_steps")
        try:
            fitted = fit(
                loaded,
                selection,
                rows,
                config,
                arithmetic=arithmetic,
                callbacks=[_StopAt(stop)] if stop and folder == "parts" else [],
            )
        except KeyboardInterrupt:
            loaded = load_model(str(tiny("llama", torch.float32)), device="cpu")
            fitted = fit(loaded, selection, rows, config, arithmetic=arithmetic, resume=True)
        tuned = {n: loaded.model.get_parameter(n).detach().clone() for n in selection.names}
        return tuned, fitted.base

    plain, base = train("plain")
    pulled, _ = train("pulled", pull_to_base=1.0)
    back, _ = train("back", pull_to_base=1e6)

    def moved(weights):
        return torch.cat([(weights[n] - base[n]).flatten() for n in base]).norm()

    assert 0 < moved(pulled) < 0.9 * moved(plain)
    assert moved(back) == 0
    resumed, _ = train("parts", pull_to_base=1.0, save_steps=3)
    assert all(torch.equal(resumed[n], pulled[n]) for n in base)


def test_a_pull_is_recorded_as_far_as_it_got(tiny, tmp_path):
    """As far as the step whose weights stay, by the schedule that the Trainer had."""

    class End(TrainerCallback):
        def on_step_end(self, args, state, control, lr_scheduler=None, **_):
            self.shares = shares_of_steps(lr_scheduler, state.max_steps)
            control.should_training_stop = state.global_step == 4

    end = End()
    pull = {"pull_to_base": 2.0, "max_steps": 8, "warmup_ratio": 0.3}

    def pulled(folder, callbacks=(), **changes):
        given = {**pull, **changes}
        return _fit(tmp_path / folder, tiny("llama"), 64, callbacks=callbacks, **given)[1].summary

    whole = pulled("whole", save_steps=8)
    assert (whole.pull_to_base, whole.pulled) == (2.0, pytest.approx(2.0))
    again = pulled("whole", save_steps=8, resume=True)
    assert again.pulled == pytest.approx(2.0), "of a checkpoint that has no step left to do"
    early = pulled("early", [end])
    assert (early.num_steps, early.pull_to_base) == (4, 2.0)
    assert early.pulled == pytest.approx(2.0 * sum(end.shares[:4]))
    assert 0.5 < early.pulled < 1.5
    assert pulled("none", max_steps=0).pulled == 0.0
    assert pulled("plain", pull_to_base=0.0).pulled is None


def test_weights_of_an_earlier_step_were_pulled_as_far_as_that(tiny, tmp_path):
    loaded = load_model(str(tiny("llama")), device="cpu")
    # With these weights every step makes the answer to validate on less likely.
    rows, other = ([Encoded([5, 6, 7, n], [-100, -100, -100, n])] for n in (8, 10))
    training = {"learning_rate": 1e-2, "lr_scheduler_type": "constant", "num_train_epochs": 4}
    best = {"eval_steps": 1, "load_best_model_at_end": True, "pull_to_base": 2.0}
    config = _config(tmp_path, **training, **best)
    selection = resolve(loaded.model, "sa_proj")
    fitted = fit(loaded, selection, rows * 8, config, arithmetic=FLOAT32, validation=other)
    assert (fitted.summary.num_steps, fitted.summary.best_step) == (4, 1)
    assert fitted.summary.pulled == pytest.approx(0.5)


class _StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step + 1:
            raise KeyboardInterrupt
