"""What a frozen tower sees is computed once per picture, and changes nothing."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable

import PIL.Image
import pytest
import torch

from narrowtune.data.chat import ChatEncoder
from narrowtune.data.collate import collate
from narrowtune.data.examples import Image, Message, Text
from narrowtune.engine.features import (
    FeatureStore,
    can_remember,
    changes_eyes,
    remembered_features,
)
from narrowtune.engine.forward import evaluating, labelled_cross_entropy
from narrowtune.engine.generate import generate_greedy
from narrowtune.models.load import LoadedModel, load_model
from narrowtune.models.select import resolve
from tiny_models import VISION_FAMILIES

SIZES = [(40, 30), (28, 90), (40, 30), (60, 20)]


@pytest.fixture
def loaded(tiny: Callable, request: pytest.FixtureRequest) -> LoadedModel:
    model = load_model(str(tiny(getattr(request, "param", "qwen2_5_vl"))), device="cpu")
    model.model.requires_grad_(False)
    return model


@pytest.fixture
def rows(loaded: LoadedModel, picture: Callable):
    """Rows of one picture each, and one with two; the first and the third look at the same."""
    encoder = ChatEncoder(loaded.tokenizer, loaded.processor)
    colours = ["red", "green", "red", "blue"]
    pictures = [picture(*size, colour) for size, colour in zip(SIZES, colours, strict=True)]
    asked = [(pictures[i], Text(f"what is {i}?")) for i in range(4)]
    asked.append((*pictures[:2], Text("and both?")))
    return [encoder.encode_answer([Message("user", parts)], "a red one") for parts in asked]


@pytest.fixture
def picture() -> Callable[[int, int, str], Image]:
    def make(width: int, height: int, colour: str) -> Image:
        buffer = io.BytesIO()
        PIL.Image.new("RGB", (width, height), colour).save(buffer, "PNG")
        return Image(data=buffer.getvalue())

    return make


def looks(loaded: LoadedModel) -> list[int]:
    """Count how often the tower is run from here on."""
    counted = []
    tower = loaded.model.get_submodule(loaded.family.vision_tower[0])
    tower.register_forward_pre_hook(lambda *_: counted.append(1))
    return counted


def loss_and_gradients(loaded: LoadedModel, batch):
    loaded.model.zero_grad()
    loss, _ = labelled_cross_entropy(loaded.model, batch)
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in loaded.model.named_parameters() if p.requires_grad}
    return loss.detach(), gradients


@pytest.mark.parametrize("loaded", VISION_FAMILIES, indirect=True)
def test_loss_gradients_and_answers_are_those_of_the_plain_path(loaded, rows):
    names = resolve(loaded.model, "sa_proj").names
    for name, parameter in loaded.model.named_parameters():
        parameter.requires_grad_(name in names)
    batch, store = collate(rows[:4], 0), FeatureStore()
    plain_loss, plain = loss_and_gradients(loaded, batch)
    with remembered_features(loaded, store) as looks_up:
        assert looks_up
        # In inference mode first: what is kept must serve a backward pass afterwards.
        with evaluating(loaded.model):
            labelled_cross_entropy(loaded.model, batch)
        assert store.num_computed == 3  # of four pictures, two are alike
        counted = looks(loaded)
        loss, gradients = loss_and_gradients(loaded, batch)
        assert not counted
    torch.testing.assert_close(loss, plain_loss, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == plain.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, plain[name], rtol=1e-4, atol=1e-6, msg=name)
    encoder = ChatEncoder(loaded.tokenizer, loaded.processor)
    prompts = [encoder.encode_prompt([Message("user", (Text("hi"),))]), *rows]
    answers = [generate_greedy(loaded, prompts, max_new_tokens=6, batch_size=3)]
    with remembered_features(loaded, store):
        counted = looks(loaded)
        answers.append(generate_greedy(loaded, prompts, max_new_tokens=6, batch_size=3))
        # LLaVA-OneVision sees two pictures in a row otherwise than each alone: not kept.
        assert bool(counted) == (loaded.family.name == "llava_onevision")
    said = [[found.step_ids for found in each] for each in answers]
    assert said[0] == said[1]
    assert store.num_computed == 3


def test_the_model_is_as_it_was_afterwards(loaded, rows):
    batch, counted = collate(rows, 0), looks(loaded)
    with pytest.raises(RuntimeError, match="stop"), remembered_features(loaded, FeatureStore()):
        raise RuntimeError("stop")
    assert "get_image_features" not in vars(loaded.model.model)
    with evaluating(loaded.model):
        labelled_cross_entropy(loaded.model, batch)
        labelled_cross_entropy(loaded.model, batch)
    assert len(counted) == 2


def test_other_weights_settings_and_arithmetic_see_anew(loaded, rows):
    batch, store = collate(rows[:1], 0), FeatureStore()

    def ask(expected: int) -> None:
        with remembered_features(loaded, store), evaluating(loaded.model):
            labelled_cross_entropy(loaded.model, batch)
        assert store.num_computed == expected

    ask(1)
    ask(1)
    with torch.autocast("cpu", torch.bfloat16):
        ask(2)
    # The language model is not among what decides.
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight.add_(0.1)
    ask(2)
    with torch.no_grad():
        loaded.model.get_submodule(loaded.family.projector[0]).mlp[0].weight.add_(0.1)
    ask(3)
    loaded.model.config.vision_config.hidden_act = "gelu"
    ask(4)


def test_a_picture_is_computed_as_ever_where_a_gradient_is_to_reach_the_tower(loaded, rows):
    names = resolve(loaded.model, "vision_tower").names
    for name, parameter in loaded.model.named_parameters():
        parameter.requires_grad_(name in names)
    batch, store = collate(rows[:2], 0), FeatureStore()
    plain_loss, plain = loss_and_gradients(loaded, batch)
    with remembered_features(loaded, store) as looks_up:
        assert looks_up
        loss, gradients = loss_and_gradients(loaded, batch)
    assert store.num_computed == 0
    assert torch.equal(loss, plain_loss)
    assert all(torch.equal(gradients[name], plain[name]) for name in plain)
    assert any(gradient.any() for gradient in gradients.values())


def test_recipes_that_change_what_is_seen_are_known(loaded):
    for recipe, changes in (("sa_proj", False), ("language_model", False), ("projector", True)):
        assert changes_eyes(loaded, resolve(loaded.model, recipe).names) == changes


def test_nothing_is_looked_up_without_a_store_or_eyes_or_twice(loaded, tiny):
    with remembered_features(loaded, None) as looks_up:
        assert not looks_up
    store = FeatureStore()
    with remembered_features(loaded, store), remembered_features(loaded, store) as again:
        assert not again
    text = load_model(str(tiny("llama")), device="cpu")
    assert not can_remember(text)
    with remembered_features(text, store) as looks_up:
        assert not looks_up


def test_a_tile_that_fills_up_a_batch_changes_no_key(tiny, picture):
    loaded = load_model(str(tiny("llava_next")), device="cpu")
    loaded.model.requires_grad_(False)
    encoder, store = ChatEncoder(loaded.tokenizer, loaded.processor), FeatureStore()
    small, wide = picture(28, 28, "black"), picture(56, 56, "red")
    one, two = (encoder.encode_prompt([Message("user", (p, Text("x")))]) for p in (small, wide))
    assert one.features["pixel_values"].shape[1] < two.features["pixel_values"].shape[1]
    with remembered_features(loaded, store), evaluating(loaded.model):
        for batch in ([one], [one, two], [two]):
            inputs = collate(batch, 0)
            inputs.pop("labels")
            loaded.model(**inputs)
    assert (store.num_computed, store.num_found) == (2, 2)


def test_memory_is_bounded_and_what_was_used_lately_stays():
    store, asked = FeatureStore(max_bytes=3 * 40), []

    def ask(key: str) -> None:
        store.get(key, lambda: asked.append(key) or torch.zeros(10))

    for key in ("a", "b", "c", "a", "d", "a", "c", "b"):
        ask(key)
    assert asked == ["a", "b", "c", "d", "b"]
    # More than everything at once is still given.
    assert store.get("large", lambda: torch.zeros(1000)).numel() == 1000


def test_a_folder_serves_other_stores_and_broken_files_are_computed_again(tmp_path):
    features = torch.randn(4, 3).bfloat16()
    first = FeatureStore(folder=tmp_path)
    first.get("abc", lambda: features)
    second = FeatureStore(folder=tmp_path)
    assert torch.equal(second.get("abc", lambda: pytest.fail("computed")), features)
    (path,) = tmp_path.glob("*/*.safetensors")
    path.write_bytes(path.read_bytes()[:-5])
    third = FeatureStore(folder=tmp_path)
    assert torch.equal(third.get("abc", lambda: features), features)
    assert third.num_computed == 1
    assert torch.equal(FeatureStore(folder=tmp_path).get("abc", torch.rand), features)


def test_a_folder_is_bounded_and_its_oldest_files_go(tmp_path):
    store = FeatureStore(folder=tmp_path, max_folder_bytes=10_000)
    for number in range(20):
        key = f"{number:02d}key"
        store.get(key, lambda: torch.zeros(250))  # 1,000 bytes and a header
        (path,) = tmp_path.glob(f"*/{key}.safetensors")
        os.utime(path, (number, number))
    kept = sorted(path.stem for path in tmp_path.glob("*/*.safetensors"))
    assert sum(p.stat().st_size for p in tmp_path.glob("*/*")) <= 10_000
    assert kept == [f"{number:02d}key" for number in range(20 - len(kept), 20)]
    assert len(kept) >= 7


def test_many_writers_leave_whole_files(tmp_path):
    def work(seed: int) -> None:
        store = FeatureStore(max_bytes=1, folder=tmp_path, max_folder_bytes=30_000)
        for number in range(60):
            value = (number * 7 + seed) % 30
            wanted = torch.full((300,), float(value))
            found = store.get(f"{value:02d}", lambda wanted=wanted: wanted)
            assert torch.equal(found, wanted)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and not path.suffix]
