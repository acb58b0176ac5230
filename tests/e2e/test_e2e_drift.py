"""Drift in the loop of a run: measured, acted on, written down, and the same after a stop."""

from __future__ import annotations

import json

import pytest
import torch
from runs import write_run

from narrowtune.core.config import load_config
from narrowtune.core.errors import UsageError
from narrowtune.pipeline import teach as pipeline
from narrowtune.pipeline.teach import teach
from narrowtune.train.trainer import NarrowTrainer


@pytest.fixture
def settings(tiny, tmp_path, monkeypatch):
    """`settings(name, **changes)` is a run of four steps that measures drift after every second."""
    monkeypatch.setenv("NARROWTUNE_CACHE", str(tmp_path / "cache"))
    model = tiny("llama", torch.bfloat16)

    def make(name, **changes):
        path = write_run(tmp_path, model, name, training={"max_steps": 4, "save_steps": 1})
        return load_config(path, {"drift.every": 2, **changes})

    return make


def _logged(folder):
    lines = (folder / "train.jsonl").read_text("utf-8").splitlines()
    return [row for row in map(json.loads, lines) if "drift" in row]


def test_drift_is_in_the_log_the_notes_and_the_plots(settings, tmp_path, monkeypatch):
    given = []

    def forms_not_held(tasks, results, answers, num_general):
        assert num_general == 10
        given.append(([t.name for t in tasks], [r.name for r in results], answers))
        return ["No prompt is answered so."]

    monkeypatch.setattr(pipeline, "forms_not_held", forms_not_held)
    record = teach(settings("run"))
    [(tasks, results, answers)] = given
    assert sorted(tasks) == sorted(results) == ["keep", "skill"]
    assert len(answers) == 10, "of all prompts of the anchor"
    assert all(isinstance(answer, str) for answer in answers)
    assert "No prompt is answered so." in record.notes
    rows = _logged(tmp_path / "run")
    assert [row["step"] for row in rows] == [2, 4]
    assert all(row["drift"] > 0 and row["drift_seconds"] > 0 for row in rows)
    assert all(0 < row["number_bias"] < 1 and 0 <= row["format_valid"] <= 1 for row in rows)
    assert rows[0]["base_number_bias"] == rows[1]["base_number_bias"]
    [note] = [note for note in record.notes if "Drift was measured 2 times while training" in note]
    assert "number-token bias" in note
    assert "begin in the base's form" in note
    assert 0 < record.training.drift_seconds < record.training.seconds
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    for text in ("KL(base‖tuned), nats per token", "Number-token bias", "of it measuring drift"):
        assert text in page


def test_a_run_over_its_budget_of_drift_stops(settings, tmp_path):
    record = teach(settings("run", **{"drift.budget": 1e-9}))
    assert record.training.num_steps == 2
    # Killed after it was stopped, before it had a record: it has nothing left to train.
    (tmp_path / "run" / "record.json").unlink()
    again = teach(settings("run", **{"drift.budget": 1e-9}), resume=True)
    assert again.training.num_steps == 2
    assert again.delta.tuned_fingerprint == record.delta.tuned_fingerprint


def test_a_stopped_run_goes_on_with_the_weight_that_its_anchor_had(settings, tmp_path, monkeypatch):
    more = {"drift.budget": 1e-9, "drift.action": "raise_anchor"}
    whole = teach(settings("whole", **more))
    assert [row["anchor_weight"] for row in _logged(tmp_path / "whole")] == [2.0, 4.0]
    step = NarrowTrainer.training_step

    def killed(self, *arguments, **kwargs):
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return step(self, *arguments, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(NarrowTrainer, "training_step", killed)
        with pytest.raises(KeyboardInterrupt):
            teach(settings("parts", **more))
    resumed = teach(settings("parts", **more), resume=True)
    assert resumed.training.resumed_from == "checkpoint-3"
    first, second = (_logged(tmp_path / name) for name in ("whole", "parts"))
    for figure in ("drift", "number_bias", "base_number_bias", "format_valid"):
        assert [row[figure] for row in first] == [row[figure] for row in second]
    assert resumed.delta.tuned_fingerprint == whole.delta.tuned_fingerprint


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"drift.every": 0, "drift.budget": 0.1}, "needs drift.every"),
        ({"drift.action": "raise_anchor", "anchor": None}, "raise_anchor needs an anchor"),
    ],
)
def test_settings_that_can_do_nothing_are_refused(settings, changes, said):
    with pytest.raises(UsageError, match=said):
        settings("run", **changes)
