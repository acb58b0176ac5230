"""What prompts begin with, computed once.

A chat template's system turn, or an instruction that every row repeats, is the same in every
prompt; and questions about one picture have the picture and what stands before it in common. Keys
and values depend on nothing after them, so one forward pass over such a beginning serves all that
share it: prompts go on from a copy of its cache.

Owns: which prompts share a beginning, its cache, and the batch that goes on from it.
Shapes: B prompts, G beginnings, P tokens of the longest of them, R of the longest rest.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from narrowtune.data.collate import PER_TOKEN_FEATURES, Encoded, collate
from narrowtune.engine.forward import to_device
from narrowtune.engine.packing import is_packing_allowed
from narrowtune.engine.padding import attends, attends_causally
from narrowtune.engine.pictures import picture_shift, picture_tokens

MIN_TOKENS = 8
"""A shorter prefix is not worth a pass of its own."""

_MARGIN = 1.05
"""By which positions must be fewer where pictures are shared: that takes a second pass."""


@dataclass(frozen=True)
class Prefix:
    """Tokens that all prompts begin with, and the cache of their keys and values.

    Attributes:
        token_ids: [P].
        cache: of one row; `batch` copies it.
    """

    token_ids: tuple[int, ...]
    cache: Cache

    def batch(self, prompts: Sequence[Encoded], pad_token_id: int) -> dict[str, Any]:
        """Collate prompts for `generate`: the prefix, then padding, then each prompt's rest."""
        start = len(self.token_ids)
        ahead = torch.tensor(self.token_ids).expand(len(prompts), start)
        cache = copy.deepcopy(self.cache)
        cache.batch_repeat_interleave(len(prompts))
        rests = [_rest(prompt, start) for prompt in prompts]
        return _behind(ahead, torch.ones_like(ahead), cache, rests, pad_token_id)


class Shared(NamedTuple):
    """A batch that goes on from the beginnings of its prompts.

    Attributes:
        batch: for `generate`, on the model's device.
        shift: as from `picture_shift`.
    """

    batch: dict[str, Any]
    shift: Tensor | None


@torch.inference_mode()
def share_prefix(
    model: PreTrainedModel, prompts: Sequence[Encoded], max_new_tokens: int
) -> Prefix | None:
    """Compute what `prompts` have in common at their beginning.

    None where that is too little to pay, where rows carry pictures or other features
    (`share_pictures`), or where the model's attention reaches back a limited number of places, or
    some of its layers keep a state: padding behind the prefix would count.
    """
    if len(prompts) < 2 or any(prompt.features for prompt in prompts):
        return None
    rows = [prompt.input_ids for prompt in prompts]
    shared = _num_alike(rows)
    longest = max(map(len, rows)) + max_new_tokens
    text: Any = model.config.get_text_config()
    if not attends(text) or shared < MIN_TOKENS or _is_beyond_window(text, longest):
        return None
    token_ids = tuple(prompts[0].input_ids[:shared])
    ids = torch.tensor([token_ids], device=model.device)
    return Prefix(token_ids, model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values)


def picture_kin(model: PreTrainedModel, prompts: Sequence[Encoded]) -> list[int]:
    """Return for each prompt the first that has the same pictures, and before them the same.

    A prompt without such others, without pictures, or with nothing behind them is by itself. So is
    every prompt of a model with layers that keep a state: padding behind a beginning would count.
    """
    own = list(range(len(prompts)))
    if not is_packing_allowed() or not attends_causally(model.config.get_text_config()):
        return own
    alike: dict[Any, list[int]] = {}
    for index, prompt in enumerate(prompts):
        end = _end_of_pictures(model, prompt)
        if 0 < end < len(prompt.input_ids):
            alike.setdefault(tuple(prompt.input_ids[:end]), []).append(index)
    for group in alike.values():
        firsts: dict[str, int] = {}
        for index in group if len(group) > 1 else ():
            own[index] = firsts.setdefault(prompts[index].picture_digest, index)
    return own


@torch.inference_mode()
def share_pictures(
    model: PreTrainedModel, prompts: Sequence[Encoded], max_new_tokens: int, pad_token_id: int
) -> Shared | None:
    """Compute once what prompts about the same pictures begin with, these among it.

    Beginnings are rows of one batch, padded on the right, and each prompt goes on from its own.
    Rows that share none are cut where the others' beginnings end.

    Returns:
        None where it is not exact, or takes no fewer positions: nothing is shared
        (`picture_kin`), a picture stands at a prompt's end, or attention reaches back fewer places
        than there are, padding included.
    """
    kin = picture_kin(model, prompts)
    firsts = sorted(set(kin))
    ends = [_end_of_pictures(model, prompt) for prompt in prompts]
    rows = [prompt.input_ids for prompt in prompts]
    if len(firsts) == len(prompts) or any(e >= len(r) for e, r in zip(ends, rows, strict=True)):
        return None
    starts = {}
    for first in firsts:
        group = [row for row, each in zip(rows, kin, strict=True) if each == first]
        if len(group) > 1:
            starts[first] = _num_alike(group)
    most = max(starts.values())
    for first in firsts:
        starts.setdefault(first, max(ends[first], min(most, len(rows[first]) - 1)))
    most = max(starts.values())
    rests = [_rest(prompt, starts[first]) for prompt, first in zip(prompts, kin, strict=True)]
    longest = max(len(rest.input_ids) for rest in rests)
    positions = len(firsts) * most + len(prompts) * longest
    text: Any = model.config.get_text_config()
    pays = _MARGIN * positions < len(prompts) * max(map(len, rows))
    if not pays or _is_beyond_window(text, most + longest + max_new_tokens):
        return None
    beginnings = [_beginning(prompts[first], starts[first]) for first in firsts]
    ahead = collate(beginnings, pad_token_id)
    del ahead["labels"]
    given = to_device(ahead, model.device)
    cache = model(**given, use_cache=True, logits_to_keep=1).past_key_values
    of = torch.tensor([firsts.index(first) for first in kin])
    cache.reorder_cache(of)
    shift = picture_shift(model)
    batch = _behind(ahead["input_ids"][of], ahead["attention_mask"][of], cache, rests, pad_token_id)
    return Shared(
        to_device(batch, model.device), None if shift is None else shift[of.to(shift.device)]
    )


def _behind(
    ids: Tensor, mask: Tensor, cache: Cache, rests: Sequence[Encoded], pad_token_id: int
) -> dict[str, Any]:
    """Collate rests for `generate`, behind what was computed: [B, P + R].

    Padding stands between the two and is masked, so positions go on without a gap.
    """
    batch: dict[str, Any] = collate(rests, pad_token_id, padding_side="left")
    del batch["labels"]
    batch["input_ids"] = torch.cat([ids, batch["input_ids"]], dim=1)
    batch["attention_mask"] = torch.cat([mask, batch["attention_mask"]], dim=1)
    return {**batch, "past_key_values": cache}


def _beginning(prompt: Encoded, end: int) -> Encoded:
    features = {
        name: value.flatten()[:end] if name in PER_TOKEN_FEATURES else value
        for name, value in prompt.features.items()
    }
    return Encoded(prompt.input_ids[:end], prompt.labels[:end], features)


def _rest(prompt: Encoded, start: int) -> Encoded:
    """Return what stands behind a beginning, which is text."""
    return Encoded(prompt.input_ids[start:], prompt.labels[start:])


def _num_alike(rows: Sequence[list[int]]) -> int:
    """Return how many tokens all rows begin with alike; every row keeps one of its own."""
    # What the first and the last in lexical order share, all share.
    pairs = zip(min(rows), max(rows), strict=False)
    same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    return min(same, min(map(len, rows)) - 1)


def _end_of_pictures(model: PreTrainedModel, prompt: Encoded) -> int:
    """Return how many tokens a prompt has up to its last picture's end; 0 without any."""
    tokens = picture_tokens(model) if prompt.features else ()
    ids = prompt.input_ids
    return next((end for end in range(len(ids), 0, -1) if ids[end - 1] in tokens), 0)


def _is_beyond_window(text: Any, longest: int) -> bool:
    window = getattr(text, "sliding_window", None)
    return window is not None and longest > window
