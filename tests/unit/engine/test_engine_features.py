"""What a frozen tower sees is computed once per picture, and changes nothing."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import PIL.Image
import pytest
import torch

from fp64 import InFp64, difference, gradients
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
from narrowtune.engine.packing import packing
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
    loss, _ = labelled_cross_entropy(loaded.model, batch)
    return loss.detach(), gradients(loaded.model, loss)


def compare_gradients(loaded: LoadedModel, rows, store: FeatureStore, limit: float) -> None:
    """Compare loss and gradients with those of the plain path, which computes row by row."""
    batch = collate(rows[:4], 0)
    batch["pixel_values"] = batch["pixel_values"].to(loaded.model.dtype)
    with packing("never"):
        plain_loss, plain = loss_and_gradients(loaded, batch)
    with remembered_features(loaded, store) as looks_up:
        assert looks_up
        # In inference mode first: what is kept must serve a backward pass afterwards.
        with evaluating(loaded.model):
            labelled_cross_entropy(loaded.model, batch)
        assert store.num_computed == 3  # of four pictures, two are alike
        counted = looks(loaded)
        loss, found = loss_and_gradients(loaded, batch)
        assert not counted
    torch.testing.assert_close(loss, plain_loss, rtol=limit, atol=0)
    assert difference(found, plain) <= limit


@pytest.mark.parametrize("loaded", ["llava", "qwen2_5_vl", "gemma3", "qwen3_vl"], indirect=True)
def test_in_fp64_gradients_are_those_of_the_plain_path(loaded, rows):
    names = resolve(loaded.model, "sa_proj").names
    for name, parameter in loaded.model.double().named_parameters():
        parameter.requires_grad_(name in names)
    with InFp64():
        compare_gradients(loaded, rows, FeatureStore(), limit=1e-12)


@pytest.mark.parametrize("loaded", VISION_FAMILIES, indirect=True)
def test_loss_gradients_and_answers_are_those_of_the_plain_path(loaded, rows):
    names = resolve(loaded.model, "sa_proj").names
    for name, parameter in loaded.model.named_parameters():
        parameter.requires_grad_(name in names)
    store = FeatureStore()
    compare_gradients(loaded, rows, store, limit=1e-5)
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


def test_a_tile_that_is_black_is_not_taken_for_one_that_fills_up(tiny, picture):
    loaded = load_model(str(tiny("llava_next")), device="cpu")
    loaded.processor.image_processor.do_normalize = False
    loaded.model.requires_grad_(False)
    encoder = ChatEncoder(loaded.tokenizer, loaded.processor)
    rows = [
        encoder.encode_answer([Message("user", (picture(56, 56, colour), Text("x")))], "red")
        for colour in ("black", "red")
    ]
    assert not rows[0].features["pixel_values"].any()
    with evaluating(loaded.model):
        plain, _ = labelled_cross_entropy(loaded.model, collate(rows, 0))
        with remembered_features(loaded, FeatureStore()):
            found, _ = labelled_cross_entropy(loaded.model, collate(rows, 0))
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loaded", ["llava"], indirect=True)
def test_what_is_kept_has_no_dropout_and_modes_stay(loaded, rows):
    tower = loaded.model.get_submodule(loaded.family.vision_tower[0])
    for module in tower.modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.5
    batch, store = collate(rows[:1], 0), FeatureStore()
    with evaluating(loaded.model):
        plain, _ = labelled_cross_entropy(loaded.model, batch)
    loaded.model.train()
    noisy = {float(labelled_cross_entropy(loaded.model, batch)[0]) for _ in range(3)}
    assert len(noisy) == 3
    with remembered_features(loaded, store):
        found, _ = labelled_cross_entropy(loaded.model, batch)
    assert store.num_computed == 1
    assert tower.training
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-6)


def test_memory_is_bounded_and_what_came_first_stays():
    store, asked = FeatureStore(max_bytes=3 * 40), []

    def ask(key: str) -> None:
        store.get(key, lambda: asked.append(key) or torch.zeros(10))

    # Three passes over five pictures with room for three: those are computed once.
    for key in "abcde" * 3:
        ask(key)
    assert asked == [*"abcde", *"de", *"de"]
    assert (store.num_computed, store.num_found) == (9, 6)
    assert store.get("large", lambda: torch.zeros(1000)).numel() == 1000
    nothing = FeatureStore(max_bytes=0)
    assert [float(nothing.get("a", lambda v=v: torch.full((1,), v))) for v in (1.0, 2.0)] == [1, 2]


def test_a_folder_serves_other_stores_and_broken_files_are_computed_again(tmp_path):
    features = torch.randn(4, 3).bfloat16()
    FeatureStore(folder=tmp_path).get("abc", lambda: features)
    with torch.inference_mode():
        again = FeatureStore(folder=tmp_path).get("abc", lambda: pytest.fail("computed"))
    assert torch.equal(again, features)
    assert not again.is_inference()
    (path,) = tmp_path.glob("*/*.safetensors")
    whole = path.read_bytes()
    # Cut short; and as long as it was, with another value.
    for broken in (whole[:-5], whole[:-3] + b"abc"):
        path.write_bytes(broken)
        store = FeatureStore(folder=tmp_path)
        assert torch.equal(store.get("abc", lambda: features), features)
        assert store.num_computed == 1
        assert path.read_bytes() == whole


def test_a_folder_that_cannot_be_used_is_a_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    store = FeatureStore(folder=tmp_path / "file")
    for key in ("abc", "abd"):
        assert store.get(key, lambda: torch.ones(2)).tolist() == [1, 1]
    assert caplog.text.count("are not kept in") == 1


def test_a_folder_is_bounded_and_files_of_earlier_runs_go_first(tmp_path):
    limit = 10_000
    earlier = FeatureStore(folder=tmp_path, max_folder_bytes=limit)
    for number in range(4):
        earlier.get(f"{number:02d}old", lambda: torch.zeros(250))  # 1,000 bytes, header and digest
    for number, path in enumerate(sorted(tmp_path.glob("*/*"))):
        os.utime(path, (number, number))
    store = FeatureStore(folder=tmp_path, max_folder_bytes=limit)
    for number in range(20):
        store.get(f"{number:02d}new", lambda: torch.zeros(250))
    names = sorted(path.stem for path in tmp_path.glob("*/*"))
    assert sum(path.stat().st_size for path in tmp_path.glob("*/*")) <= limit
    assert not [name for name in names if name.endswith("old")]
    # What this store wrote stays, and the rest was not written.
    assert names == [f"{number:02d}new" for number in range(len(names))]
    assert len(names) >= 6


def test_many_writers_leave_whole_files_within_the_limit(tmp_path):
    limit = 60_000

    def work(seed: int) -> None:
        store = FeatureStore(max_bytes=0, folder=tmp_path, max_folder_bytes=limit)
        for number in range(60):
            value = (number * 7 + seed) % 30
            wanted = torch.full((300,), float(value))
            assert torch.equal(store.get(f"{value:02d}", lambda wanted=wanted: wanted), wanted)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors"}
    # Each of four may add a twentieth, and one file, before it counts again.
    assert sum(path.stat().st_size for path in files) <= limit * 1.2 + 4 * 2_000
