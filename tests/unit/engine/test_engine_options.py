"""The likelihood of given answers equals a sum spelt out, whatever the batch."""

from __future__ import annotations

import pytest
import torch

from narrowtune.data.chat import ChatEncoder
from narrowtune.data.collate import IGNORE_INDEX
from narrowtune.data.examples import Message, Text
from narrowtune.engine import batches, options
from narrowtune.engine.options import OptionScores, option_logprobs
from narrowtune.models.load import LoadedModel, load_model

ITEMS = [
    ("Is Kenya in Africa?", ("yes", "no")),
    ("What colour is the square?", ("red", "blue", "a very dark green")),
    ("How many?", ("three", "12")),
    ("What is the capital of France, the country in Europe?", ("Paris", "Kenya", "cold", "hot")),
]


@pytest.fixture
def llama(tiny) -> LoadedModel:
    return load_model(str(tiny("llama")), device="cpu")


def encode(loaded: LoadedModel, items=ITEMS) -> list:
    encoder = ChatEncoder(loaded.tokenizer, loaded.processor)
    return [
        [encoder.encode_answer([Message("user", (Text(q),))], option) for option in options]
        for q, options in items
    ]


def spelt_out(loaded: LoadedModel, row) -> tuple[float, int]:
    with torch.no_grad():
        logits = loaded.model(input_ids=torch.tensor([row.input_ids])).logits[0].double()
    total, count = 0.0, 0
    for position, label in enumerate(row.labels):
        if label != IGNORE_INDEX:
            before = logits[position - 1]
            total += float(before[label] - torch.logsumexp(before, -1))
            count += 1
    return total, count


def test_sums_are_those_of_each_row_alone(llama: LoadedModel):
    encoded = encode(llama)
    found = option_logprobs(llama, encoded, batch_size=3)
    assert [len(f.logprobs) for f in found] == [2, 3, 2, 4]
    for rows, scores in zip(encoded, found, strict=True):
        for row, total, count in zip(rows, scores.logprobs, scores.num_tokens, strict=True):
            expected, tokens = spelt_out(llama, row)
            assert total == pytest.approx(expected, abs=1e-4)
            assert count == tokens
    assert not any(scores.tie for scores in found)


def test_the_end_of_the_turn_counts(llama: LoadedModel):
    [[row, _]] = encode(llama, ITEMS[:1])
    assert row.labels[-1] in ChatEncoder(llama.tokenizer).stop_tokens
    [scores] = option_logprobs(llama, [[row]], batch_size=1)
    assert scores.num_tokens[0] == sum(label != IGNORE_INDEX for label in row.labels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_choices_do_not_depend_on_the_batch_size(tiny, dtype: torch.dtype):
    loaded = load_model(str(tiny("qwen2", dtype)), device="cpu")
    encoded = encode(loaded) * 3
    one, many = (option_logprobs(loaded, encoded, batch_size=size) for size in (1, 16))
    for a, b in zip(one, many, strict=True):
        assert a.best == b.best or (a.tie and b.tie)


def test_equal_options_are_a_tie_and_the_first_is_chosen(llama: LoadedModel):
    encoded = encode(llama, [("Which?", ("hot", "hot")), ("Which?", ("hot", "cold"))])
    same, other = option_logprobs(llama, encoded, batch_size=4)
    assert same.tie
    assert same.best == 0
    assert not other.tie


def test_best_in_total_and_per_token_can_differ():
    scores = OptionScores(logprobs=(-2.0, -3.0), num_tokens=(1, 3))
    assert scores.best == 0
    assert scores.best_per_token == 1


def test_the_mode_is_restored_and_progress_counts_options(llama: LoadedModel):
    llama.model.train()
    seen: list[int] = []
    option_logprobs(llama, encode(llama), batch_size=4, progress=seen.append)
    assert llama.model.training
    assert sum(seen) == 11
    assert option_logprobs(llama, [], batch_size=4) == []


def test_many_long_options_are_computed_a_few_at_a_time(llama: LoadedModel, monkeypatch):
    encoded = encode(llama, ITEMS[-1:])
    whole = option_logprobs(llama, encoded, batch_size=8)
    longest = max(len(row.input_ids) for row in encoded[0])
    sizes = []
    real = options._answer_logprobs

    def counted(loaded, rows):
        sizes.append(len(rows))
        return real(loaded, rows)

    monkeypatch.setattr(options, "_answer_logprobs", counted)
    monkeypatch.setattr(batches, "TOKENS_AT_ONCE", 2 * longest)
    parts = option_logprobs(llama, encoded, batch_size=8)
    assert sizes[:2] == [2, 2]
    assert parts[0].logprobs == pytest.approx(whole[0].logprobs, abs=1e-5)
    monkeypatch.setattr(batches, "LOGITS_AT_ONCE", 1)
    sizes.clear()
    option_logprobs(llama, encoded, batch_size=8)
    assert sizes[:4] == [1, 1, 1, 1]


@pytest.mark.parametrize("gap", [0.01, 1.0])
def test_means_per_token_that_are_close_are_computed_alone_too(
    llama: LoadedModel, monkeypatch, gap
):
    encoded = encode(llama, ITEMS[1:2])  # the first and the last option differ in length
    lengths = [options._num_labels(row) for row in encoded[0]]
    assert len(set(lengths)) > 1
    alone = []

    def scored(_, rows):
        if len(rows) == 1:
            alone.append(rows[0])
        # Sums lie far apart, means by `gap`, and batches add noise.
        means = {id(row): -1.0 - gap * number for number, row in enumerate(encoded[0])}
        noise = 0.02 * (len(rows) > 1)
        return [means[id(row)] * options._num_labels(row) + noise for row in rows]

    monkeypatch.setattr(options, "_answer_logprobs", scored)
    [found] = option_logprobs(llama, encoded, batch_size=4)
    again = alone[2:]  # after the two that noise is measured on
    assert (len(again) == 3) == (gap == 0.01)
    assert not found.tie
