"""Splits keep related rows together, depend on seed and content alone, and overlap is found."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from narrowtune.core.errors import DataError, UsageError
from narrowtune.data.examples import Example, Image, Message, Text
from narrowtune.data.spilled import Spilled
from narrowtune.data.splits import (
    draw_general,
    find_overlap,
    find_overlaps,
    split_examples,
)


def _row(name: str, *, text: str = "", group: str | None = None, picture: str = "") -> Example:
    parts: tuple[Text | Image, ...] = (Text(text or f"question {name}"),)
    if picture:
        parts = (Image(data=picture.encode(), sha256=picture), *parts)
    turns = (Message("user", parts), Message("assistant", (Text("a"),)))
    return Example(name, turns, ("a",), group=group)


def test_shares_order_and_seed() -> None:
    rows = [_row(str(i)) for i in range(200)]
    splits = split_examples(rows, 0.1, 0.2, seed=3)
    assert {name: len(part) for name, part in splits.items()} == {
        "train": 140,
        "validation": 20,
        "test": 40,
    }
    assert [e.id for e in splits["train"]] == sorted((e.id for e in splits["train"]), key=int)
    shuffled = [replace(row, id=f"other {row.id}") for row in rows]
    random.Random(0).shuffle(shuffled)
    again = split_examples(shuffled, 0.1, 0.2, seed=3)
    for name in splits:
        assert {e.text_hash for e in splits[name]} == {e.text_hash for e in again[name]}
    other = split_examples(rows, 0.1, 0.2, seed=4)
    assert {e.id for e in other["test"]} != {e.id for e in splits["test"]}


def test_rows_are_split_as_they_were() -> None:
    # Runs that are resumed, and test rows that were kept aside, rely on it.
    splits = split_examples([_row(str(i)) for i in range(12)], 0.2, 0.2, seed=3)
    found = {name: [e.id for e in splits[name]] for name in ("validation", "test")}
    assert found == {"validation": ["6", "7"], "test": ["8", "10"]}


def test_related_rows_stay_together() -> None:
    rows = []
    for i in range(60):
        rows += [_row(f"g{i}{j}", group=f"entity {i}") for j in range(3)]
        rows += [
            _row(f"t{i}{j}", text=f"Same  TEXT {i}" if j else f"same text {i}") for j in range(2)
        ]
        rows += [_row(f"p{i}{j}", text=f"q{j}", picture=f"picture {i}") for j in range(2)]
        # A chain: the first shares a group with the second, the second a picture with the third.
        rows += [
            _row(f"c{i}0", group=f"chain {i}"),
            _row(f"c{i}1", group=f"chain {i}", picture=f"chained {i}"),
            _row(f"c{i}2", picture=f"chained {i}"),
        ]
    splits = split_examples(rows, 0.2, 0.2, seed=0)
    where = {e.id: name for name, part in splits.items() for e in part}
    assert len(where) == len(rows)
    for row in rows:
        assert where[row.id] == where[row.id[:-1] + "0"]
    for name, share in (("validation", 0.2), ("test", 0.2)):
        assert abs(len(splits[name]) / len(rows) - share) < 0.01
    assert not find_overlap(splits["train"], splits["test"])


def test_one_question_about_many_pictures_is_split() -> None:
    rows = [_row(str(i), text="how many?", picture=f"picture {i}") for i in range(20)]
    assert len(split_examples(rows, 0.0, 0.5, seed=0)["test"]) == 10


def test_a_split_without_rows_is_an_error() -> None:
    together = [_row(str(i), group="one") for i in range(10)]
    with pytest.raises(DataError, match="1 groups of rows"):
        split_examples(together, 0.1, 0.1, seed=0)
    asked = [_row(str(i), text="Total?") for i in range(10)]
    with pytest.raises(DataError, match="the same prompt, its pictures counted in, or"):
        split_examples(asked, 0.1, 0.1, seed=0)
    with pytest.raises(DataError, match="none left for train"):
        split_examples([_row("0"), _row("1")], 0.4, 0.4, seed=0)
    assert split_examples(together, 0.0, 0.0, seed=0)["train"] == together
    for shares in ((0.5, 0.5), (-0.1, 0.2)):
        with pytest.raises(UsageError):
            split_examples(together, *shares, seed=0)


def test_overlap_by_text_and_by_picture() -> None:
    left = [
        _row("1", text="What is  THE capital of Kenya?"),
        _row("2", text="how many?", picture="x"),
        _row("3", text="how many?", picture="y"),
        _row("4", text="ﬁne?"),
        _row("5", text="how many?"),
    ]
    right = [
        _row("a", text="what is the capital of kenya?"),
        _row("b", text="which colour?", picture="x"),
        _row("c", text="how many?", picture="z"),
        _row("d", text="fine?"),
    ]
    found = find_overlap(left, right)
    assert [(o.left, o.right, o.what) for o in found] == [
        ("1", "a", "prompt"),
        ("2", "b", "picture"),
        ("4", "d", "prompt"),
    ]
    assert str(found[1]) == "2 and b (same picture)"


def test_a_system_turn_does_not_hide_overlap() -> None:
    row = _row("1")
    other = replace(row, messages=(Message("system", (Text("Be brief."),)), *row.messages))
    assert find_overlap([row], [other])


def test_general_rows_are_drawn_by_seed() -> None:
    general = [_row(f"g{i}") for i in range(30)]

    def drawn(rows: Sequence[Example], share: float = 0.1, seed: int = 1) -> list[str]:
        return [row.id for row in draw_general(rows, 50, share, seed)]

    assert len(drawn(general)) == 5
    assert drawn(general) == sorted(drawn(general), key=lambda name: int(name[1:]))  # as they came
    assert drawn(Spilled(general)) == drawn(general)
    assert set(drawn(general[::-1])) == set(drawn(general))
    assert set(drawn(general, seed=2)) != set(drawn(general))
    with pytest.raises(DataError, match="30 general rows"):
        drawn(general, share=1.0)
    with pytest.raises(UsageError):
        drawn(general, share=0.0)


def test_several_sets_are_compared_in_one_pass() -> None:
    rows = [_row(name) for name in "abcd"]
    others = {"first": [rows[1]], "second": [], "third": [rows[3], rows[0]]}
    found = find_overlaps(iter(rows), others)
    assert found == {name: find_overlap(rows, right) for name, right in others.items()}
    assert [overlap.left for overlap in found["third"]] == ["a", "d"]


def test_rows_beside_memory_are_split_alike() -> None:
    rows = [_row(str(number)) for number in range(40)]
    plain = split_examples(rows, 0.2, 0.2, seed=3)
    beside = split_examples(Spilled(rows), 0.2, 0.2, seed=3)
    assert {name: list(part) for name, part in beside.items()} == plain
    assert all(isinstance(part, Spilled) for part in beside.values())
