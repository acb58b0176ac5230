"""What layers write is compared at the answers' own positions, and exactly."""

from __future__ import annotations

import copy
import io

import PIL.Image
import pytest
import torch

from narrowtune.data.chat import ChatEncoder
from narrowtune.data.collate import PER_TOKEN_FEATURES
from narrowtune.data.examples import Image, Message, Text
from narrowtune.models.load import LoadedModel, load_model
from narrowtune.models.swap import WeightSwap
from narrowtune.probe import layers as module
from narrowtune.probe.drift import BaseAnswers, prepare_base_answers
from narrowtune.probe.layers import change_norms, layer_contributions, writers

QUESTIONS = ("capital of France", "mice", "How many animals are in this list: cat, dog?")


def picture(size: tuple[int, int]) -> Image:
    buffer = io.BytesIO()
    PIL.Image.effect_noise(size, 80).convert("RGB").save(buffer, "PNG")
    return Image(data=buffer.getvalue())


def open_model(tiny, family: str, dtype: torch.dtype = torch.float32) -> LoadedModel:
    return load_model(str(tiny(family, dtype)), device="cpu")


def answered(loaded: LoadedModel, batch_size: int = 2) -> BaseAnswers:
    prompts = [("t", [Message("user", (Text(question),))]) for question in QUESTIONS]
    if loaded.processor is not None:
        for size in ((28, 28), (56, 28)):
            prompts.append(("t", [Message("user", (picture(size), Text("What is this?")))]))
    encoder = ChatEncoder(loaded.tokenizer, loaded.processor)
    return prepare_base_answers(
        loaded, None, prompts, encoder, max_new_tokens=5, batch_size=batch_size
    )


def change(loaded: LoadedModel, word: str, size: float = 0.05) -> WeightSwap:
    """Move the weights whose names hold `word`; return the way back."""
    chosen = {n: p for n, p in loaded.model.named_parameters() if word in n}
    assert chosen
    swap = WeightSwap(loaded.model, {n: p.detach().clone() for n, p in chosen.items()})
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in chosen.values():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return swap


def plain_writes(loaded: LoadedModel, answers: BaseAnswers) -> torch.Tensor:
    """[M, N, H] in fp64, row by row, at the positions that the answer's tokens follow."""
    model = copy.deepcopy(loaded.model).double()
    double = LoadedModel(**{**vars(loaded), "model": model})
    writes = []
    for row, answer in zip(answers.rows, answers.generations, strict=True):
        found: list[torch.Tensor] = []
        handles = [
            writer.register_forward_hook(
                lambda _, __, out, found=found: found.append(
                    out[0] if isinstance(out, tuple) else out
                )
            )
            for writer in writers(double)
        ]
        features = {
            name: torch.as_tensor(value).double()
            if torch.is_tensor(value) and value.is_floating_point()
            else torch.as_tensor(value)
            for name, value in row.features.items()
        }
        for name in set(features) & set(PER_TOKEN_FEATURES):
            known = features[name].reshape(-1)
            padded = torch.zeros(1, len(row.input_ids), dtype=torch.long)
            padded[0, : len(known)] = known
            features[name] = padded
        with torch.no_grad():
            model(input_ids=torch.tensor([row.input_ids]), **features)
        for handle in handles:
            handle.remove()
        # Hooks run in the order of the layers, each attention before its MLP.
        ordered = [*found[0::2], *found[1::2]]
        last = len(answer.step_ids)
        writes.append(torch.stack([states[0, -last - 1 : -1] for states in ordered]))
    return torch.cat(writes, dim=1)


@pytest.mark.parametrize(
    ("family", "word"),
    [
        ("llama", "layers.1.mlp"),
        ("llama", "embed_tokens"),  # tied: the head moves too
        ("gemma3_text", "self_attn"),
        ("phi3", "lm_head"),
        ("qwen2_5_vl", "self_attn.o_proj"),
        ("llava_onevision", "layers"),
        ("gemma3", "self_attn"),
        ("granite", "self_attn"),
        ("olmo2", "layers.1.mlp"),
        ("qwen3_5", "linear_attn"),
    ],
)
def test_contributions_are_those_of_a_plain_computation(tiny, family: str, word: str):
    loaded = open_model(tiny, family)
    answers = answered(loaded)
    before = plain_writes(loaded, answers)
    base_VH = loaded.model.get_output_embeddings().weight.detach().double().clone()
    swap = change(loaded, word)
    after = plain_writes(loaded, answers)
    tuned_VH = loaded.model.get_output_embeddings().weight.detach().double()
    expected = (after @ tuned_VH.T - before @ base_VH.T).norm(dim=-1).mean(dim=1)
    if family == "granite":  # halved on their way into the stream, and logits once more
        expected = expected / 4
    found = layer_contributions(loaded, swap, answers)
    assert found.num_positions == sum(len(a.step_ids) for a in answers.generations)
    assert [*found.attention, *found.mlp] == pytest.approx(expected.tolist(), rel=1e-4)
    assert max(found.mlp) > 0.01


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize(
    "family",
    ["llama", "gemma3_text", "phi3", "llava_onevision", "granite", "olmo2", "smollm3", "qwen3_5"],
)
def test_writers_are_all_that_a_layer_adds(tiny, family: str, number: int):
    loaded = open_model(tiny, family)
    layer = loaded.model.get_submodule(loaded.family.language_model.layers)[number]
    attention, mlp = (writers(loaded)[place] for place in (number, number + 2))
    kept: dict[str, torch.Tensor] = {}

    for name, part in (("layer", layer), ("attention", attention), ("mlp", mlp)):
        part.register_forward_hook(
            lambda _, args, kwargs, out, name=name: kept.update(
                {
                    name: out[0] if isinstance(out, tuple) else out,
                    f"{name} in": args[0] if args else kwargs["hidden_states"],
                }
            ),
            with_kwargs=True,
        )
    with torch.no_grad():
        loaded.model(input_ids=torch.arange(7)[None] + 20)
    share = 0.5 if family == "granite" else 1.0
    added = kept["layer in"] + share * (kept["attention"] + kept["mlp"])
    torch.testing.assert_close(kept["layer"], added)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_untouched_model_has_none_exactly(tiny, dtype: torch.dtype):
    loaded = open_model(tiny, "llama", dtype)
    answers = answered(loaded)
    found = layer_contributions(loaded, change(loaded, "model", size=0.0), answers)
    assert found.attention == found.mlp == [0.0, 0.0]


def test_layers_below_the_first_that_moved_have_none(tiny):
    loaded = open_model(tiny, "llama")
    answers = answered(loaded)
    found = layer_contributions(loaded, change(loaded, "layers.1.mlp.down_proj"), answers)
    assert found.attention == [0.0, 0.0]
    assert found.mlp[0] == 0
    assert found.mlp[1] > 0


def test_a_change_too_small_for_a_difference_of_products_is_found():
    generator = torch.Generator().manual_seed(0)
    base, step, head = (
        torch.randn(size, generator=generator, dtype=torch.float64).float()
        for size in ((2, 5, 16), (2, 5, 16), (300, 16))
    )
    # Powers of two, so that the sum holds the step exactly.
    base, step = base.round(), step.round() * 2**-18
    expected = (step.double() @ head.double().T).norm(dim=-1)
    found = change_norms(base, base + step, head, head)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_norms_do_not_depend_on_how_they_are_split(monkeypatch):
    base, tuned = torch.randn(2, 2, 3, 8)
    before, after = torch.randn(2, 50, 8)
    whole = change_norms(base, tuned, before, after)
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", 40)
    torch.testing.assert_close(change_norms(base, tuned, before, after), whole)
    direct = (tuned.double() @ after.double().T - base.double() @ before.double().T).norm(dim=-1)
    torch.testing.assert_close(whole, direct, rtol=1e-5, atol=0)


def test_the_model_is_as_before(tiny):
    loaded = open_model(tiny, "llama")
    answers, swap = answered(loaded), change(loaded, "mlp")
    before = {n: p.detach().clone() for n, p in loaded.model.named_parameters()}
    loaded.model.train()
    layer_contributions(loaded, swap, answers)
    assert all(torch.equal(p, before[n]) for n, p in loaded.model.named_parameters())
    assert loaded.model.training
    assert not any(m._forward_hooks for m in writers(loaded))
