"""Free answers about one picture share it, and rows leave when they end: no answer changes."""

from __future__ import annotations

import io
from dataclasses import replace

import PIL.Image
import pytest
import torch

from narrowtune.data.chat import ChatEncoder
from narrowtune.data.examples import Image, Message, Text
from narrowtune.engine import generate
from narrowtune.engine.batches import length_batches, spread_kin
from narrowtune.engine.generate import CHUNK_STEPS, generate_greedy, measure_noise
from narrowtune.engine.packing import packing
from narrowtune.engine.prefix import picture_kin, share_pictures
from narrowtune.models.load import LoadedModel, load_model
from tiny_models import VISION_FAMILIES, WITH_STATE

ASKED = [(0, "how many?"), (1, "which?"), (0, "where is it?"), (1, "how many?"), (2, "who?")]
ASKED += [(0, "what is this thing here?"), (None, "how are you?"), (1, "how often?")]
STEPS = 10


def noise(width: int, height: int, sigma: float) -> Image:
    buffer = io.BytesIO()
    PIL.Image.effect_noise((width, height), sigma).convert("RGB").save(buffer, "PNG")
    return Image(data=buffer.getvalue())


def make_prompts(loaded: LoadedModel, asked=ASKED) -> list:
    encoder = ChatEncoder(loaded.tokenizer, loaded.processor)
    pictures = [noise(40, 30, 20), noise(28, 90, 50), noise(60, 60, 80)]
    pictures += [noise(40, 30, sigma) for sigma in (30, 40, 50)]
    return [
        encoder.encode_prompt(
            [Message("user", (*(() if n is None else (pictures[n],)), Text(question)))]
        )
        for n, question in asked
    ]


@pytest.fixture
def qwen(tiny) -> LoadedModel:
    return load_model(str(tiny("qwen2_5_vl")), device="cpu")


def calls_of(loaded: LoadedModel) -> list[torch.Size]:
    """Shapes of the tokens of every forward pass from here on."""
    shapes: list[torch.Size] = []
    loaded.model.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    return shapes


def early_end(answers: list[tuple[int, ...]]) -> tuple[int, list[int]]:
    """The token that ends answers most unevenly, and the steps that each has with it."""

    def steps(token: int) -> list[int]:
        return [ids.index(token) + 1 if token in ids else len(ids) for ids in answers]

    def unevenness(token: int) -> int:
        early = sum(count <= CHUNK_STEPS for count in steps(token))
        return min(early, len(answers) - early)

    found = max(sorted({token for ids in answers for token in ids}), key=unevenness)
    return found, steps(found)


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_answers_and_log_probs_are_those_of_rows_alone(tiny, family):
    loaded = load_model(str(tiny(family)), device="cpu")
    prompts = make_prompts(loaded)
    never = set(generate.stop_tokens(loaded))  # some models have nothing to say
    loaded.model.get_output_embeddings().register_forward_hook(
        lambda _module, _inputs, logits: logits.index_fill(-1, torch.tensor([*never]), -100.0)
    )
    given = {"max_new_tokens": STEPS, "tolerance": -1.0, "collect": lambda logits: logits.clone()}
    for _ in range(9):
        alone = generate_greedy(loaded, prompts, batch_size=1, **given)
        stop, ends = early_end([answer.step_ids for answer in alone])
        if min(ends) <= CHUNK_STEPS < max(ends):
            break
        # What is said of every picture tells nothing.
        never.update(set.intersection(*(set(answer.step_ids) for answer in alone)))
    assert min(ends) <= CHUNK_STEPS < max(ends)
    shapes = calls_of(loaded)
    with generate.evaluating(loaded.model):
        shared = share_pictures(loaded.model, prompts, STEPS, 0)
    assert (shared is None) == (family in WITH_STATE)
    shapes.clear()
    found = generate_greedy(loaded, prompts, batch_size=8, extra_stop_tokens=[stop], **given)
    for end, one, other in zip(ends, alone, found, strict=True):
        assert other.step_ids == one.step_ids[:end]
        torch.testing.assert_close(
            other.collected.log_softmax(-1),
            one.collected[:end].log_softmax(-1),
            rtol=1e-4,
            atol=2e-5,
        )
    passes = 1 if family in WITH_STATE else 2
    assert [len(shape) for shape in shapes[:passes]] == [2] * passes
    if family not in WITH_STATE:
        assert shapes[0][0] == 4, "three pictures and a row of text"
    steps = shapes[passes - 1 :]
    assert [rows for rows, _ in steps] == [
        sum(end > step - step % CHUNK_STEPS for end in ends) for step in range(max(ends))
    ]
    assert all(width == 1 for _, width in steps[1:]), "nothing is computed twice"


def test_fewer_tokens_are_computed(qwen):
    prompts = make_prompts(qwen, [(0, f"how many of {word}?") for word in "abcdefgh"])
    given = {"max_new_tokens": 1, "batch_size": 8, "tolerance": -1.0}
    shapes = calls_of(qwen)
    found = generate_greedy(qwen, prompts, **given)
    shared = sum(shape.numel() for shape in shapes)
    shapes.clear()
    with packing("never"):
        plain = generate_greedy(qwen, prompts, **given)
    assert shared < 0.4 * sum(shape.numel() for shape in shapes)
    assert [one.step_ids for one in found] == [one.step_ids for one in plain]


def test_questions_of_one_picture_are_answered_together(qwen):
    prompts = make_prompts(qwen, [(3 + n % 2, f"{n}?") for n in range(4)])
    shapes = calls_of(qwen)
    found = generate_greedy(qwen, prompts, max_new_tokens=1, batch_size=2, tolerance=-1.0)
    assert [rows for rows, _ in shapes] == [1, 2] * 2, "in each batch a picture, and two questions"
    alone = generate_greedy(qwen, prompts, max_new_tokens=1, batch_size=1, tolerance=-1.0)
    assert [one.step_ids for one in found] == [one.step_ids for one in alone]


def test_the_noise_is_that_of_rows_that_share(qwen, monkeypatch: pytest.MonkeyPatch):
    prompts = make_prompts(qwen, [(n % 6, "who?") for n in range(12)])
    made = []

    def record(*args):
        made.append(share_pictures(*args))
        return made[-1]

    monkeypatch.setattr(generate, "share_pictures", record)
    assert 0 < measure_noise(qwen, prompts) < 1e-3
    assert made[0] is not None
    assert len(made[0].batch["input_ids"]) == 4
    assert not any(made[1:])


def test_pictures_are_the_same_by_pixels_and_by_what_stands_before(qwen):
    prompts = make_prompts(qwen, [(0, "one?"), (0, "two?"), (1, "one?"), (0, "three?")])
    assert picture_kin(qwen.model, prompts) == [0, 0, 2, 0]
    pixels = prompts[1].features["pixel_values"].clone()
    pixels.view(-1)[-3] += 0.5
    prompts[1] = replace(prompts[1], features={**prompts[1].features, "pixel_values": pixels})
    assert picture_kin(qwen.model, prompts) == [0, 1, 2, 0]
    encoder = ChatEncoder(qwen.tokenizer, qwen.processor)
    picture = noise(40, 30, 20)
    behind = [
        encoder.encode_prompt([Message("user", (Text(question), picture))])
        for question in ("is it red?", "can it fly?")
    ]
    assert picture_kin(qwen.model, behind) == [0, 1]
    with packing("never"):
        assert picture_kin(qwen.model, prompts) == [0, 1, 2, 3]


def test_several_pictures_are_shared_together(qwen):
    encoder = ChatEncoder(qwen.tokenizer, qwen.processor)
    first, second, other = noise(40, 30, 20), noise(60, 60, 80), noise(60, 60, 10)
    prompts = [
        encoder.encode_prompt([Message("user", (*pictures, Text(question)))])
        for pictures, question in (
            ((first, second), "one?"),
            ((first, second), "and two?"),
            ((first, other), "three?"),
        )
    ]
    assert picture_kin(qwen.model, prompts) == [0, 0, 2]
    given = {"max_new_tokens": 6, "tolerance": -1.0}
    alone, together = (generate_greedy(qwen, prompts, batch_size=n, **given) for n in (1, 3))
    assert [one.step_ids for one in together] == [one.step_ids for one in alone]


def test_what_is_not_exact_or_does_not_pay_is_not_shared(tiny, qwen):
    loaded = load_model(str(tiny("gemma3")), device="cpu")
    prompts = make_prompts(loaded)[:3]
    assert share_pictures(loaded.model, prompts, 4, 0) is not None
    loaded.model.config.get_text_config().sliding_window = len(prompts[0].input_ids)
    assert share_pictures(loaded.model, prompts, 4, 0) is None
    # A small picture, and long questions: cut at the picture's end, nothing would be saved.
    long = " ".join("why" for _ in range(60))
    few = make_prompts(qwen, [(0, long + "?"), (1, long), (0, "x"), (2, long), (1, long + "!")])
    assert share_pictures(qwen.model, few[:3], 4, 0) is None
    assert share_pictures(qwen.model, few[1:2] * 2, 4, 0) is not None


def test_kin_are_beside_each_other_where_lengths_are_near():
    lengths, kin = [9, 8, 7, 6, 3, 8], [0, 1, 0, 1, 0, 5]
    assert list(length_batches(lengths, 2, kin=kin)) == [[0, 2], [1, 3], [5, 4]]
    assert list(length_batches(lengths, 4, kin=kin)) == [[0, 2, 1, 3], [5, 4]]
    assert list(length_batches(lengths, 2, kin=range(6))) == list(length_batches(lengths, 2))


def test_a_batch_of_kin_is_as_small_as_its_longest_row_asks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("narrowtune.engine.batches.TOKENS_AT_ONCE", 20)
    assert list(length_batches([10, 5, 9], 4, kin=[0, 0, 2])) == [[0, 1], [2]]
    assert list(length_batches([10, 8, 5, 9, 9], 4, kin=[0, 0, 0, 3, 3])) == [[0, 1], [2, 3], [4]]


def test_what_is_drawn_evenly_keeps_kin_together():
    assert spread_kin([0, 1, 0, 1, 0, 1], 4, of_each=2) == [0, 1, 2, 3]
    assert spread_kin(range(9), 3, of_each=2) == [0, 4, 8]
    assert spread_kin([0, 0, 0, 1, 1, 1, 2, 2, 2], 3, of_each=3) == [0, 1, 2]
    assert spread_kin([], 3, of_each=2) == []
