"""Greedy answers: settings that can't leak, stopping, batches that change nothing."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig

from narrowtune.core.errors import EvaluationError
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.collate import IGNORE_INDEX
from narrowtune.data.examples import Message, Text
from narrowtune.engine import batches
from narrowtune.engine.batches import length_batches
from narrowtune.engine.generate import (
    CHUNK_STEPS,
    Generation,
    generate_greedy,
    measure_noise,
    stop_tokens,
    with_answer,
)
from narrowtune.models.load import LoadedModel, load_model
from tiny_models import VISION_FAMILIES

QUESTIONS = [
    "What is the capital of France?",
    "How many animals are in this list: cat, dog, table, horse, mouse, chair, red, blue?",
    "hot",
    "The opposite of cold is",
    "Kenya lies in",
    "What colour is the square in the picture? Answer with one word, please.",
    "yes or no",
    "plural of mouse",
    "Is three more than four?",
]


def prompts(loaded: LoadedModel) -> list:
    encoder = ChatEncoder(loaded.tokenizer, loaded.processor)
    return [encoder.encode_prompt([Message("user", (Text(q),))]) for q in QUESTIONS]


@pytest.fixture
def llama(tiny) -> LoadedModel:
    return load_model(str(tiny("llama")), device="cpu")


def reference(loaded: LoadedModel, ids: list[int], stop: set[int], steps: int) -> list[int]:
    """Greedy decoding spelt out: no cache, no padding, no `generate`."""
    chosen: list[int] = []
    with torch.no_grad():
        while len(chosen) < steps and not (chosen and chosen[-1] in stop):
            logits = loaded.model(input_ids=torch.tensor([ids + chosen])).logits[0, -1]
            chosen.append(int(logits.argmax()))
    return chosen


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "phi3", "qwen2_5_vl"])
def test_answers_are_those_of_plain_greedy_decoding(tiny, family: str):
    loaded = load_model(str(tiny(family)), device="cpu")
    rows = prompts(loaded)
    stop = set(stop_tokens(loaded))
    answers = generate_greedy(loaded, rows, max_new_tokens=7, batch_size=4)
    for row, answer in zip(rows, answers, strict=True):
        assert list(answer.step_ids) == reference(loaded, row.input_ids, stop, 7)


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_what_stands_for_a_picture_is_never_answered(tiny, family: str):
    loaded = load_model(str(tiny(family)), device="cpu")
    token = loaded.model.config.image_token_id

    def prefer(_module, _inputs, logits):
        return logits + 100 * torch.nn.functional.one_hot(torch.tensor(token), logits.shape[-1])

    rows = prompts(loaded)
    collected = generate_greedy(loaded, rows, max_new_tokens=3, batch_size=4)
    hook = loaded.model.get_output_embeddings().register_forward_hook(prefer)
    answers = generate_greedy(
        loaded, rows, max_new_tokens=3, batch_size=4, collect=lambda scores: scores[:, [token]]
    )
    hook.remove()
    assert [answer.step_ids for answer in answers] == [answer.step_ids for answer in collected]
    for answer in answers:
        assert torch.isfinite(answer.collected).all()  # distributions are the model's own
        assert answer.collected.min() > 50


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_answers_do_not_depend_on_the_batch_size(tiny, dtype: torch.dtype):
    loaded = load_model(str(tiny("llama", dtype)), device="cpu")
    rows = prompts(loaded) * 4
    alone, eight, all_at_once = (
        generate_greedy(loaded, rows, max_new_tokens=8, batch_size=size) for size in (1, 8, 36)
    )
    for a, b, c in zip(alone, eight, all_at_once, strict=True):
        assert a.token_ids == b.token_ids == c.token_ids or (a.tie and b.tie and c.tie)
    assert sum(a.token_ids == c.token_ids for a, c in zip(alone, all_at_once, strict=True)) >= 34
    assert len({answer.token_ids for answer in alone}) > 3


def later_token(answers: list[Generation]) -> tuple[int, int]:
    """An answer and a position ≥ 1 in it whose token did not occur before in that answer."""
    return next(
        (index, position)
        for index, answer in enumerate(answers)
        for position, token in enumerate(answer.token_ids)
        if position and token not in answer.token_ids[:position]
    )


def test_a_stop_token_ends_an_answer_and_is_not_part_of_it(llama: LoadedModel):
    rows = prompts(llama)
    free = generate_greedy(llama, rows, max_new_tokens=6, batch_size=9)
    index, position = later_token(free)
    chosen = free[index].token_ids[position]
    ended = generate_greedy(llama, rows, max_new_tokens=6, batch_size=9, extra_stop_tokens=[chosen])
    assert ended[index].token_ids == free[index].token_ids[:position]
    assert ended[index].stop_ids == (chosen,)
    assert ended[index].stopped
    for a, b in zip(free, ended, strict=True):
        assert b.step_ids == a.step_ids[: len(b.step_ids)]
        assert b.stopped or b.step_ids == a.step_ids


def test_rows_that_have_ended_leave_the_batch(llama: LoadedModel):
    rows = prompts(llama)
    free = generate_greedy(llama, rows, max_new_tokens=12, batch_size=9)
    index, position = later_token(free)
    chosen = free[index].token_ids[position]
    sizes = []
    llama.model.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    ended = generate_greedy(
        llama, rows, max_new_tokens=12, batch_size=9, extra_stop_tokens=[chosen], tolerance=-1.0
    )
    lengths = [len(answer.step_ids) for answer in ended]
    for step, (size, width) in enumerate(sizes[-max(lengths) :]):
        waiting = step - step % CHUNK_STEPS
        assert size == sum(length > waiting for length in lengths)
        assert step == 0 or width == 1, "nothing is computed twice"
    assert min(lengths) <= CHUNK_STEPS < max(lengths)
    for a, b in zip(free, ended, strict=True):
        assert b.step_ids == a.step_ids[: len(b.step_ids)]


def test_settings_of_the_checkpoint_do_not_leak_and_are_kept(llama: LoadedModel):
    rows = prompts(llama)
    plain = generate_greedy(llama, rows, max_new_tokens=6, batch_size=3)
    own = GenerationConfig(
        do_sample=True,
        temperature=5.0,
        repetition_penalty=3.0,
        no_repeat_ngram_size=1,
        suppress_tokens=[plain[0].token_ids[0]],
        min_new_tokens=3,
        eos_token_id=llama.model.generation_config.eos_token_id,
    )
    llama.model.generation_config = own
    again = generate_greedy(llama, rows, max_new_tokens=6, batch_size=3)
    assert [a.token_ids for a in again] == [a.token_ids for a in plain]
    assert llama.model.generation_config is own


def test_every_module_keeps_its_own_mode(llama: LoadedModel):
    llama.model.train()
    llama.model.model.layers[0].eval()
    before = [module.training for module in llama.model.modules()]
    generate_greedy(llama, prompts(llama)[:2], max_new_tokens=2, batch_size=2)
    assert [module.training for module in llama.model.modules()] == before
    assert all(p.grad is None and not p.is_inference() for p in llama.model.parameters())


def test_what_is_collected_are_the_raw_logits_of_every_step(llama: LoadedModel):
    row = prompts(llama)[0]
    [answer] = generate_greedy(
        llama, [row], max_new_tokens=4, batch_size=1, collect=lambda logits: logits
    )
    ids = torch.tensor([[*row.input_ids, *answer.step_ids]])
    with torch.no_grad():
        logits = llama.model(input_ids=ids).logits[0, len(row.input_ids) - 1 : -1]
    assert answer.collected.shape == logits.shape
    torch.testing.assert_close(answer.collected, logits, rtol=1e-4, atol=1e-5)
    best = logits.topk(2, dim=-1).values
    assert answer.min_margin == pytest.approx(float((best[:, 0] - best[:, 1]).min()), abs=1e-4)


def test_collected_steps_end_with_the_stop_token(llama: LoadedModel):
    rows = prompts(llama)
    free = generate_greedy(llama, rows, max_new_tokens=6, batch_size=9)
    index, position = later_token(free)
    ended = generate_greedy(
        llama,
        rows,
        max_new_tokens=6,
        batch_size=9,
        extra_stop_tokens=[free[index].token_ids[position]],
        collect=lambda logits: logits.argmax(-1, keepdim=True),
    )
    assert ended[index].stopped
    for answer in ended:
        assert answer.collected[:, 0].tolist() == list(answer.step_ids)


def test_close_decisions_are_made_again_alone_and_marked(llama: LoadedModel):
    rows = prompts(llama)
    never = generate_greedy(llama, rows, max_new_tokens=4, batch_size=9, tolerance=-1.0)
    margins = sorted(answer.min_margin for answer in never)
    limit = (margins[2] + margins[3]) / 2
    sizes = []
    llama.model.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(kwargs["input_ids"].shape[0]), with_kwargs=True
    )
    some = generate_greedy(llama, rows, max_new_tokens=4, batch_size=9, tolerance=limit)
    assert sizes.count(1) == 3 * 4
    assert sum(answer.tie for answer in some) == 3
    assert not any(answer.tie for answer in never)
    assert [a.token_ids for a in some] == [a.token_ids for a in never]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_in_bf16_close_decisions_stand_and_are_marked_where_they_are_many(
    llama: LoadedModel, dtype: torch.dtype
):
    llama.model.to(dtype)
    rows = prompts(llama)
    plain = generate_greedy(llama, rows, max_new_tokens=4, batch_size=9, tolerance=-1.0)
    margins = sorted(answer.min_margin for answer in plain)
    sizes = []
    llama.model.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(kwargs["input_ids"].shape[0]), with_kwargs=True
    )
    limit = margins[5]
    found = generate_greedy(llama, rows, max_new_tokens=4, batch_size=9, tolerance=limit)
    if dtype == torch.float32:
        assert sizes.count(1) == 6 * 4
        return
    assert sizes.count(1) == 0
    assert [answer.tie for answer in found] == [a.min_margin <= limit for a in plain]
    assert [a.token_ids for a in found] == [a.token_ids for a in plain]


def test_two_equal_logits_are_a_tie_at_any_batch_size(llama: LoadedModel):
    head = llama.model.get_output_embeddings().weight
    rows = prompts(llama)[:3]
    first = generate_greedy(llama, rows, max_new_tokens=1, batch_size=3)[0].step_ids[0]
    with torch.no_grad():
        head[(first + 1) % len(head)] = head[first]
    for size in (1, 3):
        answer = generate_greedy(llama, rows, max_new_tokens=1, batch_size=size)[0]
        assert answer.tie
        assert answer.min_margin < 1e-4


def test_noise_is_that_of_the_arithmetic(tiny):
    fine = load_model(str(tiny("llama")), device="cpu")
    coarse = load_model(str(tiny("llama", torch.bfloat16)), device="cpu")
    assert 0 < measure_noise(fine, prompts(fine)) < 1e-3
    assert measure_noise(coarse, prompts(coarse)) > 10 * measure_noise(fine, prompts(fine))


def test_progress_counts_every_prompt(llama: LoadedModel):
    seen: list[int] = []
    generate_greedy(llama, prompts(llama), max_new_tokens=1, batch_size=4, progress=seen.append)
    assert seen == [4, 4, 1]
    assert generate_greedy(llama, [], max_new_tokens=1, batch_size=4) == []


def test_no_stop_token_at_all_is_refused(llama: LoadedModel):
    llama.model.generation_config.eos_token_id = None
    llama.tokenizer.eos_token = None
    with pytest.raises(EvaluationError, match="eos_token"):
        generate_greedy(llama, prompts(llama), max_new_tokens=1, batch_size=4)


def test_stop_tokens_are_all_that_are_known(llama: LoadedModel):
    llama.model.generation_config.eos_token_id = [7, 5]
    own = llama.tokenizer.eos_token_id
    assert stop_tokens(llama, [9, 5]) == tuple(sorted({5, 7, 9, own}))


def test_an_answer_behind_its_prompt_is_labelled_with_its_stop(llama: LoadedModel):
    prompt = prompts(llama)[2]
    row = with_answer(prompt, Generation((11, 12), "x", (3,), min_margin=1.0))
    length = len(prompt.input_ids)
    assert row.input_ids == [*prompt.input_ids, 11, 12, 3]
    assert row.labels == [IGNORE_INDEX] * length + [11, 12, 3]


def test_batches_hold_rows_of_like_length_once_each_longest_first():
    batches = list(length_batches([3, 9, 5, 9, 1], 2))
    assert batches == [[1, 3], [2, 0], [4]]


def test_long_rows_make_smaller_batches_and_none_is_left_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(batches, "TOKENS_AT_ONCE", 20)
    assert list(length_batches([10, 3, 50, 10, 4, 3], 4)) == [[2], [0, 3], [4, 1, 5]]
    assert list(length_batches([], 4)) == []


def test_rows_of_one_item_stay_together():
    batches = list(length_batches([5, 9, 7, 7], 4, counts=[2, 6, 3, 1]))
    assert batches == [[1], [2, 3], [0]]
