"""A turn's content: text, `<image>` tags and content blocks become pieces in order.

Owns: how pictures are bound to places in the text.

Pictures are bound by position. In text, the n-th `<image>` tag of the user's turns is the row's
n-th picture, and there must be as many of each; without any tag the pictures come before the first
user turn's text. In content blocks, an image block without a source takes the row's next picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from narrowtune.data.examples import ROLES, Image, Message, RowError, Text
from narrowtune.data.images import image_reference

IMAGE_TAG = "<image>"

_UNSUPPORTED = ("tool_calls", "function_call", "reasoning_content", "tool_call_id")
_LEARNED = ("weight", "loss", "train", "train_on_turn", "training", "trainable")
"""What formats of other tools mark a turn by that is to be learned (1 or true), or not."""
_LEARNED_IN_PARTS = "train_detail"  # Axolotl's


def need_text(value: Any, what: str) -> str:
    """Return `value` if it is usable text.

    Raises:
        RowError: it is missing, of another type, blank, or not valid Unicode.
    """
    if value is None:
        raise RowError(f"{what} is missing")
    if not isinstance(value, str):
        hint = "; write it as text" if isinstance(value, (int, float)) else ""
        raise RowError(f"{what} is {type(value).__name__}, not text{hint}")
    if not value.strip():
        raise RowError(f"{what} is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise RowError(f"{what} is not valid UTF-8") from None
    return value


def build_messages(
    turns: Sequence[dict[str, Any]], images: Sequence[Image], *, tags: bool, root: Path | None
) -> tuple[Message, ...]:
    """Turn `{role, content}` dictionaries into messages with their pictures bound.

    Args:
        turns: content is a string or a list of blocks.
        images: the row's own list of pictures.
        tags: whether `<image>` tags name pictures even where the row has none (then the row is
            refused); otherwise such a tag in a row without pictures is text.
        root: folder for pictures that blocks name by path.

    Raises:
        RowError: an unknown role or block, blank text, or pictures that can't be bound.
    """
    binder = _Binder(images, root)
    num_tags = sum(_num_tags(turn) for turn in turns)
    bind_tags = num_tags > 0 and (bool(images) or tags)
    if bind_tags and num_tags != len(images):
        raise RowError(f"{num_tags} {IMAGE_TAG} tags and {len(images)} pictures")
    messages = []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict):
            raise RowError(f"turn {number} is {type(turn).__name__}, not role and content")
        messages.append(binder.message(turn, number, bind_tags))
    if not binder.used and images:
        _put_first(messages, images)
    elif binder.left:
        raise RowError(f"{len(images)} pictures, {binder.left} of them without a place")
    return tuple(messages)


def _num_tags(turn: Any) -> int:
    if not isinstance(turn, dict) or turn.get("role") != "user":
        return 0
    content = turn.get("content")
    return content.count(IMAGE_TAG) if isinstance(content, str) else 0


def _put_first(messages: list[Message], images: Sequence[Image]) -> None:
    for index, message in enumerate(messages):
        if message.role == "user":
            messages[index] = Message("user", (*images, *message.content))
            return
    raise RowError("pictures, and no user turn to put them in")


class _Binder:
    """Hands out the row's pictures in order."""

    def __init__(self, images: Sequence[Image], root: Path | None) -> None:
        self.images, self.root = list(images), root
        self.used = 0

    @property
    def left(self) -> int:
        return len(self.images) - self.used

    def take(self) -> Image:
        if not self.left:
            raise RowError(f"an image block, and only {len(self.images)} pictures in the row")
        self.used += 1
        return self.images[self.used - 1]

    def message(self, turn: dict[str, Any], number: int, bind_tags: bool) -> Message:
        role, content = turn.get("role"), turn.get("content")
        if role not in ROLES:
            raise RowError(f"turn {number} has the role {role!r}; known are {', '.join(ROLES)}")
        for key in _UNSUPPORTED:
            if turn.get(key):
                raise RowError(f"turn {number} has {key}, which is not supported")
        if role == "assistant" and turn.get(_LEARNED_IN_PARTS):
            raise RowError(f"turn {number} has {_LEARNED_IN_PARTS}, which is not supported")
        what = f"turn {number} ({role})"
        if isinstance(content, list):
            parts = tuple(self._blocks(content, what))
        elif isinstance(content, str) and bind_tags and role == "user":
            parts = tuple(self._tagged(content))
        else:
            parts = (Text(need_text(content, what)),)
        if not parts:
            raise RowError(f"{what} is empty")
        if role != "user" and any(isinstance(part, Image) for part in parts):
            raise RowError(f"{what} has a picture; only user turns can")
        return Message(role, parts, role != "assistant" or _is_learned(turn, number))

    def _tagged(self, content: str) -> Iterator[Text | Image]:
        pieces = content.split(IMAGE_TAG)
        for index, piece in enumerate(pieces):
            if index:
                yield self.take()
                # The line break beside a tag belongs to the tag: templates write their own.
                piece = piece.removeprefix("\n")
            if index == len(pieces) - 2 and not pieces[-1].strip():
                piece = piece.removesuffix("\n")
            if piece.strip():
                yield Text(need_text(piece, "a user turn"))

    def _blocks(self, blocks: list[Any], what: str) -> Iterator[Text | Image]:
        for block in blocks:
            if not isinstance(block, dict):
                raise RowError(f"{what} has a content block that is {type(block).__name__}")
            kind = block.get("type")
            if kind == "text":
                yield Text(need_text(block.get("text"), f"{what}, a text block,"))
            elif kind in ("image", "image_url"):
                source = _block_source(block)
                yield self.take() if source is None else image_reference(source, self.root)
            else:
                raise RowError(f"{what} has a content block of type {kind!r}")


def _is_learned(turn: dict[str, Any], number: int) -> bool:
    """Whether an assistant's turn is to be learned: it is, unless a mark says no."""
    marks = {key: turn[key] for key in _LEARNED if turn.get(key) is not None}
    for key, value in marks.items():
        if value not in (0, 1):
            raise RowError(
                f"turn {number} has {key}: {value!r}; a turn is learned (1 or true) or not (0 or "
                "false), and nothing between"
            )
    return all(marks.values())


def _block_source(block: dict[str, Any]) -> Any:
    """The picture that an image block names itself; None if it takes the row's next one."""
    for key in ("image", "image_url", "path", "url", "bytes"):
        value = block.get(key)
        if value is not None:
            nested = isinstance(value, dict) and key == "image_url"
            return value.get("url") if nested else value
    return None
