"""The demo from its command to its last line, on a reference model that has learned nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from narrowtune.cli.app import app
from narrowtune.core.results import RunRecord
from narrowtune.demo import pictures
from narrowtune.miniature.reference.architectures import get_blueprint


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    blueprint = get_blueprint("qwen2_5_vl")
    tokenizer = blueprint.tokenizer()
    model = blueprint.build(tokenizer, seed=0)
    draw = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        # What begins at nothing and is frozen lets no gradient through to what is before it.
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.02, generator=draw)
    blueprint.write(model, tokenizer, folder)
    return folder


@pytest.mark.slow
def test_every_recipe_is_taught_on_the_same_rows_and_compared(reference, tmp_path, monkeypatch):
    monkeypatch.setenv("NARROWTUNE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "demo"
    done = CliRunner().invoke(
        app,
        ["demo", "--quick", "--model", str(reference), "--output-dir", str(folder)],
        env={"COLUMNS": "200"},
    )
    assert done.exit_code == 0, done.output
    records = {
        name: RunRecord.model_validate_json((folder / name / "record.json").read_text())
        for name in pictures.RUNS
    }
    assert all(record.verdict is not None for record in records.values())
    # Same rows, steps, arithmetic and base scores: what differs is what trains.
    comparison = json.loads((folder / "comparison.json").read_text())
    assert comparison["differences"] == []
    assert len({json.dumps(r.hardware["arithmetic"]) for r in records.values()}) == 1
    for name, record in records.items():
        page = (folder / name / "report.html").read_text(encoding="utf-8")
        assert 'src="data:image/jpeg;base64,' in page or "answers are the same" in page
        assert f"{name}: clock" in done.output
        assert f"Report: {folder / name / 'report.html'}" in done.output
        assert record.training is not None
        assert (record.training.anchor_weight is not None) == pictures.RUNS[name].anchored
        assert any("looked up" in note for note in record.notes)
    assert f"Side by side: {folder / 'comparison.html'}" in done.output
