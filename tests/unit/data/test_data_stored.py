"""Rows in little memory are the rows that they were made from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from narrowtune.core.errors import DataError
from narrowtune.data import spilled
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.collate import check_pictures, collate
from narrowtune.data.examples import Example, Image, Message, RowError, Text
from narrowtune.data.room import Room
from narrowtune.data.spilled import Spilled
from narrowtune.data.stored import StoredRows
from narrowtune.models.load import LoadedModel
from narrowtune.train.trainer import Rows
from tiny_models import VISION_FAMILIES

Loaded = Callable[[str], LoadedModel]


def examples(paths: list[Path]) -> list[Example]:
    return [
        Example(
            str(number),
            (
                Message("user", (Image(path=path, root=path.parent), Text("what?"))),
                Message("assistant", (Text("a red one"),)),
            ),
            ("a red one",),
        )
        for number, path in enumerate(paths)
    ]


@pytest.fixture
def paths(tmp_path: Path, png: Callable[..., bytes]) -> list[Path]:
    made = []
    for number, colour in enumerate(("red", "green", "blue")):
        path = tmp_path / f"{number}.png"
        path.write_bytes(png(colour=colour))
        made.append(path)
    return made


@pytest.mark.parametrize("family", VISION_FAMILIES)
@pytest.mark.parametrize("held", [0, 1, 3])
def test_batches_are_the_same_whatever_is_held(
    family: str, held: int, loaded: Loaded, paths: list[Path]
) -> None:
    model = loaded(family)
    encoder = ChatEncoder(model.tokenizer, model.processor)
    plain = [encoder.encode(example) for example in examples(paths)]
    size = sum(value.nbytes for value in plain[0].features.values())
    room = Room(held * size)
    rows = StoredRows(Spilled(examples(paths)), encoder, room)
    assert not room.take(1)
    assert len(rows) == 3
    assert list(rows.examples) == examples(paths)
    by_number = [rows[number] for number in range(3)]
    for stored, right in zip([*rows, *by_number, *rows[:]], plain * 3, strict=True):
        assert stored.input_ids == right.input_ids
        assert stored.labels == right.labels
        assert stored.picture_digest == right.picture_digest != ""
    assert len({row.picture_digest for row in rows}) == 3
    # Held pictures are the same object each time, others are made anew.
    same = [row.features["pixel_values"] is row.features["pixel_values"] for row in rows]
    assert same == [number < held for number in range(3)]
    for _ in range(2):  # two epochs
        batch, right = collate(list(rows), 0), collate(plain, 0)
        assert batch.keys() == right.keys()
        for name, value in right.items():
            assert torch.equal(batch[name], value), name
    assert encoder.num_prefix_mismatches == 0


def test_pictures_without_room_are_prepared_once_a_batch(
    loaded: Loaded, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded("qwen2_5_vl")
    encoder = ChatEncoder(model.tokenizer, model.processor)
    rows = StoredRows(examples(paths), encoder, Room(0))
    prepared: list[str] = []
    real = encoder.encode_features

    def encode_features(example: Example) -> dict[str, Tensor]:
        prepared.append(example.id)
        return real(example)

    monkeypatch.setattr(encoder, "encode_features", encode_features)
    collate(list(rows), 0)
    assert prepared == ["0", "1", "2"]
    prepared.clear()
    check_pictures(list(rows))
    assert prepared == ["0", "1", "2"]


@pytest.mark.parametrize("on_disk", [False, True])
def test_processes_that_prepare_batches_make_the_same(
    on_disk: bool, loaded: Loaded, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    if on_disk:
        monkeypatch.setattr(spilled, "PIECE_BYTES", 1)
    model = loaded("qwen2_5_vl")
    encoder = ChatEncoder(model.tokenizer, model.processor)
    rows = StoredRows(Spilled(examples(paths)), encoder, Room(0))
    (batch,) = DataLoader(
        Rows(rows),
        batch_size=3,
        num_workers=1,
        collate_fn=partial(collate, pad_token_id=0),
        # Rows and what makes their pictures are sent to it as a pickle.
        multiprocessing_context="spawn",
    )
    for name, value in collate(list(rows), 0).items():
        assert torch.equal(batch[name], value), name


def test_a_picture_that_changes_while_a_run_goes_on_is_an_error(
    loaded: Loaded, paths: list[Path], png: Callable[..., bytes]
) -> None:
    model = loaded("qwen2_5_vl")
    encoder = ChatEncoder(model.tokenizer, model.processor)
    row = StoredRows(examples(paths), encoder, Room(0))[1]
    assert row.features
    paths[1].write_bytes(png(colour="white"))
    with pytest.raises(DataError, match=r"row 1 once more[\s\S]*when the run began"):
        _ = row.features


def test_text_needs_no_room(loaded: Loaded) -> None:
    encoder = ChatEncoder(loaded("llama").tokenizer)
    turns = (Message("user", (Text("how many?" * 20),)), Message("assistant", (Text("two"),)))
    (row,) = StoredRows([Example("a", turns, ("two",))], encoder, Room(0))
    plain = encoder.encode(Example("a", turns, ("two",)))
    assert (row.input_ids, row.labels, row.features) == (plain.input_ids, plain.labels, {})
    assert row.picture_digest == ""


def test_rows_that_cannot_be_encoded_are_left_out_and_named(
    loaded: Loaded, paths: list[Path]
) -> None:
    model = loaded("qwen2_5_vl")
    encoder = ChatEncoder(model.tokenizer, model.processor)
    given = examples(paths)
    given[1] = replace(given[1], messages=given[1].messages[:1])  # no answer
    refused = []
    room = Room(2**20)
    rows = StoredRows(given, encoder, room, lambda example, error: refused.append(example.id))
    assert refused == ["1"]
    assert [example.id for example in rows.examples] == ["0", "2"]
    # What is held of pictures goes by the rows that are left.
    for row, example in zip(rows, rows.examples, strict=True):
        right = encoder.encode(example).features["pixel_values"]
        assert torch.equal(row.features["pixel_values"], right)
    with pytest.raises(RowError, match="no answer"):
        StoredRows(given, encoder, Room(0))
