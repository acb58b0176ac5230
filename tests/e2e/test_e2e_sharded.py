"""A model that FSDP shares out over two processes ends where one process ends.

On CPUs, where accelerate has to be talked into it: what runs is PyTorch's own `fully_shard`.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import PIL.Image
import psutil
import pytest
import torch
from runs import counting_rows, environment, run_cli, write_rows, write_run
from safetensors.torch import load_file

from narrowtune.delta.store import Delta

SHARED = str(Path(__file__).with_name("sharing_on_cpu.py"))
TRAINING = {"global_batch_size": 8, "per_device_train_batch_size": 4, "eval_steps": 4}

pytestmark = pytest.mark.slow


def launch(config: Path, cache: Path, *how: str, resume: bool = False) -> subprocess.Popen[str]:
    """Start two processes that share a run."""
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "accelerate.commands.launch"),
            *("--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
            *("--mixed_precision", "no", "--dynamo_backend", "no"),
            *how,
            *("teach", str(config), *(["--resume"] if resume else [])),
        ],
        env={**environment(cache), "ACCELERATE_USE_CPU": "true"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], folder: Path) -> str:
    output, _ = process.communicate(timeout=300)
    assert (folder / "record.json").exists(), output
    return output


def distance(model: Path, first: Path, second: Path) -> float:
    """Return ‖difference‖ / ‖delta‖ of two deltas of the same base."""
    stored = load_file(model / "model.safetensors")
    number = {2: torch.int16, 4: torch.int32}
    deltas = [Delta.load(folder / "delta.safetensors") for folder in (first, second)]
    difference = size = 0.0
    assert list(deltas[0].bits) == list(deltas[1].bits)
    for name, record in deltas[0].metadata.tensors.items():
        before = stored[record.disk_name]
        bits = before.view(number[before.itemsize])
        one, two = ((bits ^ delta.bits[name]).view(before.dtype).double() for delta in deltas)
        difference += float((one - two).square().sum())
        size += float((one - before.double()).square().sum())
    assert size > 0
    return (difference / size) ** 0.5


def record_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "record.json").read_text(encoding="utf-8"))


def validation_losses(folder: Path) -> list[float]:
    lines = (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()
    return [row["eval_loss"] for row in map(json.loads, lines) if "eval_loss" in row]


def test_shared_out_it_learns_what_one_process_learns(tiny, tmp_path):
    model, cache = tiny("llama"), tmp_path / "cache"
    one = write_run(tmp_path, model, "one", training=TRAINING)
    two = write_run(tmp_path, model, "two", training={**TRAINING, "fsdp": True})
    write_rows(tmp_path / "skill.jsonl", counting_rows(46))
    shared = launch(two, cache, SHARED)
    assert run_cli("teach", one, cache=tmp_path / "other").returncode in (0, 3, 4)
    finish(shared, tmp_path / "two")
    assert distance(model, tmp_path / "one", tmp_path / "two") <= 1e-4
    records = [record_of(tmp_path / name) for name in ("one", "two")]
    assert records[1]["training"]["num_processes"] == 2
    owners = [record["training"]["step_owner"] for record in records]
    assert owners == [None, "training.fsdp"], "what can't be advised"
    for name in ("num_steps", "num_samples", "num_tokens", "num_labels"):
        assert records[0]["training"][name] == records[1]["training"][name], name
    assert records[1]["proof"]["frozen_identical"]
    tensors = records[1]["proof"]["selected"]
    assert all(tensor["received_gradient"] and tensor["changed"] for tensor in tensors)
    losses = [validation_losses(tmp_path / name) for name in ("one", "two")]
    assert losses[0]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_killed_and_resumed_it_ends_in_the_same_delta(tiny, tmp_path):
    model, cache = tiny("llama", torch.bfloat16), tmp_path / "cache"
    training = {**TRAINING, "num_train_epochs": 6, "save_steps": 2, "fsdp": True}
    whole = write_run(tmp_path, model, "whole", training=training)
    killed = write_run(tmp_path, model, "killed", training=training)
    finish(launch(whole, cache, SHARED), tmp_path / "whole")
    process = launch(killed, cache, SHARED)
    deadline = time.monotonic() + 240
    while not (tmp_path / "killed/checkpoint-4/trainer_state.json").exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    kill_all(process)
    assert not (tmp_path / "killed/record.json").exists()
    finish(launch(killed, cache, SHARED, resume=True), tmp_path / "killed")
    records = [record_of(tmp_path / name) for name in ("whole", "killed")]
    assert records[1]["training"]["resumed_from"]
    for name in ("num_steps", "num_samples", "num_tokens", "num_labels"):
        assert records[0]["training"][name] == records[1]["training"][name], name
    assert distance(model, tmp_path / "whole", tmp_path / "killed") == 0


def kill_all(process: subprocess.Popen[str]) -> None:
    """Kill the launcher and what it has started, without warning."""
    parent = psutil.Process(process.pid)
    for each in [*parent.children(recursive=True), parent]:
        each.send_signal(signal.SIGKILL)
    process.wait()


def pictured_rows(folder: Path, every: int = 3) -> list[dict[str, Any]]:
    """Rows with a picture, but for each `every`-th: some passes of a device have none."""
    rows = counting_rows(46)
    for number, row in enumerate(rows):
        if every == 1 or number % every:
            colour = ("red", "green", "blue")[number % 3]
            PIL.Image.new("RGB", (28 + number, 30), colour).save(folder / f"{number}.png")
            row["image"] = f"{number}.png"
    return rows


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl"])
def test_devices_whose_rows_have_no_picture_keep_nobody_waiting(tiny, tmp_path, family):
    model, cache = tiny(family), tmp_path / "cache"
    training = {**TRAINING, "global_batch_size": 4, "per_device_train_batch_size": 2}
    one = write_run(tmp_path, model, "one", training=training)
    two = write_run(tmp_path, model, "two", training={**training, "fsdp": True})
    write_rows(tmp_path / "skill.jsonl", pictured_rows(tmp_path))
    shared = launch(two, cache, SHARED)
    assert run_cli("teach", one, cache=tmp_path / "other").returncode in (0, 3, 4)
    finish(shared, tmp_path / "two")
    assert distance(model, tmp_path / "one", tmp_path / "two") <= 1e-4


@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-4), ("bfloat16", 0.15)])
def test_in_parts_of_a_step_and_with_activations_computed_again(tiny, tmp_path, dtype, most):
    """Two micro-batches a step, layers wrapped anew, and the best checkpoint taken at the end."""
    model, cache = tiny("llama"), tmp_path / "cache"
    training = {
        **TRAINING,
        "per_device_train_batch_size": 2,
        "compute_dtype": dtype,
        "save_steps": 4,
        "load_best_model_at_end": True,
    }
    again = {"fsdp": True, "fsdp_config": {"activation_checkpointing": True}}
    one = write_run(tmp_path, model, "one", training=training)
    two = write_run(tmp_path, model, "two", training={**training, **again})
    write_rows(tmp_path / "skill.jsonl", counting_rows(46))
    shared = launch(two, cache, SHARED)
    assert run_cli("teach", one, cache=tmp_path / "other").returncode in (0, 3, 4)
    finish(shared, tmp_path / "two")
    assert distance(model, tmp_path / "one", tmp_path / "two") <= most
    records = [record_of(tmp_path / name)["training"] for name in ("one", "two")]
    assert records[1]["best_step"] == records[0]["best_step"] is not None
    assert records[1]["compute_dtype"] == dtype


def test_eyes_train_where_every_row_has_a_picture(tiny, tmp_path):
    model, cache = tiny("qwen2_5_vl"), tmp_path / "cache"
    shared = {**TRAINING, "fsdp": True}
    one = write_run(tmp_path, model, "one", training=TRAINING, recipe="vision_tower")
    two = write_run(tmp_path, model, "two", training=shared, recipe="vision_tower")
    write_rows(tmp_path / "skill.jsonl", pictured_rows(tmp_path, every=1))
    running = launch(two, cache, SHARED)
    assert run_cli("teach", one, cache=tmp_path / "other").returncode in (0, 3, 4)
    finish(running, tmp_path / "two")
    assert distance(model, tmp_path / "one", tmp_path / "two") <= 1e-4


def test_what_cannot_be_shared_out_is_said_before_anything_runs(tiny, tmp_path):
    model, cache = tiny("qwen2_5_vl"), tmp_path / "cache"
    alone = write_run(tmp_path, model, "alone", training={"fsdp": True})
    found = run_cli("teach", alone, cache=cache)
    assert found.returncode == 2
    assert "one process" in found.stderr
    training = {**TRAINING, "fsdp": True}
    eyes = write_run(tmp_path, model, "eyes", training=training, recipe="vision_tower")
    write_rows(tmp_path / "skill.jsonl", pictured_rows(tmp_path))
    output, _ = launch(eyes, cache, SHARED).communicate(timeout=300)
    assert "rows without a picture" in output
    # As accelerate has it: on CPUs nothing is shared out.
    plain = write_run(tmp_path, model, "plain", training=training)
    output, _ = launch(plain, cache, "-m", "narrowtune").communicate(timeout=300)
    assert "does not share out on cpu" in output
    for name in ("alone", "eyes", "plain"):
        assert not (tmp_path / name / "delta.safetensors").exists()
