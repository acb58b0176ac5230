"""A prefix that prompts share is computed once, and changes no answer."""

from __future__ import annotations

import io

import PIL.Image
import pytest
import torch

from narrowtune.data.chat import ChatEncoder
from narrowtune.data.examples import Image, Message, Text
from narrowtune.engine import generate
from narrowtune.engine.prefix import share_prefix
from narrowtune.models.load import load_model
from tiny_models import FAMILIES, WITH_STATE

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
        # A window that is shorter than these rows, and layers that keep a state.
        if family == "gemma3_text" or family in WITH_STATE:
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


def _pictures(encoder: ChatEncoder, num: int):
    file = io.BytesIO()
    PIL.Image.new("RGB", (56, 84), "red").save(file, "PNG")
    turns = (Image(data=file.getvalue()), Text("what is it?"))
    return [encoder.encode_prompt((Message("user", turns),))] * num


@pytest.mark.parametrize(
    "family",
    ["qwen2_5_vl", "qwen3_vl", "llava_onevision", "gemma3", "internvl", "smolvlm", "qwen3_5"],
)
@pytest.mark.parametrize("system", [True, False], ids=["prefix", "no prefix"])
@pytest.mark.parametrize("num_before", [0, 1, 3])
def test_text_after_pictures_is_answered_as_on_a_model_that_saw_none(
    tiny, family, system, num_before
):
    loaded = load_model(str(tiny(family)), device="cpu")
    encoder = ChatEncoder(loaded.tokenizer, loaded.processor)
    prompts = _prompts(encoder, system)
    decode = generate._Decoder(loaded, generate.stop_tokens(loaded), collect=None).decode
    with generate.evaluating(loaded.model):
        fresh = [decode([prompt], 12)[0].step_ids for prompt in prompts]

    # Rows that end leave the batch: a token that only some of them say early ends an answer.
    def cut(ids, stop):
        return ids[: ids.index(stop) + 1] if stop in ids else ids

    early = {token for ids in fresh for token in ids[:4]}
    stops = [t for t in sorted(early) if len({len(cut(ids, t)) for ids in fresh}) > 1]
    assert stops or family != "qwen2_5_vl"
    ended = [cut(ids, stops[0]) if stops else ids for ids in fresh]
    if num_before:
        generate.generate_greedy(
            loaded, _pictures(encoder, num_before), max_new_tokens=3, batch_size=8, tolerance=-1.0
        )
    found = generate.generate_greedy(
        loaded,
        prompts,
        max_new_tokens=12,
        batch_size=8,
        tolerance=-1.0,
        extra_stop_tokens=stops[:1],
    )
    assert [one.step_ids for one in found] == ended
