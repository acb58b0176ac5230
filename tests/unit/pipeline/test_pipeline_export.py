"""Packing, blending and exporting deltas from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftConfig, PeftModel
from typer.testing import CliRunner

from narrowtune.cli.app import app
from narrowtune.core.config import ModelSettings, parse_data_settings
from narrowtune.core.errors import NarrowtuneError
from narrowtune.delta.extract import extract
from narrowtune.delta.store import Delta, info
from narrowtune.evaluate.evaluate import evaluate
from narrowtune.evaluate.verdict import compare_results
from narrowtune.models.load import load_model
from narrowtune.models.select import resolve
from narrowtune.pipeline.export import export_lora
from narrowtune.pipeline.inputs import make_encoder
from narrowtune.pipeline.single import evaluate as score_delta
from narrowtune.pipeline.sources import read_task
from narrowtune.train.masters import copy_tensors


@pytest.fixture(autouse=True)
def _no_scores_from_before(tmp_path, monkeypatch):
    monkeypatch.setenv("NARROWTUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tiny):
    return str(tiny("llama", torch.bfloat16))


@pytest.fixture
def delta(folder, tmp_path):
    """A delta of the tiny Llama that changes what it answers."""
    loaded = load_model(folder, device="cpu")
    selection = resolve(loaded.model, "sa_proj")
    base = copy_tensors(loaded.model, selection.names)
    parameters = dict(loaded.model.named_parameters())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in selection.names:
            parameters[name].add_(torch.randn(parameters[name].shape, generator=generator))
    extract(loaded.model, selection, base).save(tmp_path / "delta.safetensors")
    return str(tmp_path / "delta.safetensors")


def call(*arguments):
    return CliRunner().invoke(app, [str(each) for each in arguments], env={"COLUMNS": "100"})


def test_pack_and_back(delta, tmp_path):
    packed, plain = tmp_path / "packed.safetensors", tmp_path / "plain.safetensors"
    done = call("delta", "pack", delta, "--output", packed)
    assert done.exit_code == 0, done.output
    assert Delta.load(packed).metadata.encoding == "packed"
    assert call("delta", "pack", packed, "--output", plain, "--plain").exit_code == 0
    assert plain.read_bytes() == Path(delta).read_bytes()
    again = call("delta", "pack", delta, "--output", plain)
    assert isinstance(again.exception, NarrowtuneError)
    assert "--overwrite" in str(again.exception)
    missing = call("delta", "pack", tmp_path / "none", "--output", plain, "--overwrite")
    assert "there is no file" in str(missing.exception)
    itself = call("delta", "pack", delta, "--output", delta, "--overwrite")
    assert "it is the delta that is read" in str(itself.exception)


def test_blend_at_half_weight(folder, delta, tmp_path):
    half = tmp_path / "half.safetensors"
    done = call("delta", "blend", folder, delta, "--weight", "0.5", "--output", half)
    assert done.exit_code == 0, done.output
    assert "blended by linear: 0.5 × sa_proj" in done.output
    assert info(half).base_fingerprint == info(delta).base_fingerprint
    wrong = call("delta", "blend", folder, delta, "--rule", "slerp", "--output", tmp_path / "x")
    assert "choose one of linear, ties, dare_linear, dare_ties" in str(wrong.exception)


def test_export_says_what_is_lost_and_measures_it(folder, delta, tmp_path):
    rows = tmp_path / "rows.jsonl"
    found = [{"question": f"Which pen is {i}?", "answer": "pen"} for i in range(6)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    out = tmp_path / "adapter"
    flags = ["--rank", "2", "--tasks", rows, "--max-new-tokens", "3"]
    done = call("delta", "export", folder, delta, "--output", out, *flags)
    assert done.exit_code == 0, done.output
    assert "kept of the delta's squared values" in done.output
    assert "From the delta to the adapter" in done.output
    config = PeftConfig.from_pretrained(out)
    assert (config.r, config.lora_alpha, config.base_model_name_or_path) == (2, 2, folder)
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "near the tuned model, not equal to it" in card
    assert "rows: 0.0 % with the delta" in card
    wrong = call(
        "delta",
        "export",
        folder,
        delta,
        "--output",
        tmp_path / "x",
        "--tasks",
        rows,
        "--metric",
        "exact",
    )
    assert "metric" in str(wrong.exception)
    assert not list(tmp_path.glob(".narrowtune-export-*"))
    flags = ["--rank", "999", "--json", "--base-name", "org/base"]
    done = call("delta", "export", folder, delta, "--output", tmp_path / "whole", *flags)
    kept = json.loads(done.output)["kept"]
    assert kept["energy"] == pytest.approx(1, abs=1e-4)
    card = (tmp_path / "whole" / "README.md").read_text(encoding="utf-8")
    assert "not measured" in card
    assert 'base_model: "org/base"' in card
    assert PeftConfig.from_pretrained(tmp_path / "whole").base_model_name_or_path == "org/base"


@pytest.mark.parametrize("rank", [4, 64])
def test_what_peft_loads_scores_as_was_reported(folder, delta, tmp_path, rank):
    rows, words = tmp_path / "rows.jsonl", ["ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen"]
    options = [[words[k % 8], words[(k + k // 8 + 1) % 8]] for k in range(48)]

    def write(answers):
        found = [
            {"question": f"Which animal is {k}?", "options": options[k], "answer": answer}
            for k, answer in enumerate(answers)
        ]
        rows.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")

    task = {"path": str(rows), "mode": "options"}
    settings = ModelSettings(model=folder)
    write([first for first, _ in options])
    said = score_delta(settings, [task], Path(delta), batch_size=8, output=tmp_path / "said").tasks
    write([item.answer for item in said[0].items])  # right: what the tuned model chooses
    exact = score_delta(settings, [task], Path(delta), batch_size=8, output=tmp_path / "exact")
    found = export_lora(Path(folder), Path(delta), tmp_path / "lora", rank=rank, tasks=[task])
    (reported,) = found.changes
    assert reported.before.mean == exact.tasks[0].strict.mean

    loaded = load_model(folder, dtype="float32", device="cpu")
    PeftModel.from_pretrained(loaded.model, str(tmp_path / "lora")).eval()  # changes it in place
    encoder = make_encoder(loaded, settings)
    own = read_task(parse_data_settings(task, "to score"), encoder, [])
    (measured,) = compare_results(exact.tasks, [evaluate(loaded, own, encoder, batch_size=8)])
    assert reported.change.low <= measured.change.value <= reported.change.high
    # The one is rounded to bf16, the other is not: of these items a close one may tip.
    assert measured.after.mean == pytest.approx(reported.after.mean, abs=1.5 / len(options))


def test_an_output_that_is_there_is_refused_before_anything_is_computed(
    folder, delta, tmp_path, monkeypatch
):
    monkeypatch.setattr("narrowtune.pipeline.export.LowRank", None)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    done = call("delta", "export", folder, delta, "--output", tmp_path / "used")
    assert "not empty" in str(done.exception)
