"""A run that is killed goes on and ends in the same delta; two processes do what one does."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from runs import compute_as, counting_rows, environment, run_cli, write_rows, write_run
from safetensors.torch import load_file

from narrowtune.delta.store import Delta

TRAINING = {"num_train_epochs": 3, "save_steps": 2, "save_total_limit": 2}


def _kill_at(config: Path, checkpoint: Path, cache: Path) -> None:
    """Start a run and kill it, without warning, once `checkpoint` is complete."""
    process = subprocess.Popen(
        [sys.executable, "-m", "narrowtune", "teach", str(config)],
        env=environment(cache),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 240
    while not (checkpoint / "trainer_state.json").exists():
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        assert time.monotonic() < deadline, "the run never reached its checkpoint"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()


def _validation_losses(path: Path) -> list[float]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row["eval_loss"] for row in rows if "eval_loss" in row]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_killed_in_the_second_epoch_and_resumed_ends_in_the_same_delta(tiny, tmp_path, dtype):
    model, cache = tiny("llama", dtype), tmp_path / "cache"
    whole = write_run(tmp_path, model, "whole", training=TRAINING)
    assert run_cli("teach", whole, cache=cache).returncode in (0, 3, 4)
    killed = write_run(tmp_path, model, "killed", training=TRAINING)
    compute_as(tmp_path / "whole", tmp_path / "killed")
    _kill_at(killed, tmp_path / "killed/checkpoint-10", cache)
    assert not (tmp_path / "killed/record.json").exists()
    resumed = run_cli("teach", killed, "--resume", cache=cache)
    assert resumed.returncode in (0, 3, 4), resumed.stderr
    assert "checkpoint-" in (tmp_path / "killed/record.json").read_text()
    measured = (tmp_path / "whole/arithmetic.json").read_bytes()
    assert (tmp_path / "killed/arithmetic.json").read_bytes() == measured
    bits = (tmp_path / "whole/delta.safetensors").read_bytes()
    assert (tmp_path / "killed/delta.safetensors").read_bytes() == bits
    first, second = (
        json.loads((tmp_path / name / "record.json").read_text())["training"]
        for name in ("whole", "killed")
    )
    for count in ("num_steps", "num_samples", "num_tokens", "num_labels"):
        assert second[count] == first[count]


def test_a_checkpoint_cut_short_is_passed_over(tiny, tmp_path):
    model, cache = tiny("llama"), tmp_path / "cache"
    whole = write_run(tmp_path, model, "whole", training=TRAINING)
    assert run_cli("teach", whole, cache=cache).returncode in (0, 3, 4)
    cut = write_run(tmp_path, model, "cut", training=TRAINING)
    compute_as(tmp_path / "whole", tmp_path / "cut")
    _kill_at(cut, tmp_path / "cut/checkpoint-8", cache)
    newest = max(
        (tmp_path / "cut").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])
    )
    (newest / "trainer_state.json").unlink(missing_ok=True)
    resumed = run_cli("teach", cut, "--resume", cache=cache)
    assert resumed.returncode in (0, 3, 4), resumed.stderr
    assert "incomplete" in resumed.stderr + resumed.stdout
    bits = (tmp_path / "whole/delta.safetensors").read_bytes()
    assert (tmp_path / "cut/delta.safetensors").read_bytes() == bits


def test_a_damaged_checkpoint_is_refused(tiny, tmp_path):
    model, cache = tiny("llama"), tmp_path / "cache"
    config = write_run(tmp_path, model, "damaged", training=TRAINING)
    _kill_at(config, tmp_path / "damaged/checkpoint-4", cache)
    for path in (tmp_path / "damaged").glob("checkpoint-*/trainable.safetensors"):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    resumed = run_cli("teach", config, "--resume", cache=cache)
    assert resumed.returncode == 1
    assert "damaged" in resumed.stderr


def test_resumed_after_its_last_step_a_run_takes_no_other(tiny, tmp_path):
    model, cache = tiny("llama"), tmp_path / "cache"
    training = {**TRAINING, "max_steps": 8, "lr_scheduler_type": "constant"}
    config = write_run(tmp_path, model, "ended", training=training)
    assert run_cli("teach", config, cache=cache).returncode in (0, 3, 4)
    delta = tmp_path / "ended/delta.safetensors"
    bits = delta.read_bytes()
    delta.unlink()
    (tmp_path / "ended/record.json").unlink()
    resumed = run_cli("teach", config, "--resume", cache=cache)
    assert resumed.returncode in (0, 3, 4), resumed.stderr
    record = json.loads((tmp_path / "ended/record.json").read_text())
    assert record["training"]["num_steps"] == 8
    assert record["training"]["resumed_from"] == "checkpoint-8"
    assert delta.read_bytes() == bits


def test_rows_that_changed_since_the_start_are_refused(tiny, tmp_path):
    model, cache = tiny("llama"), tmp_path / "cache"
    tested = [{"question": f"How many stones {i}?", "answer": "1"} for i in range(8)]
    skill = {"test_path": str(write_rows(tmp_path / "test.jsonl", tested))}
    config = write_run(tmp_path, model, "changed", training=TRAINING, skill=skill)
    assert run_cli("teach", config, cache=cache).returncode in (0, 3, 4)
    (tmp_path / "changed/record.json").unlink()  # as if it had been stopped
    write_rows(tmp_path / "skill.jsonl", counting_rows(39))
    resumed = run_cli("teach", config, "--resume", cache=cache)
    assert resumed.returncode == 2
    assert "rows of skill (" in resumed.stderr
    assert "rows of skill (test)" not in resumed.stderr


@pytest.mark.slow
def test_two_processes_give_the_delta_of_one(tiny, tmp_path):
    """‖difference‖ / ‖delta‖ ≤ 1e-4 at the same global batch, anchor rows and projected steps."""
    model, cache = tiny("llama"), tmp_path / "cache"
    # 5 rows to validate on: two devices of 4 rows each don't share them out evenly.
    training = {"global_batch_size": 8, "per_device_train_batch_size": 4, "eval_steps": 4}
    anchor = {"projection": 3.0}
    one = write_run(tmp_path, model, "one", training=training, anchor=anchor)
    two = write_run(tmp_path, model, "two", training=training, anchor=anchor)
    # 32 rows to train on: with a remainder, devices repeat rows to fill the epoch's last step.
    write_rows(tmp_path / "skill.jsonl", counting_rows(46))
    assert run_cli("teach", one, cache=cache).returncode in (0, 3, 4)
    # `--cpu` starts one process whatever number is asked for; this starts two, without any GPU.
    launch = ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2")
    launched = subprocess.run(
        [
            *(sys.executable, "-m", *launch),
            *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
            *("-m", "narrowtune", "teach", str(two)),
        ],
        env={**environment(cache), "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (tmp_path / "two/record.json").exists(), launched.stderr
    assert '"num_processes": 2' in (tmp_path / "two/record.json").read_text()
    stored = load_file(model / "model.safetensors")
    difference = size = 0.0
    deltas = [Delta.load(tmp_path / name / "delta.safetensors") for name in ("one", "two")]
    for name, record in deltas[0].metadata.tensors.items():
        before = stored[record.disk_name]
        bits = before.view(torch.int32)
        first, second = ((bits ^ d.bits[name]).view(torch.float32) for d in deltas)
        difference += float((first.double() - second.double()).square().sum())
        size += float((first.double() - before.double()).square().sum())
    splits = json.loads((tmp_path / "two/record.json").read_text())["data"][0]["splits"]
    assert splits["train"] == 32
    assert splits["validation"] % 8 != 0
    losses = [_validation_losses(tmp_path / name / "train.jsonl") for name in ("one", "two")]
    assert losses[0]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert size > 0
    assert (difference / size) ** 0.5 <= 1e-4
