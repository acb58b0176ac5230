"""A run that fails after its training goes on from there: what was trained is not trained again."""

from __future__ import annotations

import json

import pytest
import torch
from runs import compute_as, write_run

from narrowtune.core.config import load_config
from narrowtune.core.errors import TrainingError
from narrowtune.pipeline import teach as pipeline
from narrowtune.pipeline.teach import teach

DIAL = {"dial": {"num_steps": 2}, "budget": 90.0}


@pytest.fixture
def settings(tiny, tmp_path, monkeypatch):
    """`settings(name, **changes)` is a run of three steps without checkpoints."""
    model = tiny("llama", torch.bfloat16)

    def make(name, **changes):
        # Each has scores of its own: one would know the other's.
        monkeypatch.setenv("NARROWTUNE_CACHE", str(tmp_path / f"cache-{name}"))
        path = write_run(tmp_path, model, name, training={"max_steps": 3})
        return load_config(path, {"drift.every": 2, **changes})

    return make


def fail(*_, **__):
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")


def stop_after_training(monkeypatch, config, where, *, resume=False):
    take_up, keep = pipeline.take_up, pipeline.keep

    def then_fail(do):
        def done(run, *more):
            found = do(run, *more)
            if found is not False:  # nothing was there to take up
                patched.setattr(pipeline, where, fail)
            return found

        return done

    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "take_up", then_fail(take_up))
        patched.setattr(pipeline, "keep", then_fail(keep))
        with pytest.raises(TrainingError, match="too little memory"):
            teach(config, resume=resume)


def without_times(values):
    left_out = {"samples_per_second", "peak_memory_bytes", "anchor_seconds", "drift_seconds"}
    first_step = {"first_step": {"seconds"}}
    return values.model_dump(
        exclude={"seconds": True, **dict.fromkeys(left_out, True), **first_step}
    )


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({}, "measure_run_drift"),
        ({"pack_delta": True}, "score_tasks"),
        (DIAL, "turn"),
        (DIAL, "measure_run_drift"),
    ],
)
def test_a_run_goes_on_after_its_training(settings, tmp_path, monkeypatch, changes, where):
    whole = teach(settings("whole", **changes))
    config = settings("parts", **changes)
    compute_as(tmp_path / "whole", tmp_path / "parts")
    stop_after_training(monkeypatch, config, where)
    folder = tmp_path / "parts"
    known = json.loads((folder / "trained.json").read_text())
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "fit", fail)
        stop_after_training(monkeypatch, config, where, resume=True)  # and once more
        smaller = config.model_copy(update={"eval_batch_size": 3})
        resumed = teach(smaller, resume=True)
    assert "eval_batch_size: 3" in (folder / "resolved.yaml").read_text()
    assert without_times(resumed.training) == without_times(whole.training)
    assert resumed.training.seconds == known["summary"]["seconds"] > 0
    for stage in ("train", "answer the anchor's prompts"):
        assert resumed.seconds[stage] == round(known["seconds"][stage], 2)
    assert [task.after for task in resumed.tasks] == [task.after for task in whole.tasks]
    assert resumed.verdict == whole.verdict
    assert resumed.dial == whole.dial
    assert resumed.proof == whole.proof
    assert resumed.drift.kl_base_tuned == pytest.approx(whole.drift.kl_base_tuned, rel=1e-4)
    names = ("delta.safetensors", "delta_whole.safetensors")[: 1 + ("dial" in changes)]
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    notes = [note for note in resumed.notes if "Drift was measured 1 times" in note]
    assert len(notes) == 1
    assert "Resumed after training, which had ended." in resumed.notes
    assert not (folder / "trained.json").exists()
    assert not (tmp_path / "whole" / "trained.json").exists()


def spoil(path, content=None):
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)


@pytest.mark.parametrize("name", ["delta.safetensors", "trained.json"])
@pytest.mark.parametrize("content", [None, b"{}"])
def test_what_can_not_be_taken_up_is_said(settings, tmp_path, monkeypatch, name, content):
    config = settings("parts")
    stop_after_training(monkeypatch, config, "measure_run_drift")
    spoil(tmp_path / "parts" / name, content)
    if name == "trained.json" and content is None:  # nothing says that it had ended
        assert teach(config, resume=True).training.num_steps == 3
        return
    with pytest.raises(
        TrainingError, match=rf"(?s)training that ended.*Found: {name}.*trained\.json and train"
    ):
        teach(config, resume=True)
    (tmp_path / "parts" / "trained.json").unlink()
    assert teach(config, resume=True).training.num_steps == 3


def test_another_delta_is_not_taken_for_what_was_trained(settings, tmp_path, monkeypatch):
    teach(settings("other", **{"training.learning_rate": 0.5}))
    config = settings("parts")
    stop_after_training(monkeypatch, config, "measure_run_drift")
    other = (tmp_path / "other" / "delta.safetensors").read_bytes()
    spoil(tmp_path / "parts" / "delta.safetensors", other)
    with pytest.raises(TrainingError, match="another delta than was trained"):
        teach(config, resume=True)
