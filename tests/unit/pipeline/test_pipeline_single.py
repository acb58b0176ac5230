"""Commands that do one thing load and speak to the model as a run does."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from narrowtune.cli.app import app
from narrowtune.core.config import ModelSettings
from narrowtune.core.errors import DataError, UsageError
from narrowtune.delta.extract import extract
from narrowtune.models.load import load_model
from narrowtune.models.select import resolve
from narrowtune.pipeline import single
from narrowtune.train.masters import copy_tensors


@pytest.fixture
def rows(tmp_path):
    """Four questions, one of them long."""
    path = tmp_path / "rows.jsonl"
    found = [{"question": f"Which pen is {i}?", "answer": "pen"} for i in range(4)]
    found[2]["question"] += " and a word" * 100
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return path


@pytest.fixture
def delta(tiny, tmp_path):
    """A delta of the tiny Llama in bf16."""
    loaded = load_model(str(tiny("llama")), dtype="bfloat16", device="cpu")
    selection = resolve(loaded.model, "sa_o")
    base = copy_tensors(loaded.model, selection.names)
    parameters = dict(loaded.model.named_parameters())
    with torch.no_grad():
        for name in selection.names:
            parameters[name].mul_(2)
    extract(loaded.model, selection, base).save(tmp_path / "delta.safetensors")
    return tmp_path / "delta.safetensors"


@pytest.mark.parametrize("command", ["evaluate", "probe"])
def test_flags_reach_the_settings(monkeypatch, command, tmp_path):
    asked = []

    def stop(settings, *_, **__):
        asked.append(settings)
        raise UsageError(asked="nothing", found="a test", do="stop")

    monkeypatch.setattr(single, command, stop)
    more = {"evaluate": ["--tasks", "rows.jsonl"], "probe": ["--delta", "d.safetensors"]}[command]
    flags = ["--dtype", "bfloat16", "--revision", "abc", "--max-length", "7"]
    flags += ["--set", "chat_template_kwargs.enable_thinking=false"]
    CliRunner().invoke(app, [command, "m", *more, *flags])
    assert asked == [
        ModelSettings(
            model="m",
            dtype="bfloat16",
            revision="abc",
            max_length=7,
            chat_template_kwargs={"enable_thinking": False},
        )
    ]


def test_rows_that_are_too_long_are_named_before_anything_is_answered(tiny, tmp_path, rows, delta):
    settings = ModelSettings(model=str(tiny("llama")), dtype="bfloat16", max_length=150)
    with pytest.raises(DataError, match=r"row 3: .* max_length is 150"):
        single.evaluate(
            settings, [{"path": str(rows)}], None, batch_size=4, output=tmp_path / "answers"
        )
    assert not (tmp_path / "answers").exists()
    with pytest.raises(DataError, match=r"row 3: .* max_length is 150") as error:
        single.probe(settings, delta, str(rows), max_prompts=4, max_new_tokens=2)
    assert "--prompts" in error.value.do


def test_a_delta_made_in_another_dtype_is_probed_in_that_dtype(tiny, rows, delta):
    settings = ModelSettings(model=str(tiny("llama")), dtype="bfloat16", device="cpu")
    result = single.probe(settings, delta, str(rows), max_prompts=2, max_new_tokens=2)
    assert result.kl_base_tuned > 0
