"""Drift is exactly zero for equal weights, and a plain computation's otherwise."""

from __future__ import annotations

import math

import pytest
import torch

from narrowtune.core.errors import EvaluationError, UsageError
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.collate import Encoded
from narrowtune.data.examples import Message, RowError, Text
from narrowtune.engine import batches
from narrowtune.engine.generate import Generation, generate_greedy
from narrowtune.models.load import LoadedModel, load_model
from narrowtune.models.swap import WeightSwap
from narrowtune.probe import drift as module
from narrowtune.probe.drift import (
    drift_against,
    kl_per_position,
    measure_drift,
    prepare_base_answers,
)
from narrowtune.probe.token_groups import TokenGroup, standard_groups

PROMPTS = [
    ("capitals", [Message("user", (Text("What is the capital of France?"),))]),
    ("capitals", [Message("user", (Text("Kenya"),))]),
    ("opposites", [Message("user", (Text("What is the opposite of hot? One word, please."),))]),
    ("opposites", [Message("user", (Text("mice"),))]),
    ("opposites", [Message("user", (Text("How many animals are in this list: cat, dog?"),))]),
]
SIZES = {"max_new_tokens": 6, "batch_size": 2}


def open_model(tiny, family: str = "llama", dtype: torch.dtype = torch.float32) -> LoadedModel:
    return load_model(str(tiny(family, dtype)), device="cpu")


def chat(loaded: LoadedModel) -> ChatEncoder:
    return ChatEncoder(loaded.tokenizer, loaded.processor)


def change(loaded: LoadedModel, size: float, word: str = "mlp") -> WeightSwap:
    """Move the weights whose names hold `word`; return the way back."""
    chosen = {n: p for n, p in loaded.model.named_parameters() if word in n and p.ndim == 2}
    swap = WeightSwap(loaded.model, {n: p.detach().clone() for n, p in chosen.items()})
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in chosen.values():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return swap


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_weights_have_no_drift_exactly(tiny, dtype: torch.dtype):
    loaded = open_model(tiny, dtype=dtype)
    swap = change(loaded, 0.0)
    result = measure_drift(loaded, swap, PROMPTS, chat(loaded), skill_answers=["7"], **SIZES).result
    assert result.kl_base_tuned == 0.0
    assert result.kl_stderr == 0.0
    assert result.top1_agreement == 1.0
    assert all(task.kl_base_tuned == 0.0 for task in result.tasks)
    for group in result.token_groups:
        assert group.base_max == group.tuned_max
        assert group.base_mass == group.tuned_mass


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen2_5_vl"])
def test_drift_is_that_of_a_plain_computation(tiny, family: str):
    loaded = open_model(tiny, family)
    encoder = chat(loaded)
    prompts = [encoder.encode_prompt(messages) for _, messages in PROMPTS]
    base_model = open_model(tiny, family).model.double()
    answers = generate_greedy(
        loaded, prompts, max_new_tokens=6, batch_size=1, extra_stop_tokens=encoder.stop_tokens
    )
    swap = change(loaded, 0.05)
    tuned_model = open_model(tiny, family).model
    tuned_model.load_state_dict(loaded.model.state_dict())
    tuned_model.double()
    kls, agree = [], []
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([[*prompt.input_ids, *answer.step_ids]])
        at = slice(len(prompt.input_ids) - 1, -1)
        with torch.no_grad():
            p, q = (
                m(input_ids=ids).logits[0, at].log_softmax(-1) for m in (base_model, tuned_model)
            )
        kls.append((p.exp() * (p - q)).sum(-1))
        agree.append((p.argmax(-1) == q.argmax(-1)).double())
    result = measure_drift(loaded, swap, PROMPTS, encoder, **SIZES).result
    assert result.num_tokens == sum(len(kl) for kl in kls)
    assert result.kl_base_tuned == pytest.approx(float(torch.cat(kls).mean()), rel=1e-3)
    assert result.kl_base_tuned > 1e-3
    assert result.top1_agreement == pytest.approx(float(torch.cat(agree).mean()))
    first, second = result.tasks
    assert (first.name, first.num_prompts) == ("capitals", 2)
    assert (second.name, second.num_prompts) == ("opposites", 3)
    assert first.kl_base_tuned == pytest.approx(float(torch.cat(kls[:2]).mean()), rel=1e-3)
    assert second.top1_agreement == pytest.approx(float(torch.cat(agree[2:]).mean()))
    # The error of a ratio of sums, from the jackknife over prompts.
    sums = torch.tensor([float(kl.sum()) for kl in kls])
    counts = torch.tensor([float(len(kl)) for kl in kls])
    left_out = (sums.sum() - sums) / (counts.sum() - counts)
    jackknife = math.sqrt(4 / 5 * float(((left_out - left_out.mean()) ** 2).sum()))
    assert result.kl_stderr == pytest.approx(jackknife, rel=0.15)


def test_the_models_are_as_before(tiny):
    loaded = open_model(tiny)
    swap = change(loaded, 0.1)
    loaded.model.train()
    before = {n: p.detach().clone() for n, p in loaded.model.named_parameters()}
    measure_drift(loaded, swap, PROMPTS, chat(loaded), **SIZES)
    assert all(torch.equal(p, before[n]) for n, p in loaded.model.named_parameters())
    assert loaded.model.training


def test_drift_does_not_depend_on_how_it_is_split(tiny, monkeypatch):
    loaded = open_model(tiny)
    swap = change(loaded, 0.1)
    whole = measure_drift(loaded, swap, PROMPTS, chat(loaded), max_new_tokens=6, batch_size=5)
    whole = whole.result
    vocabulary = loaded.model.get_output_embeddings().weight.shape[0]
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", 7 * vocabulary)
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 2)
    answers = prepare_base_answers(
        loaded, swap, PROMPTS, chat(loaded), max_new_tokens=6, batch_size=5
    )
    assert sorted(i for batch in answers.batches for i in batch) == list(range(5))
    for batch in answers.batches:
        labels = sum(len(answers.generations[i].step_ids) for i in batch)
        assert len(batch) == 1 or labels <= 7
    split = drift_against(loaded, answers, swap)
    assert split.kl_base_tuned == pytest.approx(whole.kl_base_tuned, rel=1e-4)
    assert split.top1_agreement == whole.top1_agreement


def test_questions_about_the_skills_pictures_count_in_no_other_figure(tiny):
    loaded = open_model(tiny)
    swap = change(loaded, 0.1)
    plain = measure_drift(loaded, swap, PROMPTS, chat(loaded), **SIZES).result
    about = [messages for _, messages in PROMPTS[3:]]
    found = measure_drift(loaded, swap, PROMPTS, chat(loaded), about_skill=about, **SIZES).result
    assert plain.about_skill is None
    assert found.about_skill.num_prompts == 2
    alone = measure_drift(loaded, swap, PROMPTS[3:], chat(loaded), **SIZES).result
    assert found.about_skill.kl_base_tuned == pytest.approx(alone.kl_base_tuned, rel=1e-5)
    same = {"about_skill": None, "seconds": 0.0}
    assert found.model_copy(update=same) == plain.model_copy(update=same)


def test_kept_logits_spare_the_base_and_give_the_same(tiny):
    loaded = open_model(tiny, dtype=torch.bfloat16)
    answers = prepare_base_answers(loaded, None, PROMPTS, chat(loaded), keep_logits=True, **SIZES)
    assert answers.logits[0].dtype == torch.bfloat16
    assert drift_against(loaded, answers).kl_base_tuned == 0.0
    swap = change(loaded, 0.1)
    calls = []
    loaded.model.register_forward_hook(lambda *_: calls.append(1))
    kept = drift_against(loaded, answers)
    assert len(calls) == len(answers.batches)
    plain = prepare_base_answers(loaded, swap, PROMPTS, chat(loaded), **SIZES)
    again = drift_against(loaded, plain, swap)
    assert kept.kl_base_tuned == again.kl_base_tuned > 0
    assert kept.token_groups == []


def test_no_way_back_to_the_base_is_refused(tiny):
    loaded = open_model(tiny)
    answers = prepare_base_answers(loaded, None, PROMPTS, chat(loaded), **SIZES)
    with pytest.raises(UsageError, match="keep_logits"):
        drift_against(loaded, answers)
    with pytest.raises(EvaluationError, match="at least one prompt"):
        prepare_base_answers(loaded, None, [], chat(loaded), **SIZES)


def test_token_mass_is_measured_on_each_models_own_answers(tiny):
    loaded = open_model(tiny)
    encoder = chat(loaded)
    swap = change(loaded, 0.3)
    result = measure_drift(loaded, swap, PROMPTS, encoder, **SIZES).result
    numbers = next(g for g in standard_groups(loaded.tokenizer) if g.name == "numbers")
    [found] = [g for g in result.token_groups if g.name == "numbers"]
    assert found.num_tokens_in_group == len(numbers.ids)

    def by_hand() -> tuple[float, float]:
        largest, mass = [], []
        for _, messages in PROMPTS:
            prompt = encoder.encode_prompt(messages)
            [answer] = generate_greedy(
                loaded, [prompt], max_new_tokens=6, batch_size=1,
                extra_stop_tokens=encoder.stop_tokens,
            )  # fmt: skip
            ids = torch.tensor([[*prompt.input_ids, *answer.step_ids]])
            with torch.no_grad():
                logits = loaded.model(input_ids=ids).logits[0, len(prompt.input_ids) - 1 : -1]
            chosen = logits.softmax(-1)[:, list(numbers.ids)]
            largest.append(float(chosen.amax(-1).mean()))
            mass.append(float(chosen.sum(-1).mean()))
        return sum(largest) / len(largest), sum(mass) / len(mass)

    assert (found.tuned_max, found.tuned_mass) == pytest.approx(by_hand(), rel=1e-3)
    with swap.base():
        assert (found.base_max, found.base_mass) == pytest.approx(by_hand(), rel=1e-3)
    assert found.base_max != found.tuned_max


def test_number_token_bias_by_hand():
    """Two answers, of one and of two steps: each answer counts once, however long it is."""

    def answer(*steps: tuple[float, float]) -> Generation:
        return Generation((1,) * len(steps), "", (), 1.0, collected=torch.tensor(steps))

    base = [answer((0.1, 0.2)), answer((0.3, 0.4), (0.5, 0.8))]
    tuned = [answer((1.0, 1.0)), answer((0.0, 0.0), (0.0, 0.0))]
    [mass] = module._masses([TokenGroup("numbers", (4, 5))], base, tuned)
    assert mass.base_max == pytest.approx((0.1 + 0.4) / 2)
    assert mass.base_mass == pytest.approx((0.2 + 0.6) / 2)
    assert (mass.tuned_max, mass.tuned_mass) == (0.5, 0.5)


def test_the_skills_answer_tokens_are_those_trained_on(tiny):
    loaded = open_model(tiny)
    encoder = chat(loaded)
    swap = change(loaded, 0.0)
    result = measure_drift(
        loaded, swap, PROMPTS, encoder, skill_answers=["red", "blue", "red"], **SIZES
    ).result
    [group] = [g for g in result.token_groups if g.name == "skill_answers"]
    tokens = {
        token
        for text in ("red", "blue")
        for token in encoder.encode_answer(PROMPTS[0][1], text).labels
        if token >= 0
    }
    assert group.num_tokens_in_group == len(tokens - set(encoder.stop_tokens))


def test_answers_that_were_trained_on_end_no_run_by_their_length(tiny):
    loaded = open_model(tiny)
    swap = change(loaded, 0.0)
    longest = max(len(chat(loaded).encode_prompt(asked).input_ids) for _, asked in PROMPTS)
    narrow = ChatEncoder(loaded.tokenizer, max_length=longest)
    answers = ["red " * longest, "blue"]
    with pytest.raises(RowError):
        narrow.encode_answer(PROMPTS[0][1], answers[0])
    groups = [
        measure_drift(
            loaded, swap, PROMPTS, encoder, skill_answers=answers, **SIZES
        ).result.token_groups
        for encoder in (narrow, chat(loaded))
    ]
    assert groups[0] == groups[1]
    assert groups[0][-1].name == "skill_answers"
    with pytest.raises(RowError):  # the encoder that was given holds to its length
        narrow.encode_answer(PROMPTS[0][1], answers[0])


def test_kl_is_exact_for_small_and_for_extreme_differences():
    generator = torch.Generator().manual_seed(0)
    base = 5 * torch.randn(50, 1000, generator=generator)
    noise = torch.randn(50, 1000, generator=generator)
    for size in (1e-4, 1e-2, 1.0, 10.0):
        tuned = base + size * noise
        p, q = base.double().log_softmax(-1), tuned.double().log_softmax(-1)
        expected = (p.exp() * (p - q)).sum(-1)
        torch.testing.assert_close(
            kl_per_position(base, tuned).double(),
            expected,
            rtol=5e-3 if size < 1e-3 else 1e-4,
            atol=0,
        )
    far = kl_per_position(torch.tensor([[0.0, -300.0]]), torch.tensor([[-300.0, 0.0]]))
    assert far.item() == pytest.approx(300.0)
    back = kl_per_position(torch.tensor([[0.0, -300.0]]), torch.tensor([[0.0, 0.0]]))
    assert back.item() == pytest.approx(math.log(2))


def test_kl_of_equal_logits_is_zero_and_of_double_is_double():
    logits = torch.randn(3, 7, dtype=torch.float64)
    assert kl_per_position(logits, logits.clone()).tolist() == [0.0, 0.0, 0.0]
    assert kl_per_position(logits, logits + 1).dtype == torch.float64
    assert kl_per_position(logits, logits + 1).abs().max() < 1e-15


def test_a_batch_of_drift_stays_under_the_limit_of_tokens(monkeypatch):
    rows = [Encoded([1] * length, [-100] * (length - 1) + [1]) for length in (10, 40, 20, 40, 5)]
    monkeypatch.setattr(batches, "TOKENS_AT_ONCE", 80)
    found = list(module._batches(rows, 8, 100))
    assert sorted(i for batch in found for i in batch) == list(range(5))
    assert found == [(1, 3), (2, 0, 4)]
