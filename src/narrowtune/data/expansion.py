"""What a processor makes of the placeholders of pictures, and where its tokens stand in the text.

Owns: running the processor, and carrying positions in the rendered text over to its tokens. Some
families repeat the placeholder; others put other text in its place (line breaks, marks around it),
which a tokenizer may join with its surroundings. The latter can only be followed where transformers
says what it has put where.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import PIL.Image
import torch
from torch import Tensor

from narrowtune.core.errors import DataError
from narrowtune.data.collate import PER_TOKEN_FEATURES, TILE_MASK
from narrowtune.data.examples import RowError
from narrowtune.data.template import Span

_OFFSETS, _REPLACED = "offset_mapping", "text_replacement_offsets"
_TOLD_SINCE = "5.12"
"""The first minor version of transformers seen to give `_REPLACED` (5.8 does not)."""


class Tokens(NamedTuple):
    """T tokens, the characters each stands for, and the model's other inputs.

    Attributes:
        ids: [T].
        spans: for each token, characters of the rendered text. Tokens of a picture have its
            placeholder's.
        features: what else the model takes.
        replacements: what was put in the place of each picture, in order; empty where placeholders
            were only repeated.
    """

    ids: list[int]
    spans: list[Span]
    features: dict[str, Tensor]
    replacements: tuple[str, ...] = ()

    def without(self, drop: frozenset[int]) -> Tokens:
        """Return these tokens without those at the positions `drop`."""
        if not drop:
            return self
        kept = [position for position in range(len(self.ids)) if position not in drop]
        features = {
            name: value[kept] if name in PER_TOKEN_FEATURES else value
            for name, value in self.features.items()
        }
        ids, spans = [self.ids[i] for i in kept], [self.spans[i] for i in kept]
        return Tokens(ids, spans, features, self.replacements)


def expand(
    processor: Any,
    text: str,
    tokens: Tokens,
    pictures: Sequence[PIL.Image.Image],
    *,
    placeholders: set[int],
    adds_special_tokens: bool,
    close_gaps: Callable[[str, Sequence[Span]], list[Span]],
) -> Tokens:
    """Run the processor, and say where its tokens stand in `text`.

    Args:
        processor: of the model.
        text: rendered, one placeholder for each picture.
        tokens: of `text` alone.
        pictures: in the order of their placeholders.
        placeholders: ids that stand for pictures.
        adds_special_tokens: whether the tokenizer begins a text with its own token.
        close_gaps: what is done to a tokenizer's offsets, given its text.

    Raises:
        RowError: the processor does not accept the pictures.
        DataError: its tokens can't be found in the text.
    """
    tells = hasattr(processor, "get_text_with_replacements")
    asked = {"return_offsets_mapping": True, f"return_{_REPLACED}": True} if tells else {}
    try:
        out = processor(
            text=[text],
            images=[list(pictures)],
            add_special_tokens=adds_special_tokens,
            return_tensors="pt",
            **asked,
        )
    # Image processors answer sizes that they can't handle with these.
    except (ValueError, ZeroDivisionError, TypeError) as error:
        raise RowError(f"the processor does not accept the pictures: {error}") from None
    ids = out["input_ids"][0].tolist()
    features = {
        name: value[0] if name in PER_TOKEN_FEATURES else torch.as_tensor(value)
        for name, value in out.items()
        if name not in ("input_ids", "attention_mask", _OFFSETS, _REPLACED)
    }
    if TILE_MASK in features:  # eight bytes for each pixel's yes or no
        features[TILE_MASK] = features[TILE_MASK].bool()
    runs = runs_of(tokens.ids, ids, placeholders)
    if runs is not None:
        spans = [
            span for span, length in zip(tokens.spans, runs, strict=True) for _ in range(length)
        ]
        return Tokens(ids, spans, features)
    replaced = out.get(_REPLACED)
    if not replaced:
        raise DataError(
            asked=f"the place of pictures in the tokens of {type(processor).__name__}",
            found="tokens that differ from the tokenizer's in more than repeated placeholders",
            do=f"install transformers {_TOLD_SINCE} or newer, which says what it puts in their "
            "place, and use a model of a supported family (docs/how-to-add-a-family.md)",
        )
    replacements = tuple(each["replacement"] for each in replaced[0])
    whole = put_in_place(text, processor.image_token, replacements)
    spans = close_gaps(whole, [(int(a), int(b)) for a, b in out[_OFFSETS][0].tolist()])
    return Tokens(ids, _carried_back(spans, replaced[0]), features, replacements)


def runs_of(short: Sequence[int], long: Sequence[int], placeholders: set[int]) -> list[int] | None:
    """Return how many tokens of `long` each token of `short` became; None if they don't correspond.

    Only placeholders are repeated. Where several stand side by side, the first takes what the
    others leave, one each.
    """
    runs: list[int] = []
    position = 0
    for index, token in enumerate(short):
        length = 1
        if token in placeholders:
            while long[position + length : position + length + 1] == [token]:
                length += 1
            beside = index + 1
            while beside < len(short) and short[beside] == token:
                beside += 1
            length -= beside - index - 1
        if position >= len(long) or long[position] != token or length < 1:
            return None
        runs.append(length)
        position += length
    return runs if position == len(long) else None


def put_in_place(text: str, placeholder: str, replacements: Sequence[str]) -> str:
    """Return `text` with its placeholders replaced, in order."""
    pieces = text.split(placeholder)
    assert len(pieces) == len(replacements) + 1, "a placeholder for each picture"
    return "".join(part for pair in zip(pieces, (*replacements, ""), strict=True) for part in pair)


def _carried_back(spans: Sequence[Span], replaced: Sequence[Mapping[str, Any]]) -> list[Span]:
    """Return spans of the text with replacements as spans of the text with placeholders.

    A token that is partly of a replacement and partly of the text around it covers the placeholder
    and that part.
    """
    shifts = [(tuple(each["new_span"]), tuple(each["span"])) for each in replaced]

    def back(place: int, *, ends: bool) -> int:
        shift = 0
        for (new_start, new_end), (start, end) in shifts:
            if place < new_start or (ends and place == new_start):
                break
            if place < new_end or (ends and place == new_end):
                return end if ends else start
            shift = new_end - end
        return place - shift

    carried = []
    for start, end in spans:
        first = back(start, ends=False)
        carried.append((first, first if start == end else back(end, ends=True)))
    return carried
