"""The reference models' tokenizer: byte-level BPE on the small world's words.

Owns: what it is trained on, and its special tokens. The class is Qwen2's, whose split into words
keeps every digit by itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from random import Random
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer

from narrowtune.miniature.registry import TASKS
from narrowtune.miniature.vocabulary import vocabulary

VOCABULARY_SIZE = 1536
"""Entries before the special tokens: 256 bytes, and the words that come up often; others are
spelt in a few parts."""

_NUM_TEXTS = 2000  # of each task
_NUM_CHATS = 20000  # as often as a turn begins, more or less
_ROLES = ("user", "assistant", "system")
_END, _TURN, _TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"


def train_tokenizer(placeholders: tuple[str, ...]) -> Qwen2Tokenizer:
    """Return the tokenizer; the same on every machine.

    Args:
        placeholders: special tokens of the architecture, such as the one that stands for a picture.
    """
    entries, merges = _trained()
    tokenizer = Qwen2Tokenizer(
        vocab=dict(entries), merges=list(merges), eos_token=_TURN_END, pad_token=_END
    )
    specials = [_END, _TURN, _TURN_END, *placeholders]
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in specials])
    return tokenizer


@cache
def _trained() -> tuple[dict[str, int], list[Any]]:
    """Return the entries with their numbers, and the merges in order."""
    core = Tokenizer(models.BPE())
    core.normalizer = Qwen2Tokenizer().backend_tokenizer.normalizer
    core.pre_tokenizer = Qwen2Tokenizer().backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(_texts(), trainer)
    merges = json.loads(core.to_str())["model"]["merges"]
    pairs = (merge if isinstance(merge, list) else merge.split(" ") for merge in merges)
    return core.get_vocab(with_added_tokens=False), [(left, right) for left, right in pairs]


def _texts() -> Iterator[str]:
    """Yield questions and answers of every task, and who speaks.

    The skills' words are among them: a tokenizer that had to spell what is taught would make the
    skills harder than they are.
    """
    for _ in range(_NUM_CHATS):
        yield from _ROLES
    for task in TASKS.values():
        for number in range(_NUM_TEXTS):
            item = task.make(Random(f"tokenizer {task.name} {number}"))
            yield item.question
            yield item.answers[0]
    # Every word after a space and by itself, however rare.
    for word in vocabulary():
        yield f" {word}"
        yield word
