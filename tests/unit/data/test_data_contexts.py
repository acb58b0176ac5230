"""Rows whose system turn holds what they are about are told apart by it; manners tell nothing."""

from __future__ import annotations

import itertools
import pickle
from typing import Any

import pytest

from narrowtune.core.errors import DataError
from narrowtune.data.examples import Example
from narrowtune.data.rows import Rows
from narrowtune.data.spilled import PIECE_BYTES, Spilled
from narrowtune.data.splits import find_overlap, split_examples
from narrowtune.evaluate.tasks import Task

DOCUMENTS = [f"Document {number} is about {number * 7}." for number in range(40)]
TEMPLATES = ["Classify the document.", "What is it about?"]
MANNERS = ["Be brief.", "Be verbose.", "Answer in rhymes."]
QUESTIONS = [f"What is {number} and one?" for number in range(30)]


def table(systems: list[str], questions: list[str]) -> list[dict[str, Any]]:
    return [
        {"id": f"{number}", "system": system, "question": question, "answer": "a"}
        for number, (system, question) in enumerate(itertools.product(systems, questions))
    ]


def clusters(rows: Rows) -> int:
    return len({example.cluster for example in rows.examples})


def told(rows: Rows) -> list[str]:
    return [note for note in rows.notes if "told apart" in note]


def task(rows: Rows) -> Task:
    return Task("t", "held_out", "exact_match", "generate", 4, rows.examples)


def test_documents_in_the_system_turn_tell_rows_apart(read) -> None:
    rows = read(*table(DOCUMENTS, TEMPLATES))
    assert clusters(rows) == 80
    assert told(rows) == ["80 rows ask what others ask, and are told apart by their system turns."]
    splits = split_examples(rows.examples, 0.1, 0.2, seed=0)
    assert {name: len(part) for name, part in splits.items()} == {
        "train": 56,
        "validation": 8,
        "test": 16,
    }
    assert not find_overlap(splits["train"], splits["test"])
    # One document, however it is written, is one.
    again = table([DOCUMENTS[0], f" {DOCUMENTS[0].upper()}", DOCUMENTS[1]], TEMPLATES[:1])
    assert clusters(read(*again)) == 2


def test_a_column_of_texts_may_be_the_system_turn(read) -> None:
    rows = read(
        *({"ticket": text, "queue": "a"} for text in DOCUMENTS),
        columns={"system": "ticket", "answer": "queue"},
        defaults={"question": "Which queue?"},
    )
    assert len(split_examples(rows.examples, 0.1, 0.2, seed=0)["test"]) == 8


def test_manners_of_answering_tell_nothing(read) -> None:
    for some in (MANNERS, MANNERS[:1]):
        rows = read(*table(some, QUESTIONS))
        assert (clusters(rows), told(rows)) == (30, [])
        splits = split_examples(rows.examples, 0.1, 0.2, seed=0)
        assert not find_overlap(splits["train"], splits["test"])
    # Each question in one manner, and some in two.
    mixed = [row for number, row in enumerate(table(MANNERS, QUESTIONS)) if number % 4 < 2]
    assert (clusters(found := read(*mixed)), told(found)) == (len(QUESTIONS), [])


def test_a_split_that_system_turns_could_have_allowed_says_how(read) -> None:
    documents = read(*table(DOCUMENTS[:2], TEMPLATES))
    assert (clusters(documents), told(documents)) == (2, [])
    with pytest.raises(DataError) as error:
        split_examples(documents.examples, 0.2, 0.2, seed=0)
    assert "system turns by which rows that ask the same" in error.value.found
    assert "a document, write that into the question" in error.value.do
    # What it advises to.
    moved = [
        {**row, "question": f"{row['system']} {row['question']}"}
        for row in table(DOCUMENTS[:2], TEMPLATES)
    ]
    split_examples(read(*moved).examples, 0.2, 0.2, seed=0)
    for rows in (table(DOCUMENTS[:1], TEMPLATES), table(DOCUMENTS[:2], TEMPLATES[:1])):
        with pytest.raises(DataError) as error:
            split_examples(read(*rows).examples, 0.2, 0.2, seed=0)
        assert "system turn" not in str(error.value), "one for all, or that count"


def test_more_system_turns_than_manners_are_contexts_whatever_else_they_are_asked(read) -> None:
    assert clusters(read(*table(DOCUMENTS[:9], QUESTIONS))) == 270
    assert clusters(read(*table(DOCUMENTS[:8], QUESTIONS))) == 30


def test_a_question_of_its_own_is_told_by_nothing_else(read) -> None:
    """Each document has a question of its own, and one that all have."""
    rows = table(DOCUMENTS, ["Summarise."]) + [
        {"id": f"own {number}", "system": text, "question": f"Why {number}?", "answer": "a"}
        for number, text in enumerate(DOCUMENTS)
    ]
    found = read(*rows, {"id": "none", "question": "Summarise.", "answer": "a"})
    assert [example.is_told_by_system for example in found.examples] == [True] * 40 + [False] * 41
    assert clusters(found) == 81


def overlapping(read, left: list[dict[str, Any]], right: list[dict[str, Any]]) -> list[str]:
    rows, other = read(*left).examples, read(*right).examples
    one = {item.left for item in find_overlap(rows, other)}
    back = {item.right for item in find_overlap(other, rows)}
    assert bool(one) == bool(back)
    return sorted(one, key=int)


def test_overlap_of_rows_about_documents(read) -> None:
    taught = table(DOCUMENTS[:20], TEMPLATES)
    assert not overlapping(read, taught, table(DOCUMENTS[20:], TEMPLATES))
    assert overlapping(read, taught, table(DOCUMENTS[19:], TEMPLATES)) == ["38", "39"]
    # Where the other set alone would not tell: a document, or a question, of its own.
    assert not overlapping(read, taught, table(DOCUMENTS[20:21], TEMPLATES))
    assert overlapping(read, taught, table(DOCUMENTS[3:4], TEMPLATES[:1])) == ["6"]
    # A question alone may be the one that was taught in some manner.
    bare = [{"id": "0", "question": TEMPLATES[0], "answer": "a"}]
    assert len(overlapping(read, taught, bare)) == 20
    assert overlapping(read, bare, taught) == ["0"]


def test_overlap_in_whatever_manner(read) -> None:
    taught = table(MANNERS, QUESTIONS)
    assert len(overlapping(read, taught, table(["Be kind."], QUESTIONS[:1]))) == 3
    bare = [{"id": "0", "question": QUESTIONS[0], "answer": "a"}]
    assert len(overlapping(read, taught, bare)) == 3
    assert len(overlapping(read, table(MANNERS[:1], QUESTIONS), bare)) == 1


def test_pictures_tell_rows_apart_by_themselves(tmp_path, png, read) -> None:
    rows = []
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(png(width=10 + number))
        (row,) = table([DOCUMENTS[number]], TEMPLATES[:1])
        rows.append(row | {"id": f"{number}", "image": f"{number}.png"})
    assert told(read(*rows)) == []


def test_a_task_is_another_where_its_rows_are_told_apart(read) -> None:
    rows = table(DOCUMENTS, TEMPLATES)
    whole, part = read(*rows), read(*rows[:1])
    assert next(iter(whole.examples)).messages == next(iter(part.examples)).messages
    mixed = Task("t", "held_out", "exact_match", "generate", 4, list(whole.examples)[:1])
    assert mixed.sha256 != task(part).sha256
    assert whole.sha256 == read(*rows).sha256


@pytest.mark.parametrize("systems", [[], MANNERS[:1], MANNERS])
def test_rows_are_called_and_kept_as_they_were(systems, read) -> None:
    """Runs that are resumed, and scores that are kept, rely on it."""
    rows = read(*table(systems, QUESTIONS[:4])) if systems else read(*bare_rows())
    first = next(iter(rows.examples))
    assert first.text_hash == first.asked_hash
    assert first.text_hash.startswith("d27b6e70")
    state = pickle.loads(pickle.dumps(next(iter(rows.examples)))).__dict__
    assert set(state) == set(Example.__dataclass_fields__)


def bare_rows() -> list[dict[str, Any]]:
    return [{"question": question, "answer": "a"} for question in QUESTIONS[:2]]


def test_many_rows_are_told_apart_beside_memory(read) -> None:
    text = "a long document " * 400
    number = PIECE_BYTES // len(text) + 200
    rows = read(*table([f"{text}{n}" for n in range(number)], TEMPLATES[:1]))
    assert isinstance(rows.examples, Spilled)
    assert clusters(rows) == number
