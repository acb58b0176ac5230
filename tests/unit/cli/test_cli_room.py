"""A disk without room for the delta is said before anything is trained."""

from __future__ import annotations

import json
from types import SimpleNamespace

import torch
from typer.testing import CliRunner

from narrowtune.cli.app import app
from narrowtune.core.errors import DeltaError


def test_room_for_the_delta_is_looked_for_before_training(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("NARROWTUNE_CACHE", str(tmp_path / "cache"))
    for name in ("skill", "keep"):
        rows = [{"question": f"Which {name} is {i}?", "answer": f"{name} {i}"} for i in range(40)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    monkeypatch.setattr("narrowtune.pipeline.teach.fit", None)
    monkeypatch.setattr("narrowtune.pipeline.teach.choose_arithmetic", None)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=2**20))
    flags = ["--model", str(tiny("llama", torch.bfloat16)), "--recipe", "sa_proj"]
    flags += ["--skill", str(tmp_path / "skill.jsonl"), "--keep", str(tmp_path / "keep.jsonl")]
    flags += ["--output-dir", str(tmp_path / "run")]
    done = CliRunner().invoke(app, ["teach", *flags])
    assert isinstance(done.exception, DeltaError), done.output
    assert "room for the delta of sa_proj" in str(done.exception)
    assert not (tmp_path / "run" / "plan.json").exists()
