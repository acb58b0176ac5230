"""Runs on the same rows read them once, and each finds what it would find alone."""

from __future__ import annotations

import gc
import pickle
import weakref
from dataclasses import fields, replace
from typing import Any

import pytest

from narrowtune.core.config import RunConfig, parse_config
from narrowtune.data.chat import ChatEncoder
from narrowtune.engine.arithmetic import Arithmetic
from narrowtune.models.load import LoadedModel
from narrowtune.pipeline import shared as shared_module
from narrowtune.pipeline.inputs import Inputs, make_encoder, read_inputs
from narrowtune.pipeline.shared import Shared
from narrowtune.train.anchor import Anchor, build_anchor
from study_rows import write

PROMPTS = ("Tell me about trees.", "Which tree is 1?", "Say something.")


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
    """One entry for each conversation that was made into tokens, whatever encoder did it."""
    seen: list[int] = []
    real = ChatEncoder._tokenize

    def count(self, *args, **kwargs):
        seen.append(1)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(ChatEncoder, "_tokenize", count)
    return seen


def plain(inputs: Inputs) -> dict[str, Any]:
    """Return inputs so that they can be compared: rows by their tokens, items as a list."""
    made = {part.name: getattr(inputs, part.name) for part in fields(Inputs)}
    for name in ("rows", "validation"):
        made[name] = [(row.input_ids, row.labels) for row in made[name]]
    made |= {name: list(getattr(inputs, name)) for name in ("learned", "kept_back", "skill")}
    made["tasks"] = [replace(task, examples=list(task.examples)) for task in inputs.tasks]
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


def ask_all(encoder: ChatEncoder, inputs: Inputs) -> None:
    for task in inputs.tasks:
        for item in task.examples:
            encoder.encode_prompt(item.prompt)


def test_rows_are_encoded_once(loaded, config, encoded):
    shared = Shared(several=True)
    first, rows = shared.read(loaded, config(), None)
    assert len(encoded) >= len(rows.rows) + len(rows.validation) + len(rows.refused)
    encoded.clear()
    second, again = shared.read(loaded, config(recipe="mlp"), None)
    assert first is second
    assert plain(again)["rows"] == plain(rows)["rows"]
    ask_all(second, again)
    assert encoded == []


def test_a_single_run_remembers_no_prompts(loaded, config, encoded):
    encoder, inputs = Shared().read(loaded, config(), None)
    encoded.clear()
    ask_all(encoder, inputs)
    assert len(encoded) == sum(len(task.examples) for task in inputs.tasks)


def test_rows_that_go_to_another_process_bring_no_prompts_along(loaded, config):
    encoder, inputs = Shared(several=True).read(loaded, config(), None)
    assert encoder._prompts
    sent = pickle.loads(pickle.dumps(encoder))
    assert sent._prompts == {}
    item = inputs.tasks[0].examples[0]
    assert sent.encode_prompt(item.prompt).input_ids == encoder.encode_prompt(item.prompt).input_ids


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


@pytest.fixture
def answered(monkeypatch):
    """Prompts of every anchor that was built."""
    seen: list[int] = []

    def build(*args, **kwargs):
        seen.append(len(args[2]))
        return build_anchor(*args, **kwargs)

    monkeypatch.setattr(shared_module, "build_anchor", build)
    return seen


def anchor_of(
    shared: Shared,
    loaded: LoadedModel,
    way: RunConfig,
    base: str = "base",
    arithmetic: Arithmetic | None = None,
) -> Anchor:
    _, inputs = shared.read(loaded, way, None)
    return shared.anchor(loaded, way, inputs, fingerprint=base, arithmetic=arithmetic)


def test_runs_of_another_day_take_the_top_that_the_base_was_found_to_have(
    loaded, config, monkeypatch, tmp_path
):
    monkeypatch.setenv("NARROWTUNE_CACHE", str(tmp_path / "cache"))
    whole = config(anchored=True)
    top = whole.model_copy(update={"anchor": whole.anchor.model_copy(update={"top_k": 5})})
    exact, fast = (
        Arithmetic(compute_dtype="float32", float32_matmul_precision=each, threads=1)
        for each in ("highest", "medium")
    )

    def num_kept(way: RunConfig, *args: Any) -> int:
        anchor_of(Shared(), loaded, way, *args)
        return len(list((tmp_path / "cache").glob("anchors/*/*")))

    assert num_kept(whole, "base", exact) == num_kept(top, "base", None) == 0
    assert num_kept(top, "base", exact) == num_kept(top, "base", exact) == 1
    assert num_kept(top, "another base", exact) == 2
    assert num_kept(top, "base", fast) == 3
    training = top.training.model_copy(update={"quantize_frozen": "int8"})
    assert num_kept(top.model_copy(update={"training": training}), "third", exact) == 3


def test_the_base_answers_an_anchors_prompts_once(loaded, config, answered):
    shared, way = Shared(several=True), config(anchored=True)
    first = anchor_of(shared, loaded, way)
    first.weight *= 3
    second = anchor_of(shared, loaded, config(anchored=True, recipe="mlp"))
    assert len(answered) == 1
    assert second.weight == way.anchor.weight
    assert first.seconds > second.seconds == 0
    assert all(a is b for a, b in zip(first.distributions, second.distributions, strict=True))


def test_a_run_without_an_anchor_lets_it_go(loaded, config, answered):
    shared, way = Shared(several=True), config(anchored=True)
    rows = weakref.ref(anchor_of(shared, loaded, way).distributions[0])
    gc.collect()
    assert rows() is not None
    assert anchor_of(shared, loaded, config()) is None
    gc.collect()
    assert rows() is None
    anchor_of(shared, loaded, way)
    assert len(answered) == 2


def test_a_single_run_holds_no_anchor(loaded, config):
    rows = weakref.ref(
        anchor_of(shared := Shared(), loaded, config(anchored=True)).distributions[0]
    )
    gc.collect()
    assert rows() is None
    assert shared is not None


def test_what_answers_otherwise_answers_for_itself(loaded, config, answered, tmp_path):
    shared, way = Shared(several=True), config(anchored=True)
    anchor_of(shared, loaded, way)
    anchor_of(shared, loaded, way, base="another")
    write(tmp_path / "prompts.jsonl", [{"prompt": text} for text in PROMPTS[:1]])
    anchor_of(shared, loaded, way, base="another")
    # Which layers are held in fewer bits depends on what trains.
    for recipe in ("sa_proj", "mlp"):
        held = config(anchored=True, recipe=recipe, training={"quantize_frozen": "int8"})
        anchor_of(shared, loaded, held, base="another")
    assert answered == [2, 2, 1, 1, 1]
