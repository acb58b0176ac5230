"""Runs on the same rows read them once, and each finds what it would find alone."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from narrowtune.core.config import RunConfig, parse_config
from narrowtune.data.chat import ChatEncoder
from narrowtune.models.fingerprint import fingerprint
from narrowtune.models.load import LoadedModel, load_model
from narrowtune.pipeline.inputs import Inputs, make_encoder, read_inputs
from narrowtune.pipeline.shared import Shared

PROMPTS = ("Tell me about trees.", "Which tree is 1?", "Say something.")


@pytest.fixture(scope="module")
def loaded(tiny) -> LoadedModel:
    return load_model(str(tiny("llama")), device="cpu")


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def config(tmp_path):
    """`config(**changes)` is a run on 20 rows of a skill, one of them too long, and 6 to keep."""
    skill = [{"question": f"Which dog is {i}?", "answer": f"dog {i}"} for i in range(20)]
    skill[3]["question"] += "a word and " * 300
    keep = [{"question": f"Which tree is {i}?", "answer": f"tree {i}"} for i in range(6)]
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": text} for text in PROMPTS])
    values = {
        "model": "m",
        "skill": {"path": write(tmp_path / "skill.jsonl", skill), "max_refused": 1},
        "keep": [write(tmp_path / "keep.jsonl", keep)],
        "max_length": 400,
    }
    anchor = {"prompts": prompts, "max_new_tokens": 4}

    def make(*, anchored: bool = False, **changes: Any) -> RunConfig:
        changes = {"anchor": anchor if anchored else None, **changes}
        return parse_config({**values, **changes}, "test")

    return make


@pytest.fixture
def encoded(monkeypatch):
    """Names of what was encoded, whatever encoder did it."""
    seen: list[str] = []
    for name in ("encode", "_encode"):
        real = getattr(ChatEncoder, name)

        def count(self, *args, _name=name, _real=real, **kwargs):
            seen.append(_name)
            return _real(self, *args, **kwargs)

        monkeypatch.setattr(ChatEncoder, name, count)
    return seen


def plain(inputs: Inputs) -> dict[str, Any]:
    """Return inputs so that they can be compared: rows by their tokens."""
    made = {part.name: getattr(inputs, part.name) for part in fields(Inputs)}
    for name in ("rows", "validation"):
        made[name] = [(row.input_ids, row.labels) for row in made[name]]
    return made


def test_each_run_gets_what_it_would_read_alone(loaded, config, tmp_path):
    shared = Shared(several=True)
    ways = [config(), config(anchored=True), config(recipe="mlp", training={"max_steps": 3})]
    for number, way in enumerate(ways):
        refused = tmp_path / f"{number}.jsonl"
        _, found = shared.read(loaded, way, refused)
        alone = read_inputs(way, make_encoder(loaded, way), tmp_path / "alone.jsonl")
        assert plain(found) == plain(alone)
        assert refused.read_text() == (tmp_path / "alone.jsonl").read_text()
        assert len(found.refused) == 1
    assert [bool(shared.read(loaded, way, None)[1].anchor_prompts) for way in ways] == [
        False,
        True,
        False,
    ]


def test_rows_are_encoded_once(loaded, config, encoded):
    shared = Shared(several=True)
    first, rows = shared.read(loaded, config(), None)
    assert encoded.count("encode") == len(rows.rows) + len(rows.validation) + len(rows.refused)
    encoded.clear()
    second, again = shared.read(loaded, config(recipe="mlp"), None)
    assert first is second
    assert [id(row) for row in again.rows] == [id(row) for row in rows.rows]
    for task in again.tasks:
        for item in task.examples:
            second.encode_prompt(item.prompt)
    assert encoded == []


def test_what_a_run_adds_or_takes_out_is_its_own(loaded, config):
    shared = Shared(several=True)
    _, first = shared.read(loaded, config(), None)
    whole = plain(first)
    whole = {name: part.copy() for name, part in whole.items()}
    first.notes.append("its own")
    first.tasks.pop()
    first.summaries.clear()
    _, second = shared.read(loaded, config(), None)
    assert plain(second) == whole


@pytest.mark.parametrize("change", [{"seed": 7}, {"max_length": 300}, {"keep": []}])
def test_other_rows_are_read_anew(loaded, config, change):
    shared = Shared(several=True)
    shared.read(loaded, config(), None)
    _, found = shared.read(loaded, config(**change), None)
    way = config(**change)
    assert plain(found) == plain(read_inputs(way, make_encoder(loaded, way)))


def test_the_base_answers_an_anchors_prompts_once(loaded, config, monkeypatch):
    shared, way = Shared(several=True), config(anchored=True)
    base = fingerprint(loaded.model)
    _, inputs = shared.read(loaded, way, None)
    first = shared.anchor(loaded, way, inputs, fingerprint=base)
    first.weight *= 3
    asked = []
    generate = loaded.model.generate
    monkeypatch.setattr(loaded.model, "generate", lambda **kw: asked.append(1) or generate(**kw))
    second = shared.anchor(loaded, way, inputs, fingerprint=base)
    assert asked == []
    assert second.weight == way.anchor.weight
    assert all(a is b for a, b in zip(first.rows, second.rows, strict=True))
    assert shared.anchor(loaded, config(), inputs, fingerprint=base) is None


def test_another_base_answers_for_itself(loaded, tiny, config):
    shared, way = Shared(several=True), config(anchored=True)
    _, inputs = shared.read(loaded, way, None)
    first = shared.anchor(loaded, way, inputs, fingerprint="one")
    other = load_model(str(tiny("llama")), device="cpu")
    with torch.no_grad():
        other.model.get_output_embeddings().weight.mul_(3)
    second = shared.anchor(other, way, inputs, fingerprint="two")
    assert not torch.equal(first.rows[0].log_probs, second.rows[0].log_probs)
