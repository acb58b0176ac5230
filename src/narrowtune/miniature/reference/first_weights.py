"""What a reference model's weights are before it has learned anything.

Owns: their size, and the heads that begin with looking up.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn


class _Head(NamedTuple):
    """What a head of `look_up` does, and how many places back."""

    name: str
    back: int = 0


_LOOKING_UP = {
    0: (_Head("back", 1), _Head("back", 2), _Head("row", 1)),
    1: (_Head("after"), _Head("before", 1), _Head("before", 2)),
    2: (_Head("column", 1),),
    3: (_Head("after"), _Head("before", 1), _Head("before", 2)),
}
"""By layer."""

_AXES = {"row": 1, "column": 2}
"""Which of time, height and width is the same in a row, and in a column."""

_NUM_TURNS = 6  # the fastest, which tell neighbours apart
_STEADINESS = 240**0.5  # as `_SHARPNESS`, of heads that keep to an axis: its turns are slower
_TIMELINESS = (
    140**0.5
)  # the same for time: a picture's first columns must not prefer what is before
_SHARPNESS = 60**0.5  # its square, times a turn's cosine, is added to scores before their scaling
_AWAY = 45**0.5  # the same for what a finding head takes from its nearest
_CLEARER = 1.5  # than the identity are a finding head's queries and keys
_FAINT = 0.7  # of what is told, so that it does not drown a token's own embedding
_ASIDE = 0.3  # of what is random beside
_QUIET = 0.05  # the same for heads that keep to an axis


def widen(part: nn.Module) -> None:
    """Draw matrices anew, so that they keep the size of what goes through them.

    transformers' deviation of 0.02 is for widths in the thousands. Words are of size 1, and what
    adds to them begins at nothing: layers can only find a word by what it is as long as that is not
    drowned by what they write. The last norm's weights keep a tied head's scores at that size.
    """
    for name, module in part.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if name.endswith(("o_proj", "down_proj")):
                nn.init.zeros_(module.weight)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
            nn.init.constant_(part.get_parameter("norm.weight"), module.embedding_dim**-0.5)


@torch.no_grad()
def look_up(language_model: Any, *, row_length: int) -> None:
    """Let some heads begin with what every looking-up needs; training is free to undo it.

    Args:
        row_length: tokens of a picture's row and its end, where positions have a single axis.

    "Which letter stands before red?" finds the same word elsewhere and tells what stood before it.
    Heads that pass on the token before, and heads whose queries and keys agree on what a token is,
    gain nothing before the other is there: from random weights neither had formed after a thousand
    steps (docs/LOG.md). A width of three heads has a third for what a token is, a third for the
    token before it and a third for the one two before.

    * Looking back: biases of queries and keys whose score is highest one or two places back, by the
      rotary turn between them; what a token is goes to the second or third third.
    * In pictures, where rotary positions have height and width: looking along the row, and along
      the column, at all that stands before; in text, these look one place back. What is beside a
      word or under an icon is found in the same way as what stands behind a word. Where positions
      have one axis, the token above is a row's length back, and nothing tells rows apart.
    * Finding a token by what it is, away from itself, and telling what stood one or two before it.
    * Finding it by what stood before it, and telling what it is.
    """
    config = language_model.config
    size = config.hidden_size // config.num_attention_heads
    thirds = [slice(place * size, (place + 1) * size) for place in range(3)]
    what = thirds[0]
    embeddings = language_model.embed_tokens.weight
    embeddings[:, size:] *= _ASIDE
    turns = language_model.rotary_emb.inv_freq[:_NUM_TURNS]
    axes = _axes(config)
    for place, heads in _LOOKING_UP.items():
        attention = language_model.layers[place].self_attn
        query, key, value, out = (
            getattr(attention, f"{name}_proj") for name in ("q", "k", "v", "o")
        )
        for head, kind in enumerate(heads):
            back = kind.back
            if kind.name in _AXES and not axes:
                if kind.name == "row":
                    continue
                back = row_length
            rows = slice(head * size, (head + 1) * size)
            first = slice(rows.start, rows.start + _NUM_TURNS)
            second = slice(first.start + size // 2, first.stop + size // 2)
            value.weight[rows] *= _ASIDE
            # Large biases make what is random loud: it would pick one place of a row.
            query.weight[rows] *= _QUIET if kind.name in _AXES else _ASIDE
            key.weight[rows] *= _QUIET if kind.name in _AXES else _ASIDE
            looks_back = kind.name in ("back", *_AXES)
            told = thirds[kind.back] if kind.name == "before" else what
            target = thirds[kind.back] if looks_back else what
            if not looks_back:
                sharp = _CLEARER * torch.eye(size)
                query.weight[rows, what] += sharp
                key.weight[rows, thirds[1] if kind.name == "after" else what] += sharp
            value.weight[rows, told] += torch.eye(size)
            out.weight[target, rows] += _FAINT * torch.eye(size)
            if kind.name == "back" or (kind.name in _AXES and not axes):
                angle = back * turns
                key.bias[first] = _SHARPNESS
                query.bias[first] = _SHARPNESS * angle.cos()
                query.bias[second] = -_SHARPNESS * angle.sin()
            elif kind.name in _AXES:
                # One place back in time, which stands still in a picture.
                own = (_AXES[kind.name], 0, _STEADINESS)
                for axis, back, strength in ((0, 1, _TIMELINESS), own):
                    chosen = [turn for turn in range(_NUM_TURNS) if axes[turn] == axis]
                    places = torch.tensor(chosen) + rows.start
                    angles = back * language_model.rotary_emb.inv_freq[chosen]
                    key.bias[places] = strength
                    query.bias[places] = strength * angles.cos()
                    query.bias[places + size // 2] = -strength * angles.sin()
            elif kind.name == "before":
                key.bias[first], query.bias[first] = _AWAY, -_AWAY


def _axes(config: Any) -> list[int]:
    """Return which axis (time, height, width) each turn is of; nothing where there is but one."""
    sections = config.rope_parameters.get("mrope_section", ())
    return [number % 3 for number, width in enumerate(sections) for _ in range(width)]
