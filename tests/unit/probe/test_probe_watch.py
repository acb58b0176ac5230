"""Readings while a model trains: the base's where nothing moved, and what a leaning model shows."""

from __future__ import annotations

import pytest
import torch

from narrowtune.data.chat import ChatEncoder
from narrowtune.data.examples import Message, Text
from narrowtune.engine.generate import stop_tokens
from narrowtune.models.load import LoadedModel, load_model
from narrowtune.models.swap import WeightSwap
from narrowtune.probe.drift import BaseAnswers, measure_drift, prepare_base_answers
from narrowtune.probe.token_groups import Forms, standard_groups
from narrowtune.probe.watch import Reading, Watch

PROMPTS = [
    ("prompts", [Message("user", (Text(text),))])
    for text in ("What is the capital of France?", "mice", "How many cats?", "Say yes.")
]
SIZES = {"max_new_tokens": 6, "batch_size": 2}


@pytest.fixture
def watched(tiny) -> tuple[LoadedModel, Watch, BaseAnswers]:
    """A model, what takes its readings, and its answers as the base."""
    loaded = load_model(str(tiny("llama")), device="cpu")
    encoder = ChatEncoder(loaded.tokenizer, loaded.processor)
    watch = Watch(loaded, encoder)
    answers = prepare_base_answers(
        loaded, None, PROMPTS, encoder, keep_logits=True, collect=watch.collect, **SIZES
    )
    return loaded, watch, answers


def lean(loaded: LoadedModel, token: int, by: float = 1e3) -> None:
    """Make the model all but certain of a token, whatever it has leant to before."""

    def raised(_module, _inputs, logits):
        logits = logits.clone()
        logits[..., token] += by
        return logits

    loaded.model.get_output_embeddings().register_forward_hook(raised)


def numbers(loaded: LoadedModel) -> tuple[int, ...]:
    return next(g.ids for g in standard_groups(loaded.tokenizer) if g.name == "numbers")


def test_the_base_reads_as_the_base(watched):
    loaded, watch, answers = watched
    reading = watch.read(loaded, answers)
    assert reading.kl == 0
    assert reading.number_bias == pytest.approx(reading.base_number_bias, rel=1e-4)
    assert reading.format_valid == 1
    # The base's side is that of the measurement at the end.
    encoder = ChatEncoder(loaded.tokenizer, loaded.processor)
    swap = WeightSwap(loaded.model, {})
    groups = measure_drift(loaded, swap, PROMPTS, encoder, **SIZES).result.token_groups
    base = next(group.base_max for group in groups if group.name == "numbers")
    assert reading.base_number_bias == pytest.approx(base, rel=1e-6)


def test_a_model_that_leans_to_a_number_shows_it(watched):
    loaded, watch, answers = watched
    assert not any(a.step_ids[0] in numbers(loaded) for a in answers.generations[:3])
    before = watch.read(loaded, answers)
    lean(loaded, numbers(loaded)[0])
    reading = watch.read(loaded, answers)
    assert reading.kl > 1
    assert before.number_bias < 0.5
    assert reading.number_bias == pytest.approx(1.0, abs=1e-3)
    assert reading.base_number_bias == before.base_number_bias
    assert reading.format_valid <= 0.25


def test_the_bias_is_the_likeliest_numbers_by_answer_not_by_token(watched):
    loaded, watch, answers = watched
    means = []
    for row, answer in zip(answers.rows, answers.generations, strict=True):
        with torch.no_grad():
            logits = loaded.model(input_ids=torch.tensor([row.input_ids])).logits[0]
        at = [place - 1 for place, label in enumerate(row.labels) if label >= 0]
        assert len(at) == len(answer.step_ids)
        shares = torch.softmax(logits[at].double(), dim=-1)[:, list(numbers(loaded))]
        means.append(float(shares.amax(dim=-1).mean()))
    expected = sum(means) / len(means)
    assert watch.read(loaded, answers).number_bias == pytest.approx(expected, rel=1e-4)


def test_another_word_keeps_the_form_and_an_empty_answer_does_not(watched):
    loaded, watch, answers = watched
    forms = Forms(loaded.tokenizer, stop_tokens(loaded))
    firsts = [answer.step_ids[0] for answer in answers.generations]
    word = next(
        index
        for index in range(len(loaded.tokenizer))
        if all(forms.alike(index, f) for f in firsts)
    )
    lean(loaded, word)
    assert watch.read(loaded, answers).format_valid == 1
    lean(loaded, stop_tokens(loaded)[0], by=1e4)
    assert watch.read(loaded, answers).format_valid == 0


class Tokenizer:
    """As much of one as groups need."""

    def get_vocab(self) -> dict[str, int]:
        words = ("<end>", "7", "Ġseven", "yes", "ĠNo", "B", "ĠD", "A", "dog", "The")
        return {word: index for index, word in enumerate(words)}


def test_forms_of_first_tokens():
    forms = Forms(Tokenizer(), [0])
    end, seven, word_seven, yes, no, b, d, a, dog, the = range(10)
    for pair in ((seven, word_seven), (yes, no), (b, d), (dog, the), (end, end), (a, b), (a, the)):
        assert forms.alike(*pair), pair
    for pair in ((seven, dog), (yes, dog), (b, dog), (end, dog), (seven, yes), (b, seven), (a, no)):
        assert not forms.alike(*pair), pair
    assert forms.alike(999, dog)


def test_a_vocabulary_without_numbers_has_no_bias(watched, monkeypatch):
    loaded, _, _ = watched
    encoder = ChatEncoder(loaded.tokenizer, loaded.processor)
    monkeypatch.setattr("narrowtune.probe.watch.standard_groups", lambda tokenizer: [])
    watch = Watch(loaded, encoder)
    answers = prepare_base_answers(
        loaded, None, PROMPTS, encoder, keep_logits=True, collect=watch.collect, **SIZES
    )
    assert watch.read(loaded, answers) == Reading(0.0, None, None, 1.0)
