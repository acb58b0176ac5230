"""Every layout and source gives the same example; every unusable row is named with its reason."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from narrowtune.core.config import DataSettings
from narrowtune.core.errors import DataError
from narrowtune.data import rows as reading
from narrowtune.data import sources
from narrowtune.data.columns import picture_columns
from narrowtune.data.examples import Example, RowError
from narrowtune.data.formats import Reading, parse_row
from narrowtune.data.rows import Image, Rows, RowsRefusedError, Text, read_rows, write_refused
from narrowtune.evaluate.tasks import make_task

QUESTION, ANSWER = "What is the capital of Kenya?", "Nairobi"
LAYOUTS: dict[str, dict[str, Any]] = {
    "messages": {
        "messages": [
            {"role": "user", "content": QUESTION},
            {"role": "assistant", "content": ANSWER},
        ]
    },
    "blocks": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": QUESTION}]},
            {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]},
        ]
    },
    "conversations": {
        "conversations": [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": ANSWER}]
    },
    "prompt_completion": {"prompt": QUESTION, "completion": ANSWER},
    "prompt_messages": {
        "prompt": [{"role": "user", "content": QUESTION}],
        "completion": [{"role": "assistant", "content": ANSWER}],
    },
    "question_answer": {"question": QUESTION, "answer": ANSWER},
    "question_answers": {"question": QUESTION, "answers": [ANSWER]},
    "instruction": {"instruction": QUESTION, "input": "", "output": ANSWER},
    "query_response": {"query": QUESTION, "response": ANSWER},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_example(layout: str, read: Callable[..., Rows]) -> None:
    rows = read(LAYOUTS[layout])
    (example,) = rows.examples
    assert [(m.role, m.content) for m in example.messages] == [
        ("user", (Text(QUESTION),)),
        ("assistant", (Text(ANSWER),)),
    ]
    assert example.answers == (ANSWER,)
    assert (example.id, example.row, rows.num_rows) == ("rows:1", 1, 1)
    assert [m.role for m in example.prompt] == ["user"]


def test_columns_by_other_names_are_read(read: Callable[..., Rows]) -> None:
    row = {"frage": QUESTION, "antwort": ANSWER, "kunde": "k7", "answer": "not this", "rest": 1}
    columns = {"question": "frage", "answer": "antwort", "group": "kunde"}
    rows = read(row, columns=columns)
    (example,) = rows.examples
    assert example.messages[0].text == QUESTION
    assert (example.answers, example.group) == ((ANSWER,), "k7")
    assert rows.notes == ["Columns that are not read: answer, rest."]


@pytest.mark.parametrize("kind", ["prompt", "messages"])
def test_a_column_that_its_row_would_not_be_read_from_is_refused(
    read: Callable[..., Rows], kind: str
) -> None:
    row = dict(LAYOUTS["prompt_completion" if kind == "prompt" else "messages"], label="a")
    with pytest.raises(RowsRefusedError, match=f"answer: label, which is not read beside {kind}"):
        read(row, columns={"answer": "label"})


def test_columns_may_change_places(read: Callable[..., Rows]) -> None:
    columns = {"question": "answer", "answer": "question"}
    (example,) = read({"question": ANSWER, "answer": QUESTION}, columns=columns).examples
    assert (example.messages[0].text, example.answers) == (QUESTION, (ANSWER,))


def test_what_seems_to_belong_to_the_question_can_be_named(read: Callable[..., Rows]) -> None:
    row = {"question": "Who?", "context": "Ada wrote it.", "answer": "Ada"}
    columns = {"instruction": "question", "input": "context", "output": "answer"}
    (example,) = read(row, columns=columns).examples
    assert example.messages[0].text == "Who?\n\nAda wrote it."


def test_a_column_that_no_row_has_is_an_error(read: Callable[..., Rows]) -> None:
    columns = {"question": "frage", "answer": "antwort", "group": "kunde"}
    rows = [{"frage": QUESTION, "antwort": ANSWER}, {"frage": QUESTION, "antwort": "other"}]
    with pytest.raises(DataError, match=r"group: kunde .*\n.*there are antwort, frage"):
        read(*rows, columns=columns)
    # It need not be in every row.
    assert (
        len(read(*rows, {"frage": "And?", "antwort": "x", "kunde": "k"}, columns=columns).examples)
        == 3
    )


def test_rows_that_cannot_be_read_at_all_say_why(read: Callable[..., Rows]) -> None:
    with pytest.raises(RowsRefusedError, match="not JSON"):
        read("{broken", columns={"question": "frage"})


def test_a_column_of_a_csv_is_there_though_its_cells_are_empty(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("frage,antwort,bild\nQ?,A,\n", encoding="utf-8")
    columns = {"question": "frage", "answer": "antwort", "image": "bild"}
    (example,) = read_rows(DataSettings(path=str(path), columns=columns)).examples
    assert (example.answers, example.images) == (("A",), ())


def test_what_all_rows_share_need_not_be_a_column(
    read: Callable[..., Rows], png: Callable[..., bytes]
) -> None:
    defaults = {"system": "Be brief.", "question": QUESTION, "options": [ANSWER, "other"]}
    uri = "data:image/png;base64," + base64.b64encode(png()).decode()
    rows = [
        {"label": ANSWER, "image": uri},
        {"label": "other", "system": "Be long.", "question": "And?"},
    ]
    found = read(*rows, columns={"answer": "label"}, defaults=defaults, mode="options").examples
    assert [[m.text for m in example.prompt] for example in found] == [
        ["Be brief.", QUESTION],
        ["Be long.", "And?"],
    ]
    assert [example.options for example in found] == [(ANSWER, "other")] * 2


def test_of_how_many_rows_a_default_is_so_is_said(
    read: Callable[..., Rows], caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"question": QUESTION, "answer": ANSWER}] * 2
    rows += [{"question": "And?", "answer": ANSWER, "system": "own"}]
    found = read(*rows, defaults={"system": "shared"})
    assert "The default system stands in 2 of the 3 rows that can be read." in found.notes
    assert read(rows[2], defaults={"system": "shared"}).notes == [
        "The default system stands in 0 of the 1 rows that can be read."
    ]
    assert not caplog.records
    read(*rows, defaults={"question": "Sentiment?"})
    assert "is asked the default question: all 3 have one of their own" in caplog.text


def test_whole_numbers_are_options(read: Callable[..., Rows]) -> None:
    row = {"question": QUESTION, "answer": 1}
    (example,) = read(row, defaults={"options": [0, 1]}, mode="options").examples
    assert (example.options, example.answers) == (("0", "1"), ("1",))
    told = "options are '0 / 2', the answer is '1'"
    with pytest.raises(RowsRefusedError, match=told):
        read(row, defaults={"options": [0, 2]}, mode="options")


def test_a_picture_that_is_not_there_is_said(read: Callable[..., Rows]) -> None:
    row = {"file": "", "label": "a"}
    with pytest.raises(RowsRefusedError, match="column image is empty, and defaults asks about a"):
        read(row, columns={"image": "file", "answer": "label"}, defaults={"question": "What?"})
    row |= {"image": None, "images": [], "messages": [], "input": "a text", "output": "a"}
    del row["images"]
    (example,) = read(row, defaults={"instruction": "Which?"}).examples
    assert example.prompt[0].text == "Which?\n\na text"


def test_answers_that_are_no_options_are_one_reason(read: Callable[..., Rows]) -> None:
    rows = [
        {"question": str(n), "answer": "B", "options": [f"cat{n}", f"dog {n}"]} for n in range(9)
    ]
    with pytest.raises(RowsRefusedError) as error:
        read(*rows, mode="options")
    assert "rows 1, 2, 3 and 6 more: mode 'options' needs" in str(error.value)


def test_options_are_written_as_json_on_the_command_line(read: Callable[..., Rows]) -> None:
    row = {"question": QUESTION, "answer": 1}
    (example,) = read(row, defaults={"options": "[0, 1]"}, mode="options").examples
    assert example.options == ("0", "1")


def test_a_column_that_is_misspelt_is_guessed(read: Callable[..., Rows]) -> None:
    with pytest.raises(DataError, match=r"did you mean question\?"):
        read(LAYOUTS["question_answer"], columns={"group": "questin"})


@pytest.mark.parametrize("empty", [None, "", " "])
def test_what_is_empty_gets_what_all_rows_share(read: Callable[..., Rows], empty: Any) -> None:
    defaults = {"system": "Be brief.", "instruction": "Which?", "options": ["A", "B"]}
    row = {"instruction": empty, "input": "x", "output": "A", "system": empty, "options": []}
    (example,) = read(row, defaults=defaults, mode="options").examples
    assert [m.text for m in example.prompt] == ["Be brief.", "Which?\n\nx"]
    assert example.options == ("A", "B")


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "system", "content": "own"}, *LAYOUTS["messages"]["messages"]]},
        {
            "conversations": [
                {"from": "system", "value": "own"},
                {"from": "human", "value": QUESTION},
                {"from": "gpt", "value": ANSWER},
            ]
        },
        {
            "prompt": [
                {"role": "system", "content": "own"},
                {"role": "user", "content": QUESTION},
            ],
            "completion": ANSWER,
        },
        {"question": QUESTION, "answer": ANSWER, "system": "own"},
    ],
)
def test_a_system_turn_of_its_own_goes_before(
    read: Callable[..., Rows], row: dict[str, Any]
) -> None:
    (example,) = read(row, defaults={"system": "shared"}).examples
    assert example.prompt[0].text == "own"


def test_a_question_that_would_be_every_rows_is_refused(read: Callable[..., Rows]) -> None:
    row = {"text": "good", "label": "pos"}
    with pytest.raises(RowsRefusedError, match="the same as every row"):
        read(row, columns={"answer": "label"}, defaults={"question": "Which sentiment?"})
    columns, defaults = {"input": "text", "output": "label"}, {"instruction": "Which sentiment?"}
    (example,) = read(row, columns=columns, defaults=defaults).examples
    assert example.prompt[0].text == "Which sentiment?\n\ngood"


@pytest.mark.parametrize("layout", ["messages", "question_answer"])
def test_an_input_that_nobody_reads_is_refused(read: Callable[..., Rows], layout: str) -> None:
    with pytest.raises(RowsRefusedError, match="defaults has input, which is read beside"):
        read(dict(LAYOUTS[layout]), defaults={"input": "x"})


@pytest.mark.parametrize(
    "row", [{"prompt": "a", "completion": "b"}, dict(LAYOUTS["messages"]), {"query": "a"}]
)
def test_a_row_that_is_asked_something_else_gets_no_question(
    read: Callable[..., Rows], row: dict[str, Any]
) -> None:
    with pytest.raises(RowsRefusedError, match="defaults has question, and the row says by"):
        read(row, defaults={"question": QUESTION})
    (example,) = read(dict(row, answers=["b"]), defaults={"system": "s"}).examples
    assert example.prompt[0].text == "s"


@pytest.mark.parametrize(
    ("defaults", "reason"),
    [
        ({"answer": "a"}, "answer is nothing that all rows can share; input, instruction, op"),
        ({"instructions": "a"}, r"instructions \(did you mean instruction\?\) is nothing"),
        ({"options": [True, False]}, "YAML reads yes, no, on and off"),
        ({"question": "a", "prompt": "b"}, "question and prompt both say what is asked"),
        ({"system": " "}, "system is empty"),
        ({"system": ["a"]}, "system is a list, and only options are one"),
        ({"options": ["a"]}, "options has 1 of two at least"),
        ({"options": ["a", ""]}, "give a list of texts"),
        ({"options": "a, b"}, "give a list of texts"),
    ],
)
def test_what_rows_can_not_share_is_refused(defaults: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        DataSettings(path="rows.jsonl", defaults=defaults)


def test_a_path_from_the_home_folder_is_found(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = DataSettings(path="~/rows.jsonl", image_root="~/photos", metric="~/scoring.py:f")
    assert settings.path == str(tmp_path / "rows.jsonl")
    assert settings.image_root == str(tmp_path / "photos")
    assert settings.metric == f"{tmp_path / 'scoring.py'}:f"


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        (
            {"frage": "question"},
            r"frage \(did you mean question: frage\?\) is no name of ours, which come first: one",
        ),
        (
            {"anser": "label"},
            r"anser \(did you mean answer\?\) is no name of ours",
        ),
        ({"question": "text", "answer": "text"}, "column text can't be two of them"),
    ],
)
def test_names_that_mean_nothing_are_refused(columns: dict[str, str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        DataSettings(path="rows.jsonl", columns=columns)


def test_columns_beside_the_text(read: Callable[..., Rows]) -> None:
    row = {
        "id": 7,
        "question": "Kenya?",
        "answer": "Nairobi",
        "answers": ["nairobi city", "Nairobi"],
        "options": ["Nairobi", "Mombasa"],
        "group": "kenya",
        "system": "One word.",
        "source": "ignored",
    }
    (example,) = read(row, mode="options").examples
    assert example.answers == ("Nairobi", "nairobi city")
    assert (example.id, example.group) == ("7", "kenya")
    assert example.options == ("Nairobi", "Mombasa")
    assert [m.role for m in example.messages] == ["system", "user", "assistant"]


def test_instruction_takes_its_input(read: Callable[..., Rows]) -> None:
    (example,) = read({"instruction": "Add.", "input": "1 2", "output": 3}).examples
    assert example.messages[0].text == "Add.\n\n1 2"
    assert example.answers == ("3",)


def test_several_turns_and_a_system_turn(read: Callable[..., Rows]) -> None:
    values = [("system", "s"), ("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "d")]
    (example,) = read({"conversations": [{"from": f, "value": v} for f, v in values]}).examples
    roles = ["system", "user", "assistant", "user", "assistant"]
    assert [m.role for m in example.messages] == roles
    assert example.answers == ("d",)
    assert len(example.prompt) == 4


def test_every_source_gives_the_same_examples(tmp_path: Path, read: Callable[..., Rows]) -> None:
    table = [
        {"id": str(i), "question": f"{i}?", "answer": f"{i}", "answers": [f"{i}", "x"]}
        for i in range(5)
    ]
    expected = read(*table)
    (tmp_path / "rows.json").write_text(json.dumps(table), encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), tmp_path / "rows.parquet")
    datasets.Dataset.from_list(table).save_to_disk(tmp_path / "one")
    both = {
        "train": datasets.Dataset.from_list(table),
        "test": datasets.Dataset.from_list(table[:1]),
    }
    datasets.DatasetDict(both).save_to_disk(tmp_path / "two")
    with (tmp_path / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, table[0])
        writer.writeheader()
        writer.writerows({**row, "answers": json.dumps(row["answers"])} for row in table)
    for name, split in [
        ("rows.json", None),
        ("rows.parquet", None),
        ("rows.csv", None),
        ("one", None),
        ("two", "train"),
    ]:
        found = read_rows(DataSettings(path=str(tmp_path / name), split=split))
        assert list(found.examples) == list(expected.examples), name
        assert found.sha256 == expected.sha256, name
    with pytest.raises(DataError, match="several splits: train, test") as error:
        read_rows(DataSettings(path=str(tmp_path / "two")))
    # Rows to mix in and prompts have no `split`.
    assert "save that split alone with save_to_disk" in error.value.do
    with pytest.raises(DataError, match="no split 'dev'"):
        read_rows(DataSettings(path=str(tmp_path / "two"), split="dev"))
    with pytest.raises(DataError, match="a split"):
        read_rows(DataSettings(path=str(tmp_path / "rows.csv"), split="train"))


def test_pictures_of_a_datasets_folder_are_read_undecoded(
    tmp_path: Path, png: Callable[..., bytes]
) -> None:
    features = datasets.Features(
        {
            "question": datasets.Value("string"),
            "answer": datasets.Value("string"),
            "image": datasets.Image(),
        }
    )
    rows = [
        {"question": "?", "answer": "a", "image": {"bytes": png(), "path": None}},
        {"question": "?", "answer": "b", "image": {"bytes": b"no picture", "path": None}},
    ]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "saved")
    found = read_rows(DataSettings(path=str(tmp_path / "saved"), max_refused=1))
    assert [e.images[0].data for e in found.examples] == [png()]
    assert "none of PNG" in found.refused[0].reason


def test_pictures_bind_by_position(
    tmp_path: Path, png: Callable[..., bytes], read: Callable[..., Rows]
) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(png(colour="red" if name == "a" else "blue"))
    images = ["a.png", "b.png"]
    answer = {"from": "gpt", "value": "yes"}

    def layout(row: dict[str, Any]) -> list[str]:
        (example,) = read(row).examples
        return [
            p.name if isinstance(p, Image) else p.text
            for m in example.messages
            if m.role == "user"
            for p in m.content
        ]

    tagged = {"from": "human", "value": "<image>\nand then <image> same?"}
    assert layout({"image": images, "conversations": [tagged, answer]}) == [
        "a.png",
        "and then ",
        "b.png",
        " same?",
    ]
    plain = {"from": "human", "value": "same?"}
    assert layout({"image": images, "conversations": [plain, answer]}) == [*images, "same?"]
    ends = {"from": "human", "value": "same?\n<image>"}
    assert layout({"image": "a.png", "conversations": [ends, answer]}) == ["same?", "a.png"]
    assert layout({"image": "a.png", "question": "what?", "answer": "x"}) == ["a.png", "what?"]
    uri = "data:image/png;base64," + base64.b64encode(png()).decode()
    blocks = [
        {"type": "text", "text": "this"},
        {"type": "image"},
        {"type": "text", "text": "or <image>"},
        {"type": "image", "path": "b.png"},
    ]
    turns = [{"role": "user", "content": blocks}, {"role": "assistant", "content": "x"}]
    assert layout({"images": ["a.png"], "messages": turns}) == [
        "this",
        "a.png",
        "or <image>",
        "b.png",
    ]
    block = {"type": "image_url", "image_url": {"url": uri}}
    turns = [{"role": "user", "content": [block]}, {"role": "assistant", "content": "x"}]
    (example,) = read({"messages": turns}).examples
    assert example.images[0].data == png()
    (one,) = read({"image": "a.png", "question": "what?", "answer": "x"}).examples
    assert one.group == f"picture {one.image_hashes[0][:16]}"


def _marked(**mark: Any) -> dict[str, Any]:
    """A row whose draft carries another tool's mark."""
    draft = {"role": "assistant", "content": "wrong", **mark}
    return {"messages": [*_turns("a")["messages"], draft, *_turns("no", "right")["messages"]]}


def _learned(example: Example) -> list[str]:
    """The assistant's turns that are learned."""
    return [m.text for m in example.messages if m.role == "assistant" and m.is_learned]


def test_a_turn_marked_as_to_be_learned_is_learned_and_one_marked_as_not_is_not(
    read: Callable[..., Rows],
) -> None:
    rows = read(_marked(weight=1), _marked(loss=True), _marked(train=None), _marked(weight=1.0))
    assert [_learned(example) for example in rows.examples] == [["wrong", "right"]] * 4
    rows = read(_marked(weight=0), _marked(loss=False), _marked(train=False, weight=1))
    assert [_learned(example) for example in rows.examples] == [["right"]] * 3


def test_pictures_leave_marks_as_they_are(read: Callable[..., Rows], png: Any, tmp_path: Path):
    (tmp_path / "a.png").write_bytes(png())
    (example,) = read({**_marked(weight=0), "image": "a.png"}).examples
    assert example.images
    assert _learned(example) == ["right"]


def test_of_a_prompt_that_is_a_list_of_messages_no_turn_is_learned(
    read: Callable[..., Rows],
) -> None:
    prompt = [*_turns("a", "earlier", "and?")["messages"]]
    rows = read(
        {"prompt": prompt, "completion": [{"role": "assistant", "content": "b"}]},
        {"prompt": prompt, "completion": _turns("", "b", "more", "c")["messages"][1:]},
        {"prompt": [prompt[0], {**prompt[1], "weight": 1}, prompt[2]], "completion": "b"},
        {"prompt": [prompt[0], {**prompt[1], "train": None}, prompt[2]], "completion": "b"},
        {"prompt": prompt[:2]},
    )
    learned = [_learned(example) for example in rows.examples]
    assert learned == [["b"], ["b", "c"], ["b"], ["b"], ["earlier"]]


def test_a_mark_is_part_of_what_rows_are(read: Callable[..., Rows]) -> None:
    assert read(_marked()).sha256 == read(_marked(weight=1)).sha256
    assert read(_marked()).sha256 != read(_marked(weight=0)).sha256


@pytest.mark.parametrize("mark", [{"weight": 0}, {"train": False}, {"weight": 1}])
def test_a_mark_counts_whatever_turns_are_called(
    mark: dict[str, Any], read: Callable[..., Rows]
) -> None:
    turns = [("human", "a", {}), ("gpt", "wrong", mark), ("human", "no", {}), ("gpt", "right", {})]
    row = {"conversations": [{"from": f, "value": v, **more} for f, v, more in turns]}
    (example,) = read(row).examples
    assert _learned(example) == (["wrong", "right"] if mark == {"weight": 1} else ["right"])


_LAST = {"role": "assistant", "content": "b"}


def _turns(*contents: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {
        "messages": [{"role": roles[i % 2], "content": c} for i, c in enumerate(contents)],
    }


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "hello"}, "no known columns"),
        ({"prompt": "a", "question": "b", "answer": "c"}, "ambiguous"),
        ({"question": "a", "answer": " \n"}, "empty"),
        ({"question": "a", "answer": None}, "answer is missing"),
        ({"question": "a"}, "answer is missing"),
        ({"question": "", "answer": "b"}, "question is empty"),
        ({"question": "a", "answer": True}, "bool"),
        ({"question": ["a"], "answer": "b"}, "turn 1 is str"),
        ({"question": "a", "answer": 3.0}, "float, not text"),
        ('{"question": "a", "answer": NaN}', "answer is missing"),
        ('{"question": "a", "answer": Infinity}', "float, not text"),
        ({"question": "a\ud800", "answer": "b"}, "not valid UTF-8"),
        ('{"question": "a"', "not JSON"),
        ('["a", "b"]', "list, not keys"),
        ("[" * 100_000, "nested too deeply"),
        ('{"question": "caf\udce9", "answer": "b"}', "not UTF-8"),
        ({"messages": []}, "not a list of turns"),
        ({"messages": ["a"]}, "not keys and values"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "no user turn"),
        (_turns("a"), "last turn is not the assistant's"),
        (_turns("a", ""), "turn 2 .assistant. is empty"),
        (_turns("a", []), "is empty"),
        (_turns("a", [{"type": "video"}]), "type 'video'"),
        (_turns("a", [{"type": "image", "path": "x.png"}]), "only user turns"),
        (_turns([{"type": "image"}], "b"), "only 0 pictures"),
        (_turns("<image> a", "b"), "1 <image> tags and 0 pictures"),
        ({**_turns("a", "b"), "image": "none.png"}, "does not exist"),
        ({**_turns("a", "b"), "image": ""}, "path is empty"),
        ({**_turns("<image>a<image>", "b"), "image": "x.png"}, "2 <image> tags and 1 pictures"),
        ({**_turns("a", "b"), "images": 3}, "int, not a path"),
        ({**_turns("a", "b"), "image": "x", "images": ["x"]}, "ambiguous"),
        ({**_turns("a", "b"), "tools": [{"x": 1}]}, "'tools' is not supported"),
        (_marked(weight=0.5), "turn 2 has weight: 0.5; a turn is learned"),
        (_marked(loss="false"), "turn 2 has loss: 'false'; a turn is learned"),
        (
            {"messages": [_turns("a")["messages"][0], {**_LAST, "weight": 0}]},
            "last turn is marked as not to be learned",
        ),
        (
            _marked(train_detail=[{"begin_offset": 0, "end_offset": 3, "train": False}]),
            "turn 2 has train_detail, which is not supported",
        ),
        ({"messages": [{"role": "tool", "content": "a"}]}, "role 'tool'"),
        ({"conversations": [{"from": "robot", "value": "a"}]}, "from 'robot'"),
        ({"question": "a", "answer": "b", "answers": "c"}, "answers is str"),
        ({"question": "a", "answer": "b", "id": 1.5}, "id is float"),
        (
            {"messages": [*_turns("a")["messages"], {"role": "system", "content": "s"}]},
            "not the first",
        ),
    ],
)
def test_an_unusable_row_is_refused_with_its_reason(
    row: Any, reason: str, read: Callable[..., Rows]
) -> None:
    good = {"question": "q", "answer": "a"}
    with pytest.raises(RowsRefusedError, match=reason) as error:
        read(good, row)
    assert [(r.row, r.path.endswith("rows.jsonl")) for r in error.value.refused] == [(2, True)]
    rows = read(good, row, max_refused=1)
    assert [e.row for e in rows.examples] == [1]
    assert rows.num_rows == 2
    assert "1 of 2 rows" in rows.notes[0]


_CHAT = [{"role": "user", "content": "Say b."}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    "turns",
    [
        {"messages": _CHAT},
        {"messages": [{"role": "system", "content": "Be brief."}, *_CHAT]},
        {"messages": [*_CHAT, {"role": "user", "content": "And c?"}, _CHAT[1]]},
        {"conversations": [{"from": "human", "value": "Say b."}, {"from": "gpt", "value": "b"}]},
    ],
)
def test_a_prompt_that_repeats_the_first_user_turn_is_no_second_layout(turns, read) -> None:
    row = {"prompt": " Say b.\n", "prompt_id": "f0e3", **turns}
    rows = read(row)
    assert list(rows.examples) == list(read(turns).examples)
    assert rows.notes == ["Columns that are not read: prompt_id."]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Say c.", "messages": _CHAT},
        {"prompt": _CHAT[:1], "messages": _CHAT},
        {"prompt": "Say b.", "messages": "Say b."},
        {"prompt": "Say b.", "messages": [{"role": ["user"], "content": "Say b."}]},
        {"prompt": "Say b.", "messages": [{"role": "user", "content": ["Say b."]}]},
        {"prompt": "Say b.", "messages": [{"role": "assistant", "content": "Say b."}]},
        # What the row's answer is would be in two places.
        {"prompt": "Say b.", "completion": "c", "messages": _CHAT},
    ],
)
def test_any_other_prompt_beside_turns_is_refused_and_may_be_left_out(row, read) -> None:
    with pytest.raises(RowsRefusedError, match=r"ambiguous: .* \(columns: \{prompt: null\}\)"):
        read(row)
    if row["messages"] is _CHAT:
        rows = read(row, columns={"prompt": None})
        assert list(rows.examples) == list(read({"messages": _CHAT}).examples)
        assert rows.notes[0].startswith("Columns that are not read: prompt.")


def test_any_column_may_be_left_out(read) -> None:
    row = {"question": "q", "answer": "a"}
    found = read(
        row | {"context": "c", "img": "a.png", "id": 7, "tools": ["t"]},
        columns={
            "context": None,
            "img": None,
            "id": None,
            "tools": None,
        },
    )
    assert list(found.examples) == list(read(row).examples)
    assert found.picture_columns == []
    assert found.notes == ["Columns that are not read: context, id, img, tools."]
    with pytest.raises(DataError, match=r"(?s)contxt: null of .*did you mean context"):
        read(row | {"context": "c"}, columns={"contxt": None}, max_refused=1)


def test_a_column_that_is_left_out_may_be_read_by_another_name(read) -> None:
    columns = {"question": "prompt", "prompt": None}
    (example,) = read({"prompt": "q", "answer": "a"}, columns=columns).examples
    assert (example.prompt[0].text, example.answers) == ("q", ("a",))


def test_rows_with_one_id_get_a_number_and_a_note_says_so(tmp_path, read) -> None:
    def row(name: str) -> dict[str, str]:
        return {"id": name, "question": "a", "answer": "b"}

    # One calls itself what another would be called.
    rows = read(*map(row, ["x", "y", "x", "x#3", "x", "x", "x#3", "y"]))
    names = ["x", "y", "x#2", "x#3", "x#4", "x#5", "x#3#2", "y#2"]
    assert [example.id for example in rows.examples] == names
    assert rows.notes == [
        "5 rows have the id of a row before them, and are called by it and a number, such as x#2."
    ]
    assert rows.num_rows == 8
    # Rows with other ids, before or between, change nothing.
    again = read(*map(row, ["z", "x", "z", "x"]))
    assert [example.id for example in again.examples] == ["z", "x", "z#2", "x#2"]
    assert read(row("x"), row("y")).notes == []
    # Scored: every item is one of its own, and the same one each time.
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row('x'))}\n" * 3))
    settings = DataSettings(path=str(tmp_path / "rows.jsonl"))
    tasks = [make_task(settings, read_rows(settings).examples, "held_out") for _ in range(2)]
    assert [example.id for example in tasks[0].examples] == ["x", "x#2", "x#3"]
    assert tasks[0].sha256 == tasks[1].sha256


def test_draws_and_pictures_of_rows_with_one_id(tmp_path, png, read) -> None:
    """As in llava_instruct_150k, where ids are pictures'."""
    rows = []
    for name in ("red", "blue"):
        (tmp_path / f"{name}.png").write_bytes(png(colour=name))
        for number in range(3):
            asked = {"from": "human", "value": f"<image>\n{number}?"}
            said = [asked, {"from": "gpt", "value": "a"}]
            rows.append({"id": name, "image": f"{name}.png", "conversations": said})
    found = read(*rows)
    assert len({example.id for example in found.examples}) == 6
    assert len({example.group for example in found.examples}) == 2
    drawn = [example.id for example in read(*rows, limit=3).examples]
    assert len(drawn) == len(set(drawn)) == 3
    assert drawn == [example.id for example in read(*rows, limit=3).examples]


def test_options_must_hold_the_answer(read: Callable[..., Rows]) -> None:
    row = {"question": "a", "answer": "b", "options": ["c", "d"]}
    assert read(row).examples
    with pytest.raises(RowsRefusedError, match="needs two or more options"):
        read(row, mode="options")


def test_the_error_names_number_rows_and_reasons(read: Callable[..., Rows]) -> None:
    rows = [{"question": "a"}] * 8
    with pytest.raises(RowsRefusedError) as error:
        read(*rows, max_refused=7)
    text = str(error.value)
    assert "8 of 8 rows" in text
    assert "rows 1, 2, 3 and 5 more: answer is missing" in text
    assert "max_refused to 8" in text
    with pytest.raises(DataError, match="none of which"):
        read(*rows, max_refused=8)


def test_reasons_of_many_rows_come_first_and_few_are_named(read: Callable[..., Rows]) -> None:
    whole = LAYOUTS["question_answer"]
    wrong: list[dict[str, Any]] = [{"c0": 1}, {**whole, "answer": " "}, {**whole, "question": " "}]
    wrong += [{**whole, key: "x"} for key in ("history", "context")] + [{**whole, "image": ""}]
    with pytest.raises(RowsRefusedError) as error:
        read(*wrong, {"question": "a"}, {"question": "a"})
    lines = str(error.value).splitlines()
    assert lines[2].startswith("  rows 7, 8: answer is missing")
    assert lines[3].startswith("  row 1: no known columns")
    assert lines[7] == "  and 2 more, for other reasons"


def test_rows_that_are_refused_for_the_same_are_so_whatever_their_values(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"question": "a", "answer": "b", "image": f"p{n}.png"} for n in range(20)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    with pytest.raises(RowsRefusedError) as error:
        read_rows(DataSettings(path=str(path)))
    shown = str(error.value).splitlines()[2]
    assert shown.startswith("  rows 1, 2, 3 and 17 more: ")
    assert shown.endswith("(row 1)")
    assert "other reasons" not in str(error.value)


def test_refused_rows_go_to_a_file(tmp_path: Path, read: Callable[..., Rows]) -> None:
    rows = read({"question": "a", "answer": "b"}, {"question": "a"}, max_refused=1)
    write_refused(tmp_path / "rows_refused.jsonl", rows.refused)
    (line,) = (tmp_path / "rows_refused.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line) == {
        "path": str(tmp_path / "rows.jsonl"),
        "row": 2,
        "reason": "answer is missing; the row has question",
    }


def test_prompts_need_no_answer(read: Callable[..., Rows]) -> None:
    rows = read(
        {"prompt": "a"},
        {"question": "b", "answer": "c"},
        {"messages": [{"role": "user", "content": "d"}]},
        prompts_only=True,
    )
    assert [[m.text for m in e.messages] for e in rows.examples] == [["a"], ["b"], ["d"]]
    assert all(e.answers == () for e in rows.examples)


def test_a_limit_draws_by_id_and_seed(read: Callable[..., Rows]) -> None:
    table = [{"id": str(i), "question": f"{i}", "answer": "x"} for i in range(40)]
    drawn = [e.id for e in read(*table, limit=10).examples]
    assert drawn == sorted(drawn, key=int)
    assert len(drawn) == 10
    assert {e.id for e in read(*table[::-1], limit=10).examples} == set(drawn)
    assert {e.id for e in read(*table, limit=10, seed=1).examples} != set(drawn)
    assert "10 of 40 rows" in read(*table, limit=10).notes[0]


class Held:
    """How many rows that were parsed were in memory at once, at most."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.alive: weakref.WeakSet[Any] = weakref.WeakSet()
        self.most = 0
        self._parse = reading.parse_row
        monkeypatch.setattr(reading, "parse_row", self)

    def __call__(self, *args: Any) -> Any:
        self.most = max(self.most, len(self.alive))
        example = self._parse(*args)
        self.alive.add(example)
        return example


def test_rows_that_a_limit_leaves_out_are_not_held(
    read: Callable[..., Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)
    table = [{"id": str(i), "question": f"{i}", "answer": "x"} for i in range(60)]
    table[7] = {"id": "7", "question": "no answer"}
    rows = read(*table, table[3], limit=4, max_refused=2)
    assert held.most <= 6
    assert rows.num_rows == 61
    assert [row.row for row in rows.refused] == [8]
    assert "4 of 60 rows" in rows.notes[0]
    assert len(read(*table[:7], limit=7).notes) == 0


def test_all_rows_are_read_without_holding_them(
    read: Callable[..., Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)
    rows = read(*({"id": str(i), "question": f"{i}", "answer": "x"} for i in range(60)))
    assert held.most <= 3
    assert len(rows.examples) == 60
    assert not held.alive


def test_embedded_pictures_are_decoded_once_and_not_held(
    tmp_path: Path, png: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [png(colour="red"), png(colour="green"), b"not a picture"]
    table = [
        {"question": f"{i}?", "answer": "x", "image": {"bytes": pictures[i % 3], "path": None}}
        for i in range(12)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), tmp_path / "rows.parquet")
    decoded = []
    real = reading.check_image

    def check(image: Image) -> Image:
        decoded.append(image.data)
        return real(image)

    monkeypatch.setattr(reading, "check_image", check)
    rows = read_rows(DataSettings(path=str(tmp_path / "rows.parquet"), max_refused=4))
    assert [item.row for item in rows.refused] == [3, 6, 9, 12]
    assert decoded.count(pictures[0]) == decoded.count(pictures[1]) == 1
    for row, number in zip(rows.examples, (0, 1, 3, 4, 6, 7, 9, 10), strict=True):
        assert row.images[0].data == pictures[number % 3]
        assert row.images[0].sha256 == hashlib.sha256(pictures[number % 3]).hexdigest()
        assert row.group == f"picture {row.images[0].sha256[:16]}"


def test_the_hash_covers_pictures(
    tmp_path: Path, png: Callable[..., bytes], read: Callable[..., Rows]
) -> None:
    row = {"question": "a", "answer": "b", "image": "p.png"}
    (tmp_path / "p.png").write_bytes(png())
    before = read(row).sha256
    assert read(row).sha256 == before
    (tmp_path / "p.png").write_bytes(png(colour="blue"))
    assert read(row).sha256 != before


def test_a_line_without_end_costs_one_row(
    monkeypatch: pytest.MonkeyPatch, read: Callable[..., Rows]
) -> None:
    monkeypatch.setattr(sources, "MAX_LINE_BYTES", 1000)
    good = {"question": "a", "answer": "b"}
    rows = read(good, {"question": "x" * 5000, "answer": "y"}, good, max_refused=1)
    assert [e.row for e in rows.examples] == [1, 3]
    assert rows.refused[0].row == 2


def test_csv_rows_that_do_not_fit(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes(b"question,answer\na,b\nc\nd,e,f\n\xff,g\nh,\n")
    rows = read_rows(DataSettings(path=str(file), max_refused=4))
    assert [e.row for e in rows.examples] == [1]
    assert [r.row for r in rows.refused] == [2, 3, 4, 5]
    limit = csv.field_size_limit()
    file.write_bytes(b'question,answer\n"a,b\n')
    with pytest.raises(DataError, match="line"):
        read_rows(DataSettings(path=str(file)))
    assert csv.field_size_limit() == limit


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    for path, found in [
        (str(tmp_path / "none.jsonl"), "no such file"),
        (str(tmp_path), "Dataset"),
        ("nobody/no-such-rows", "hub id"),
    ]:
        with pytest.raises(DataError, match=found):
            read_rows(DataSettings(path=path))
    (tmp_path / "rows.txt").write_text("a", encoding="utf-8")
    with pytest.raises(DataError, match="another kind"):
        read_rows(DataSettings(path=str(tmp_path / "rows.txt")))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no table")
    with pytest.raises(DataError, match="complete"):
        read_rows(DataSettings(path=str(tmp_path / "broken.parquet")))
    (tmp_path / "dict.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match="instead of a list"):
        read_rows(DataSettings(path=str(tmp_path / "dict.json")))


@pytest.mark.parametrize(
    "column", ["image_path", "image_url", "img", "picture", "pictures", "imagePath", "image_file"]
)
def test_columns_that_may_hold_pictures_are_named_where_a_row_has_none(read, column) -> None:
    row = LAYOUTS["messages"]
    assert read({**row, column: "a.png"}).picture_columns == [column]
    assert read({**row, column: "a.png", "images": []}).picture_columns == [column]
    for value in ("", True, 3, None):
        assert read({**row, column: value}).picture_columns == []


def test_columns_beside_a_rows_own_picture_are_no_pictures(tmp_path, png, read) -> None:
    (tmp_path / "a.png").write_bytes(png())
    row = {**LAYOUTS["question_answer"], "image": "a.png", "image_url": "https://x.org/a.png"}
    assert read(row).picture_columns == []


def test_columns_that_nothing_is_read_from_are_said(read) -> None:
    rows = read({**LAYOUTS["messages"], "source": "web", "image_id": 7, "id": "x"})
    assert rows.notes == ["Columns that are not read: image_id, source."]
    many = read({**LAYOUTS["messages"], **{f"c{i:02}": 1 for i in range(14)}})
    assert many.notes[0].endswith("c11 and 2 more.")


def test_what_is_missing_is_said_beside_what_is_there(read) -> None:
    with pytest.raises(RowsRefusedError, match="answer is missing; the row has question, label"):
        read({"question": "a", "label": "b"})
    with pytest.raises(RowsRefusedError, match="this one has text"):
        read({"text": "a"})


@pytest.mark.parametrize("role", [None, "user"])
def test_turns_may_have_empty_keys_of_others(read, role) -> None:
    turns = [{**turn, "role": role} for turn in LAYOUTS["conversations"]["conversations"]]
    (example,) = read({"conversations": turns}).examples
    assert [m.role for m in example.messages] == ["user", "assistant"]


def test_turns_by_from_and_value_may_be_called_messages(read) -> None:
    (example,) = read({"messages": LAYOUTS["conversations"]["conversations"]}).examples
    assert [m.content for m in example.messages] == [(Text(QUESTION),), (Text(ANSWER),)]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": "Who?", "context": "Ann came.", "answer": "Ann"}, "'context' is not read"),
        ({"question": "Who?", "choices": ["a", "b"], "answer": 0}, "'choices' is not read"),
        ({"question": "Who?", "input": "Ann came.", "answer": "Ann"}, "'input' is not read"),
        ({"prompt": "So?", "premise": "A dog.", "completion": "no"}, "write it into prompt"),
        ({"question": "Who?", "answer": ["a", "b"]}, "into the column answers"),
        ({"question": "Who?", "answers": {"text": ["a"], "answer_start": [1]}}, "under its text"),
        ({"question": "How much?", "answer": 3.5}, "is float, not text: write 3.5 in quotes"),
        ({"instruction": "Say.", "response": "a"}, "call response output"),
        ({"question;answer": "a;b"}, "separated by ;"),
        ({"query": "Who?", "passage": "Ann came.", "response": "Ann"}, "columns: {passage: null}"),
        ({"question": "Who?", "document": ["Ann"], "answer": "Ann"}, "'document' is not read"),
        ({"question": "Who?", "hint": "A…", "answer": "Ann"}, "'hint' is not read"),
        ({"prompt": "So?", "hypothesis": "A cat.", "completion": "no"}, "'hypothesis' is not"),
        (
            {"instruction": "Who?", "context": "Ann came.", "response": "Ann"},
            "call it input (columns: {input: context}), ",
        ),
        ({"question": "How many?", "answer": 3.0}, "write 3.0 in quotes, or 3"),
        ({"question": "So?", "answer": True}, "answer is bool"),
        ({"question": "Who?", "answer": {"value": "Ann"}}, "answer is dict, not text"),
        ({"prompt": [{"role": "user", "content": "?"}], "completion": 0.5}, "completion is float"),
    ],
)
def test_a_row_of_another_shape_is_told_what_to_change(row, words):
    with pytest.raises(RowError, match=re.escape(words)):
        parse_row(row, 1, Reading("rows"))


def test_empty_columns_and_an_instructions_own_input_are_read():
    for empty in ("", " \n", [], None):
        parse_row({"question": "Who?", "context": empty, "answer": "a"}, 1, Reading("rows"))
    made = parse_row({"instruction": "Say.", "input": "it", "output": "a"}, 1, Reading("rows"))
    assert made.prompt[-1].text == "Say.\n\nit"


def test_a_column_that_names_pictures_is_seen_by_what_is_in_it():
    row = {"question": "Total?", "answer": "5", "scan": "a/b 1.JPG", "note": "see b.png today"}
    assert picture_columns(row, parse_row(row, 1, Reading("rows"))) == {"scan"}
    stored = {"bytes": b"...", "path": None}
    held = {
        "file_name": "a.tiff",
        "invoice_image": " b.webp\n",
        "pages": [None, "1.gif"],
        "first": stored,
        "both": [stored, stored],
        "named": {"bytes": None, "path": "c.bmp"},
        "sound": {"bytes": b"...", "path": "d.wav"},
        "about": "png",
        "parts": [["e.png"], 3],
        "size": {"path": 3},
    }
    row = {"question": "Total?", "answer": "5", **held}
    found = {"file_name", "invoice_image", "pages", "first", "both", "named"}
    assert picture_columns(row, parse_row(row, 1, Reading("rows"))) == found


def test_an_answer_may_be_content_blocks() -> None:
    blocks = [{"type": "text", "text": "Ann"}]
    assert parse_row({"question": "Who?", "answer": blocks}, 1, Reading("rows")).answers == ("Ann",)


LABELS = ["billing", "tech", "other"]
LABEL = {"_type": "ClassLabel", "names": LABELS}


@pytest.fixture
def labelled() -> datasets.Dataset:
    features = datasets.Features(
        {"question": datasets.Value("string"), "answer": datasets.ClassLabel(names=LABELS)}
    )
    rows = {"question": ["a", "b", "c"], "answer": [2, 0, 1]}
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_labels_that_are_stored_as_numbers_are_taught_by_their_names(labelled, tmp_path, kind):
    path = tmp_path / "rows"
    if kind == "folder":
        labelled.save_to_disk(path)
    else:
        path = path.with_suffix(".parquet")
        labelled.to_parquet(path)
    found = read_rows(DataSettings(path=str(path))).examples
    assert [example.answers for example in found] == [("other",), ("billing",), ("tech",)]


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_labels_are_named_by_what_their_columns_are_called_here(tmp_path, kind):
    label = datasets.ClassLabel(names=LABELS)
    features = {"text": datasets.Value("string"), "group": label, "who": label}
    saved = datasets.Dataset.from_dict(
        {"text": ["a", "b"], "group": [2, 0], "who": [1, 0]}, features=datasets.Features(features)
    )
    path = tmp_path / ("rows" if kind == "folder" else "rows.parquet")
    (saved.save_to_disk if kind == "folder" else saved.to_parquet)(path)
    columns = {"question": "text", "answer": "group", "group": "who"}
    found = read_rows(DataSettings(path=str(path), columns=columns)).examples
    assert [(each.answers, each.group) for each in found] == [
        (("other",), "1"),
        (("billing",), "0"),
    ]


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_lists_of_labels_are_named_and_names_of_rows_stay_numbers(tmp_path, kind):
    label = datasets.ClassLabel(names=LABELS)
    features = datasets.Features(
        {
            "id": label,
            "group": label,
            "question": datasets.Value("string"),
            "answer": label,
            "answers": datasets.List(label),
            "turns": datasets.List({"a": datasets.Value("string")}),
        }
    )
    rows = {"id": [2, 0], "group": [1, 1], "question": ["a", "b"], "answer": [2, -1]}
    rows |= {"answers": [[0, 2], [1]], "turns": [[], []]}
    saved = datasets.Dataset.from_dict(rows, features=features)
    path = tmp_path / ("rows" if kind == "folder" else "rows.parquet")
    (saved.save_to_disk if kind == "folder" else saved.to_parquet)(path)
    first, second = read_rows(DataSettings(path=str(path))).examples
    assert first.answers == ("other", "billing")
    # No label (−1) is no answer.
    assert second.answers == ("tech",)
    assert [(each.id, each.group) for each in (first, second)] == [("2", "1"), ("0", "1")]


@pytest.mark.parametrize(
    ("noted", "answer"),
    [
        # As earlier versions of `datasets` wrote lists.
        ({"turns": [{"a": {"_type": "Value"}}], "answer": LABEL}, "tech"),
        ({"answer": {**LABEL, "names": None}}, "1"),
        ({"answer": {"_type": "Value", "dtype": "int64"}}, "1"),
        (["answer"], "1"),
    ],
)
def test_what_a_parquet_file_notes_of_its_columns_may_be_old_or_odd(tmp_path, noted, answer):
    metadata = {"huggingface": json.dumps({"info": {"features": noted}})}
    table = pyarrow.Table.from_pylist([{"question": "a", "answer": 1}])
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), path)
    (example,) = read_rows(DataSettings(path=str(path))).examples
    assert example.answers == (answer,)


def test_a_set_with_configurations_names_all_of_them(monkeypatch):
    names = [f"configuration_{number}" for number in range(60)]

    def load(_):
        raise ValueError(
            f"Config name is missing.\nPlease pick one among the available configs: {names}\n"
            "Example of usage:\n\t`load_dataset('cais/mmlu', 'configuration_0')`"
        )

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(DataError, match="several configurations") as error:
        read_rows(DataSettings(path="cais/mmlu"))
    assert error.value.found.endswith("'configuration_59']")
    assert "load_dataset(path, name)" in error.value.do
    assert "save_to_disk" in error.value.do


@pytest.mark.parametrize("mark", [";", "\t"])
@pytest.mark.parametrize("quote", ["", '"'])
def test_a_csv_file_with_another_separator_is_asked_about(tmp_path, mark, quote):
    rows = [("question", "answer"), ("What is it, then?", "a"), ("Who?", "b")]
    text = "".join(mark.join(f"{quote}{cell}{quote}" for cell in row) + "\n" for row in rows)
    path = tmp_path / "rows.csv"
    path.write_text(text, encoding="utf-8")
    name = {";": ";", "\t": "tabs"}[mark]
    with pytest.raises(DataError, match=f"is the file separated by {name}") as error:
        read_rows(DataSettings(path=str(path), max_refused=2))
    assert "separated by commas" in error.value.do


def test_other_marks_beside_commas_separate_nothing(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('question,answer,"notes; old"\na;b,c,d\n"e\tf",g,h\n', encoding="utf-8")
    found = read_rows(DataSettings(path=str(path))).examples
    assert [(e.prompt[-1].text, e.answers) for e in found] == [("a;b", ("c",)), ("e\tf", ("g",))]


@pytest.mark.parametrize("count", [1, 2])
def test_lines_of_json_under_the_name_of_json_are_to_be_renamed(tmp_path, count):
    path = tmp_path / "rows.json"
    path.write_text('{"question": "a", "answer": "b"}\n' * count, encoding="utf-8")
    with pytest.raises(DataError) as error:
        read_rows(DataSettings(path=str(path)))
    assert "rename it to .jsonl" in error.value.do
    path.write_text('[{"question": "a",\n "answer": "b"}\n', encoding="utf-8")
    with pytest.raises(DataError) as error:
        read_rows(DataSettings(path=str(path)))
    assert "rename" not in error.value.do


def test_a_question_that_is_asked_twice_is_one_cluster_wherever_it_stands(
    tmp_path, png, read
) -> None:
    (tmp_path / "a.png").write_bytes(png())
    table = [
        {"question": "What is IT?", "answer": "a"},
        {"question": " what  is it?", "answer": "b", "system": "Be brief."},
        {"question": "And this?", "answer": "a"},
        {"question": "What is it?", "answer": "a", "group": "g"},
        {"question": "What is it?", "answer": "a", "image": "a.png"},
    ]
    rows = read(*table)
    names = [example.cluster for example in rows.examples]
    assert names[0] == names[1] == f"prompt {rows.examples[0].text_hash[:16]}"
    assert len(set(names)) == 4
    assert names[3] == "g"
    assert names[4] == rows.examples[4].group
    # In another file by the same name; a group that is not given is none in the rows' hash.
    assert read(*table[1:]).examples[0].cluster == names[0]
    assert [example.group for example in rows.examples[:3]] == [None] * 3
