"""An anchor's prompts: texts for a model that reads texts, and pictures beside them for others."""

from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from narrowtune.core.anchor_settings import AnchorSettings
from narrowtune.core.config import DriftSettings, parse_config
from narrowtune.core.data_settings import DataSettings
from narrowtune.core.errors import DataError
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.collate import Encoded
from narrowtune.data.rows import read_rows
from narrowtune.miniature.registry import tasks_of
from narrowtune.models.load import load_model
from narrowtune.pipeline import prompts
from narrowtune.pipeline.inputs import make_encoder, read_inputs
from narrowtune.pipeline.prompts import (
    NUM_SHIPPED,
    SHIPPED_FREE,
    SHIPPED_FREE_PICTURES,
    SHIPPED_PICTURES,
    SHIPPED_TEXTS,
    anchor_files,
    equal_shares,
    free_sources,
    read_anchor_prompts,
    read_free_prompts,
    shipped_prompts,
)
from study_rows import write

SCRIPT = Path(__file__).parents[3] / "scripts" / "draw_prompts.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("draw_prompts", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def encoder_of(folder) -> ChatEncoder:
    loaded = load_model(str(folder), device="cpu")
    return ChatEncoder(loaded.tokenizer, loaded.processor)


@pytest.fixture
def texts(tiny) -> ChatEncoder:
    return encoder_of(tiny("llama"))


@pytest.fixture
def seeing(tiny) -> ChatEncoder:
    return encoder_of(tiny("qwen2_5_vl"))


def shipped(name):
    return read_rows(DataSettings(path=str(shipped_prompts(name))), prompts_only=True).examples


def num_pictured(found) -> int:
    return sum(any(message.images for message in prompt) for prompt in found.messages)


def test_a_model_that_reads_texts_is_held_on_all_texts(texts):
    found = read_anchor_prompts(AnchorSettings(), texts, [], [])
    assert found.messages == [example.messages for example in shipped(SHIPPED_TEXTS)]
    assert [part.num_used for part in found.summaries] == [NUM_SHIPPED]
    assert not found.notes


def test_half_of_what_a_model_with_eyes_is_held_on_has_a_picture(seeing):
    found = read_anchor_prompts(AnchorSettings(), seeing, [], [])
    assert (len(found.messages), num_pictured(found)) == (NUM_SHIPPED, NUM_SHIPPED // 2)
    assert [(part.role, part.num_used) for part in found.summaries] == [("anchor", 80)] * 2
    assert found.summaries[0].sha256 != found.summaries[1].sha256
    assert len({part.name for part in found.summaries}) == 2


def test_fewer_prompts_are_of_both_files_and_have_every_form_they_can(seeing, script):
    order = [example.messages for example in shipped(SHIPPED_PICTURES)]
    for number in (1, 2, 7, 8, 10, 16, 20, 40, 80, 100):
        found = read_anchor_prompts(AnchorSettings(max_prompts=number), seeing, [], [])
        assert len(found.messages) == number
        assert num_pictured(found) == number // 2
        forms = {order.index(p) % len(script.ANCHOR) for p in found.messages[(number + 1) // 2 :]}
        assert len(forms) == min(number // 2, len(script.ANCHOR))


def test_fewer_texts_are_spread_over_their_file(texts):
    found = read_anchor_prompts(AnchorSettings(max_prompts=4), texts, [], [])
    places = [[e.messages for e in shipped(SHIPPED_TEXTS)].index(p) for p in found.messages]
    assert places == [0, 53, 106, 159]


def test_more_prompts_than_ship_are_all_that_ship(texts, seeing):
    found = read_anchor_prompts(AnchorSettings(max_prompts=1000), texts, [], [])
    assert len(found.messages) == NUM_SHIPPED
    found = read_anchor_prompts(AnchorSettings(max_prompts=1000), seeing, [], [])
    assert (len(found.messages), num_pictured(found)) == (NUM_SHIPPED + 80, 80)


def test_of_a_users_own_file_the_first_are_taken_and_no_picture_is_added(seeing, tmp_path):
    path = write(tmp_path / "own.jsonl", [{"prompt": f"Say {i}."} for i in range(9)])
    found = read_anchor_prompts(AnchorSettings(prompts=path, max_prompts=4), seeing, [], [])
    asked = [prompt[-1].text for prompt in found.messages]
    assert asked == [f"Say {i}." for i in range(4)]
    files = anchor_files(AnchorSettings(prompts=path), pictures=True)
    assert [file.path for file in files] == [path]


def test_shipped_prompts_that_are_measured_are_left_out_of_both_files(seeing):
    text, pictured = shipped(SHIPPED_TEXTS)[0], shipped(SHIPPED_PICTURES)[2]
    found = read_anchor_prompts(AnchorSettings(), seeing, [], [text, pictured])
    assert found.notes == [
        "2 anchor prompts are measured (kept, tested or validated on) and were left out."
    ]
    assert text.messages not in found.messages
    assert pictured.messages not in found.messages
    assert len(found.messages) == NUM_SHIPPED


def other_size(encoded: Encoded) -> Encoded:
    """As an image processor leaves a picture that resizes none."""
    value = encoded.features["pixel_values"]
    wider = value.new_zeros((value.shape[0], value.shape[1] + 1))
    features = {**encoded.features, "pixel_values": wider}
    return Encoded(encoded.input_ids, encoded.labels, features)


def test_pictures_that_cannot_be_beside_the_runs_own_are_left_out_with_a_note(seeing):
    pictured = seeing.encode_prompt(shipped(SHIPPED_PICTURES)[0].messages)
    plain, other = Encoded([1], [1]), other_size(pictured)
    kept = read_anchor_prompts(AnchorSettings(), seeing, [], [], [plain, pictured])
    assert num_pictured(kept) == NUM_SHIPPED // 2
    found = read_anchor_prompts(AnchorSettings(), seeing, [], [], [plain, other])
    assert (len(found.messages), num_pictured(found)) == (NUM_SHIPPED, 0)
    assert len(found.summaries) == len(found.notes) == 1
    assert "were left out: pictures of sizes that can't be joined" in found.notes[0]
    sources, notes = free_sources(DriftSettings(), seeing, [], "drift.prompts", [other])
    assert list(sources) == ["free prompts"]
    assert "(drift.prompts) were left out" in notes[0]


def test_a_run_looks_at_its_own_pictures_whichever_rows_have_them(tiny, tmp_path, monkeypatch):
    PIL.Image.new("RGB", (40, 30), "red").save(tmp_path / "one.png")
    plain = [{"question": f"Which pen is {i}?", "answer": "a"} for i in range(9)]
    seen = [{"question": f"What is {i}?", "answer": "a", "image": "one.png"} for i in range(9)]
    values = {
        "model": "m",
        "skill": {"path": write(tmp_path / "skill.jsonl", [*plain, *seen]), "test": 0.2},
        "keep": [write(tmp_path / "keep.jsonl", [{**seen[0], "question": "Which colour?"}])],
        "anchor": True,
        "allow_overlap": True,
        "output_dir": str(tmp_path / "out"),
    }
    config = parse_config(values, "a test")
    own = make_encoder(load_model(str(tiny("qwen2_5_vl")), device="cpu"), config)
    assert not read_inputs(config, own).notes[1:]  # but the overlap
    shipped_digest = own.encode_prompt(shipped(SHIPPED_PICTURES)[0].messages).picture_digest
    free_digest = own.encode_prompt(shipped(SHIPPED_FREE_PICTURES)[0].messages).picture_digest
    met = []

    def check(rows):
        met.append([row.picture_digest for row in rows])
        raise DataError(asked="a batch", found="two sizes", do="nothing")

    monkeypatch.setattr(prompts, "check_pictures", check)
    notes = [note for note in read_inputs(config, own).notes if "left out" in note]
    assert notes == [
        f"Prompts about pictures that ship ({key}) were left out: two sizes."
        for key in ("drift.prompts", "anchor.prompts")
    ]
    assert [found[1] for found in met] == [free_digest, shipped_digest]
    assert all(found[0] not in {*found[1:], ""} for found in met)


def test_pictures_that_are_longer_than_a_row_may_be_are_left_out_with_a_note(tiny):
    loaded = load_model(str(tiny("qwen2_5_vl")), device="cpu")
    whole = ChatEncoder(loaded.tokenizer, loaded.processor)

    longest = max(len(whole.encode_prompt(e.messages).input_ids) for e in shipped(SHIPPED_PICTURES))
    short = ChatEncoder(loaded.tokenizer, loaded.processor, max_length=longest - 1)
    refused = []
    found = read_anchor_prompts(AnchorSettings(max_prompts=2), short, refused, [])
    assert (len(found.messages), num_pictured(found)) == (2, 0)
    assert f"max_length is {longest - 1}" in found.notes[0]
    shorter = ChatEncoder(loaded.tokenizer, loaded.processor, max_length=20)
    sources, notes = free_sources(DriftSettings(), shorter, refused, "drift.prompts")
    assert list(sources) == ["free prompts"]
    assert "max_length is 20" in notes[0]
    assert not refused


FILES = {SHIPPED_PICTURES: 80, SHIPPED_FREE_PICTURES: 40}


@pytest.mark.parametrize("name", FILES)
def test_pictures_that_ship_are_all_different_and_have_no_answers(name):
    rows = [json.loads(line) for line in shipped_prompts(name).open(encoding="utf-8")]
    assert len(rows) == FILES[name]
    assert all(set(row) == {"id", "image", "prompt"} for row in rows)
    pictures = [(shipped_prompts(name).parent / row["image"]).read_bytes() for row in rows]
    assert len(set(pictures)) == len(rows)
    assert {PIL.Image.open(io.BytesIO(picture)).size for picture in pictures} == {(112, 112)}


def test_pictures_that_ship_are_those_that_the_script_draws(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "FOLDER", tmp_path)
    script.main()
    for name in FILES:
        drawn = (tmp_path / name).read_text(encoding="utf-8")
        assert drawn == shipped_prompts(name).read_text(encoding="utf-8")
        for row in map(json.loads, drawn.splitlines()):
            ours = PIL.Image.open(shipped_prompts(name).parent / row["image"])
            again = PIL.Image.open(tmp_path / row["image"])
            # Encoders may differ by a little from one libjpeg to the next.
            difference = np.asarray(ours, dtype=int) - np.asarray(again, dtype=int)
            assert abs(difference).mean() < 4, row["image"]


def test_what_warns_of_drift_is_of_other_kinds_than_what_an_anchor_holds(script):
    assert not set(script.ANCHOR) & set(script.FREE)
    assert not set(script.FREE) & {task.name for task in tasks_of("target")}
    assert not set(script.ANCHOR) & {
        task.name for role in ("target", "held_out") for task in tasks_of(role)
    }


def test_free_prompts_have_pictures_first_where_a_model_reads_them(texts, seeing, tmp_path):
    alone = read_free_prompts(DriftSettings(), texts, 50, "drift.prompts")
    assert {name for name, _ in alone} == {"free prompts"}
    assert [prompt for _, prompt in alone] == [e.messages for e in shipped(SHIPPED_FREE)[:50]]
    both = read_free_prompts(DriftSettings(), seeing, 50, "drift.prompts")
    assert [name for name, _ in both] == ["free prompts with pictures"] * 25 + ["free prompts"] * 25
    assert all(prompt[-1].images for _, prompt in both[:25])
    path = write(tmp_path / "own.jsonl", [{"prompt": f"Say {i}."} for i in range(9)])
    own = read_free_prompts(DriftSettings(prompts=path), seeing, 3, "drift.prompts")
    assert [(name, prompt[-1].text) for name, prompt in own] == [
        ("free prompts", f"Say {i}.") for i in range(3)
    ]


def test_all_measured_is_an_error(texts, tmp_path):
    path = write(tmp_path / "own.jsonl", [{"prompt": "Say it."}])
    measured = read_rows(DataSettings(path=path), prompts_only=True).examples
    with pytest.raises(DataError, match="1 prompts, all of which are measured"):
        read_anchor_prompts(AnchorSettings(prompts=path), texts, [], measured)


@pytest.mark.parametrize(
    ("total", "sizes", "shares"),
    [
        (7, [9, 9, 9], [3, 2, 2]),
        (10, [2, 9, 9], [2, 4, 4]),
        (10, [9, 0, 3], [7, 0, 3]),
        (10, [1, 2], [1, 2]),
        (3, [], []),
    ],
)
def test_equal_shares(total, sizes, shares):
    assert equal_shares(total, sizes) == shares
