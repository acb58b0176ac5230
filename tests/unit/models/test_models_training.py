"""Every family runs: a step moves the selection alone; what is excluded gets no gradient."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from narrowtune.core.recipes import RECIPES
from narrowtune.models.fingerprint import tensor_hashes
from narrowtune.models.load import LoadedModel, load_model
from narrowtune.models.select import select
from tiny_models import FAMILIES, VISION_FAMILIES


def example(loaded: LoadedModel) -> dict[str, torch.Tensor]:
    """One conversation (with a picture, where the model reads pictures) as a batch of one."""
    if loaded.processor is None:
        messages = [
            {"role": "user", "content": "What is the capital of France?"},
            {"role": "assistant", "content": "Paris."},
        ]
        text = loaded.tokenizer.apply_chat_template(messages, tokenize=False)
        return loaded.tokenizer(text, add_special_tokens=False, return_tensors="pt")
    question = [{"type": "image"}, {"type": "text", "text": "What colour is the square?"}]
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
    ]
    text = loaded.processor.apply_chat_template(messages, tokenize=False)
    picture = Image.linear_gradient("L").resize((60, 30)).convert("RGB")
    return loaded.processor(text=[text], images=[picture], return_tensors="pt")


def take_step(loaded: LoadedModel) -> dict[str, torch.Tensor | None]:
    """One step on the whole text; the gradients it used.

    Adam, because a key bias without rotary embeddings (in the towers) has no gradient but rounding
    noise: it shifts all of a query's scores alike. A step of plain SGD would not move it.
    """
    parameters = dict(loaded.model.named_parameters())
    batch = example(loaded)
    loaded.model(**batch, labels=batch["input_ids"]).loss.backward()
    gradients = {name: p.grad for name, p in parameters.items()}
    torch.optim.Adam([p for p in parameters.values() if p.requires_grad], lr=0.01).step()
    return gradients


CASES = [
    (family, recipe)
    for family in FAMILIES
    for recipe in RECIPES
    if family in VISION_FAMILIES or recipe not in ("projector", "vision_tower")
]


@pytest.mark.parametrize(("family", "recipe"), CASES)
def test_one_step_moves_exactly_the_selection(tiny, family: str, recipe: str) -> None:
    loaded = load_model(str(tiny(family)), device="cpu")
    selection = select(loaded.model, recipe)
    before = tensor_hashes(loaded.model)

    gradients = take_step(loaded)

    after = tensor_hashes(loaded.model)
    assert {n for n in before if before[n] != after[n]} == set(selection.names)
    assert {n for n, gradient in gradients.items() if gradient is not None} == set(selection.names)


@pytest.mark.parametrize("family", FAMILIES)
def test_excluded_parameters_are_those_without_gradient(tiny, family: str) -> None:
    loaded = load_model(str(tiny(family)), device="cpu")
    selection = select(loaded.model, "full")
    loaded.model.requires_grad_(True)
    gradients = take_step(loaded)
    assert {n for n, g in gradients.items() if g is None} == set(selection.excluded)
    assert all(g.abs().sum() > 0 for g in gradients.values() if g is not None)


@pytest.mark.parametrize("layer", [-3, 1, [-3, -2], [1, 3]])
def test_exclusion_follows_other_feature_layers(tiny, tmp_path, layer) -> None:
    """The rule is checked against a real backward at layers that no published model uses."""
    import json
    import shutil

    folder = shutil.copytree(tiny("llava"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["vision_feature_layer"] = layer
    (folder / "config.json").write_text(json.dumps(config))
    if isinstance(layer, list):
        widen_projector(folder, len(layer))
    loaded = load_model(str(folder), device="cpu")
    selection = select(loaded.model, "full")
    loaded.model.requires_grad_(True)
    gradients = take_step(loaded)
    assert {n for n, g in gradients.items() if g is None} == set(selection.excluded)


def widen_projector(folder, times: int) -> None:
    """The projector of a model that joins several hidden states of its tower."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    name = "multi_modal_projector.linear_1.weight"
    tensors[name] = tensors[name].repeat(1, times)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_generation_runs(tiny, family: str) -> None:
    loaded = load_model(str(tiny(family)), device="cpu")
    batch = example(loaded)
    with torch.no_grad():
        output = loaded.model.generate(**batch, max_new_tokens=4, do_sample=False)
    new = output[0, batch["input_ids"].shape[1] :]
    assert 1 <= len(new) <= 4
    assert torch.isfinite(loaded.model(**batch).logits).all()


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_the_picture_reaches_the_answer(tiny, family: str) -> None:
    loaded = load_model(str(tiny(family)), device="cpu")
    batch = example(loaded)
    with torch.no_grad():
        seen = loaded.model(**batch).logits[0, -1]
        # Not zeros: some families take those for what fills up a batch.
        grey = torch.full_like(batch["pixel_values"], 0.1)
        blank = loaded.model(**{**batch, "pixel_values": grey}).logits[0, -1]
    assert (seen - blank).abs().max() > 1e-4
