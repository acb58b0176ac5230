"""A prefix that prompts share is computed once, and changes no answer."""

from __future__ import annotations

import pytest
import torch

from narrowtune.data.chat import ChatEncoder
from narrowtune.data.examples import Message, Text
from narrowtune.engine import generate
from narrowtune.engine.prefix import share_prefix
from narrowtune.models.load import load_model
from tiny_models import FAMILIES

SYSTEM = "You are a careful assistant who answers every question about the sea in one short word."


def _prompts(encoder: ChatEncoder, system: bool = True):
    turns = []
    for i, word in enumerate(("stone", "rain on the roof", "milk", "bread and a pen", "sun")):
        user = (SYSTEM + " " if system else "") + f"{word} {i}?"
        turns.append((Message("user", (Text(user),)),))
    return [encoder.encode_prompt(messages) for messages in turns]


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_with_and_without_the_shared_prefix_agree(tiny, family):
    loaded = load_model(str(tiny(family)), device="cpu")
    prompts = _prompts(ChatEncoder(loaded.tokenizer, loaded.processor))
    decoder = generate._Decoder(
        loaded, generate.stop_tokens(loaded), collect=lambda logits: logits.clone()
    )
    with generate.evaluating(loaded.model):
        prefix = share_prefix(loaded.model, prompts, 4)
        if family == "gemma3_text":  # its window is shorter than these rows
            assert prefix is None
            return
        assert prefix is not None
        assert len(prefix.token_ids) >= 8
        shared = decoder.decode(prompts, 4, prefix)
        again = decoder.decode(prompts, 4, prefix)
        plain = [decoder.decode([prompt], 4)[0] for prompt in prompts]
    for one, two, three in zip(shared, plain, again, strict=True):
        assert one.step_ids == two.step_ids == three.step_ids
        torch.testing.assert_close(one.collected, two.collected, rtol=1e-4, atol=1e-5)


def test_nothing_in_common_means_no_prefix(tiny):
    loaded = load_model(str(tiny("llama")), device="cpu")
    prompts = _prompts(ChatEncoder(loaded.tokenizer))
    assert share_prefix(loaded.model, prompts[:1], 4) is None
    different = [*prompts, type(prompts[0])([5, 6, 7, 8], [-100] * 4, {})]
    assert share_prefix(loaded.model, different, 4) is None


def test_a_window_shorter_than_the_row_means_no_prefix(tiny):
    loaded = load_model(str(tiny("mistral")), device="cpu")
    prompts = _prompts(ChatEncoder(loaded.tokenizer))
    loaded.model.config.sliding_window = len(prompts[0].input_ids) - 1
    assert share_prefix(loaded.model, prompts, 4) is None
