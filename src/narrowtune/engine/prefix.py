"""What many prompts begin with, computed once.

A chat template's system turn, or an instruction that every row repeats, is the same in every
prompt. Its keys and values depend on nothing after it, so one forward pass over it serves every
batch: prompts go on from a copy of its cache.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from narrowtune.data.collate import Encoded, collate
from narrowtune.engine.padding import attends

MIN_TOKENS = 8
"""A shorter prefix is not worth a pass of its own."""


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
        """Collate prompts for `generate`: the prefix, then padding, then each prompt's rest.

        Padding stands between prefix and rest and is masked, so positions go on without a gap.
        """
        start = len(self.token_ids)
        rests = [
            replace(p, input_ids=p.input_ids[start:], labels=p.labels[start:]) for p in prompts
        ]
        batch: dict[str, Any] = collate(rests, pad_token_id, padding_side="left")
        ahead = torch.tensor(self.token_ids).expand(len(prompts), start)
        batch["input_ids"] = torch.cat([ahead, batch["input_ids"]], dim=1)
        mask: Tensor = batch["attention_mask"]
        batch["attention_mask"] = torch.cat([mask.new_ones(len(prompts), start), mask], dim=1)
        cache = copy.deepcopy(self.cache)
        cache.batch_repeat_interleave(len(prompts))
        return {**batch, "past_key_values": cache}


@torch.inference_mode()
def share_prefix(
    model: PreTrainedModel, prompts: Sequence[Encoded], max_new_tokens: int
) -> Prefix | None:
    """Compute what `prompts` have in common at their beginning.

    None where that is too little to pay, where rows carry pictures or other features, or where
    the model's attention reaches back a limited number of places, or some of its layers keep a
    state: padding behind the prefix would count.
    """
    if len(prompts) < 2 or any(prompt.features for prompt in prompts):
        return None
    rows = [prompt.input_ids for prompt in prompts]
    # What the first and the last in lexical order share, all share; every prompt keeps a token.
    pairs = zip(min(rows), max(rows), strict=False)
    same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    shared = min(same, min(map(len, rows)) - 1)
    longest = max(len(prompt.input_ids) for prompt in prompts) + max_new_tokens
    text: Any = model.config.get_text_config()
    window = getattr(text, "sliding_window", None)
    if not attends(text) or shared < MIN_TOKENS or (window is not None and longest > window):
        return None
    token_ids = tuple(prompts[0].input_ids[:shared])
    ids = torch.tensor([token_ids], device=model.device)
    return Prefix(token_ids, model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values)
