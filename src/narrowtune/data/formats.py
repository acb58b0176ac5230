"""Every accepted layout of a row becomes an `Example`.

Owns: what is read from which layout. docs/data.md lists them; which one a row has is in columns.py.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from narrowtune.core.data_settings import PAIRS
from narrowtune.data.columns import kind_of, listed
from narrowtune.data.content import build_messages, need_text
from narrowtune.data.examples import Example, Image, Message, RowError
from narrowtune.data.images import image_reference

_LLAVA_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}

_ASKED_TOO = ("context", "passage", "document", "choices", "hint", "premise", "hypothesis", "input")
"""Columns of known data sets that belong to the question, and that no layout of pairs reads, but
for `input` beside `instruction`: a question without them is another one."""

_UNSUPPORTED = ("history", "tools", "functions", "videos", "video", "audio")

_SHOWN = 80  # characters of options, or of an answer


@dataclass(frozen=True)
class Reading:
    """How rows are to be read.

    Attributes:
        stem: of the file; names rows without an id.
        root: folder for pictures; None if paths can't be used.
        prompts_only: rows need no answer, and an answer is left out.
        needs_options: rows must list options with the answer among them.
    """

    stem: str
    root: Path | None = None
    prompts_only: bool = False
    needs_options: bool = False


def parse_row(row: dict[str, Any], number: int, reading: Reading) -> Example:
    """Return the row as an example; its pictures are not opened yet.

    Raises:
        RowError: the row can't be used; the reason says why.
    """
    row = {key: value for key, value in row.items() if value is not None}
    for key in _UNSUPPORTED:
        if row.get(key):
            raise RowError(f"column {key!r} is not supported")
    images = _images(row, reading.root)
    turns, tags = _turns(row, reading)
    messages = build_messages(turns, images, tags=tags, root=reading.root)
    _check_turns(messages, reading)
    answers = _answers(row, messages)
    if reading.prompts_only:
        answers = ()
        if messages[-1].role == "assistant":
            messages = messages[:-1]
    options = tuple(_texts(row.get("options"), "options"))
    if reading.needs_options and (len(options) < 2 or not set(answers) & set(options)):
        told = " / ".join(options)[:_SHOWN] or "none"
        raise RowError(
            "mode 'options' needs two or more options with the answer among them: "
            f"options are {told!r}, the answer is {answers[0][:_SHOWN]!r}"
        )
    return Example(
        id=_name(row.get("id"), "id") or f"{reading.stem}:{number}",
        messages=messages,
        answers=answers,
        options=options,
        group=_name(row.get("group"), "group"),
        row=number,
    )


def _turns(row: dict[str, Any], reading: Reading) -> tuple[list[dict[str, Any]], bool]:
    """The row's turns, and whether its layout is one that defines `<image>` tags."""
    kind = kind_of(row)
    if kind in PAIRS:
        return _pair_turns(row, kind, reading)
    turns = row[kind]
    if not isinstance(turns, list) or not turns:
        raise RowError(f"{kind} is not a list of turns")
    if not all(isinstance(turn, dict) for turn in turns):
        raise RowError(f"{kind} has a turn that is not keys and values")
    if "from" in turns[0] and (kind == "conversations" or turns[0].get("role") is None):
        turns = [_llava_turn(turn) for turn in turns]
    # Arrow fills keys that other turns have with nulls.
    turns = [{key: value for key, value in turn.items() if value is not None} for turn in turns]
    return _with_system(row, turns), True


def _llava_turn(turn: dict[str, Any]) -> dict[str, Any]:
    role = turn.get("from")
    if role not in _LLAVA_ROLES:
        raise RowError(f"a turn is from {role!r}; known are {', '.join(_LLAVA_ROLES)}")
    # What else the turn says is kept: whether it is to be learned may be among it.
    return {**turn, "role": _LLAVA_ROLES[role], "content": turn.get("value")}


def _pair_turns(
    row: dict[str, Any], asked: str, reading: Reading
) -> tuple[list[dict[str, Any]], bool]:
    prompt, answer = row[asked], row.get(PAIRS[asked])
    _check_asked(row, asked)
    _check_answer(answer, PAIRS[asked])
    # TRL's conversational layout: both sides are lists of messages, the completion's are learned.
    if isinstance(prompt, list):
        if answer is None:
            return _with_system(row, prompt), True
        rest = answer if isinstance(answer, list) else _assistant(answer)
        given = [{**turn, "train": False} if isinstance(turn, dict) else turn for turn in prompt]
        return _with_system(row, [*given, *rest]), True
    text = need_text(prompt, asked)
    if asked == "instruction" and row.get("input"):
        text = f"{text}\n\n{need_text(row['input'], 'input')}"
    if answer is None and row.get("answers"):
        answer = next(iter(_texts(row["answers"], "answers")), None)
    if answer is None and not reading.prompts_only:
        others = [name for name in PAIRS.values() if name in row]
        named = f"; call {others[0]} {PAIRS[asked]}" if others else ""
        raise RowError(f"{PAIRS[asked]} is missing; the row has {listed(row)}{named}")
    turns = [{"role": "user", "content": text}, *_assistant(answer)]
    return _with_system(row, turns), False


def _check_asked(row: dict[str, Any], asked: str) -> None:
    """Refuse a question whose other part stands in a column that nothing is read from."""
    for key in _ASKED_TOO:
        value = row.get(key)
        is_empty = not value or (isinstance(value, str) and not value.strip())
        if is_empty or (key, asked) == ("input", "instruction"):
            continue
        ways = f"write it into {asked}"
        if asked == "instruction" and "input" not in row:
            ways = f"call it input (columns: {{input: {key}}}), write it into {asked}"
        raise RowError(
            f"column {key!r} is not read, and seems to belong to the question: {ways}, or leave it "
            f"out (columns: {{{key}: null}})"
        )


def _check_answer(answer: Any, column: str) -> None:
    """Refuse an answer that can't be read, by its column's name: turns have none."""
    if isinstance(answer, list):
        # Content blocks, or TRL's messages, are lists of dictionaries.
        if answer and not any(isinstance(item, dict) for item in answer):
            raise RowError(f"{column} is a list: accepted answers go into the column answers")
    elif isinstance(answer, float):
        whole = f", or {answer:.0f}" if answer.is_integer() else ""
        raise RowError(f"{column} is float, not text: write {answer!r} in quotes{whole}")
    elif answer is not None:
        need_text(_answer_text(answer), column)


def _assistant(answer: Any) -> list[dict[str, Any]]:
    return [] if answer is None else [{"role": "assistant", "content": _answer_text(answer)}]


def _with_system(row: dict[str, Any], turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    system = row.get("system")
    if not system:
        return turns
    if turns and isinstance(turns[0], dict) and turns[0].get("role") == "system":
        raise RowError("ambiguous: a system column and a system turn")
    return [{"role": "system", "content": need_text(system, "system")}, *turns]


def _check_turns(messages: Sequence[Message], reading: Reading) -> None:
    roles = [message.role for message in messages]
    if "system" in roles[1:]:
        raise RowError("a system turn that is not the first")
    spoken = roles[1:] if roles[0] == "system" else roles
    if not spoken or spoken[0] != "user":
        raise RowError("no user turn before the answer")
    if roles[-1] != "assistant" and not reading.prompts_only:
        raise RowError("no answer: the last turn is not the assistant's")
    if not messages[-1].is_learned and not reading.prompts_only:
        raise RowError(
            "its last turn is marked as not to be learned: end the row with the last that is"
        )


def _answers(row: dict[str, Any], messages: Sequence[Message]) -> tuple[str, ...]:
    """The trained answer first, then the other accepted ones."""
    final = [messages[-1].text] if messages[-1].role == "assistant" else []
    return tuple(dict.fromkeys([*final, *_texts(row.get("answers"), "answers")]))


def _answer_text(value: Any) -> Any:
    """Whole numbers may stand for their digits; 3.0 may not, as "3" and "3.0" are two answers."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _texts(value: Any, what: str) -> list[str]:
    """A list of texts; in CSV it is written as a JSON list."""
    value = _json_cell(value, what)
    if value is None:
        return []
    if isinstance(value, dict) and "text" in value:
        raise RowError(f"{what} has keys, as in SQuAD: give the list under its text")
    if not isinstance(value, (list, tuple)):
        raise RowError(f"{what} is {type(value).__name__}, not a list of texts")
    return [need_text(_answer_text(item), f"one of {what}") for item in value]


def _json_cell(value: Any, what: str) -> Any:
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise RowError(f"{what} is text that is not a JSON list") from None


def _images(row: dict[str, Any], root: Path | None) -> list[Image]:
    if "image" in row and "images" in row:
        raise RowError("ambiguous: columns image and images")
    value = row.get("images", row.get("image"))
    if isinstance(value, str):
        value = _json_cell(value, "images")
    if value is None:
        return []
    values = value if isinstance(value, list) else [value]
    return [image_reference(item, root) for item in values]


def _name(value: Any, what: str) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise RowError(f"{what} is {type(value).__name__}, not text or a whole number")
    return need_text(str(value), what)
