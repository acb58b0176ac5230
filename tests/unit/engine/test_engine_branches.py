"""Questions about one picture share it: the numbers are those of the rows one by one."""

from __future__ import annotations

import io
from contextlib import nullcontext
from dataclasses import replace

import PIL.Image
import pytest
import torch

from fp64 import InFp64, difference, gradients, in_dtype
from narrowtune.core.anchor_settings import AnchorSettings
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.collate import Encoded, collate
from narrowtune.data.examples import Image, Message, Text
from narrowtune.engine import packing as packing_module
from narrowtune.engine.features import FeatureStore, remembered_features
from narrowtune.engine.forward import label_positions, labelled_cross_entropy, logits_at
from narrowtune.engine.grouping import group_rows
from narrowtune.engine.packing import layout_size, pack, packing
from narrowtune.models.load import LoadedModel, load_model
from narrowtune.train.anchor import build_anchor
from narrowtune.train.distributions import kl_base_tuned
from tiny_models import VISION_FAMILIES, WITH_STATE

ASKED = [(0, "how many?", "four"), (1, "which?", "a red one"), (0, "where is it?", "left")]
ASKED += [(2, "what is this thing here?", "a house"), (1, "how many?", "one"), (0, "who?", "me")]


def noise(width: int, height: int, sigma: float) -> Image:
    buffer = io.BytesIO()
    PIL.Image.effect_noise((width, height), sigma).convert("RGB").save(buffer, "PNG")
    return Image(data=buffer.getvalue())


@pytest.fixture(params=[family for family in VISION_FAMILIES if family not in WITH_STATE])
def loaded(request, tiny) -> LoadedModel:
    return load_model(str(tiny(request.param)), device="cpu")


@pytest.fixture
def rows(loaded):
    encoder = ChatEncoder(loaded.tokenizer, loaded.processor)
    pictures = [noise(40, 30, 20), noise(28, 90, 50), noise(60, 60, 80)]
    return [
        encoder.encode_answer([Message("user", (pictures[which], Text(question)))], answer)
        for which, question, answer in ASKED
    ]


def num_seen(loaded, rows):
    """Pictures that are seen one by one, once each: tiles where a family cuts pictures up so."""
    first = [rows[[which for which, *_ in ASKED].index(number)] for number in range(3)]
    tiles = {"internvl": 0, "idefics3": 1, "smolvlm": 1}.get(loaded.family.name)
    return sum(1 if tiles is None else row.features["pixel_values"].shape[tiles] for row in first)


def inputs_and_mask(batch):
    mask, _ = label_positions(batch["labels"])
    return {name: value for name, value in batch.items() if name != "labels"}, mask


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_loss_gradients_and_logits_are_those_of_the_plain_path(loaded, rows, dtype, limit):
    model, batch = in_dtype(loaded.model, dtype).requires_grad_(True), collate(rows, 0)
    batch["pixel_values"] = batch["pixel_values"].to(dtype)
    inputs, mask = inputs_and_mask(batch)
    layout = pack(model, inputs, mask)
    assert layout is not None, "the fast path was not taken"
    assert len(layout.mask) <= 3
    pictures = "image_grid_thw" if "image_grid_thw" in inputs else "pixel_values"
    whole_rows = "pixel_attention_mask" in inputs
    assert len(layout.inputs[pictures]) == (3 if whole_rows else num_seen(loaded, rows))
    found = []
    with InFp64() if dtype == torch.float64 else nullcontext():
        for when in ("never", "cheaper"):
            with packing(when):
                total, count = labelled_cross_entropy(model, batch)
                logits = {"logits": logits_at(model, inputs, mask).detach()}
                found.append((total.item(), count, logits, gradients(model, total)))
    plain, shared = found
    assert shared[:2] == (pytest.approx(plain[0], rel=limit), plain[1])
    for mine, other in zip(shared[2:], plain[2:], strict=True):
        assert difference(mine, other) <= limit


def test_a_picture_goes_through_the_tower_once(loaded, rows):
    inputs, mask = inputs_and_mask(collate(rows, 0))
    pixels = []
    tower = loaded.model.get_submodule(loaded.family.vision_tower[0])
    tower.register_forward_pre_hook(
        lambda _, args, kwargs: pixels.append((args or tuple(kwargs.values()))[0].shape[0]),
        with_kwargs=True,
    )
    with packing("never"), torch.no_grad():
        plain = logits_at(loaded.model, inputs, mask)
    with torch.no_grad():
        shared = logits_at(loaded.model, inputs, mask)
    assert pixels[1] < pixels[0]
    # With what was seen looked up, too.
    with remembered_features(loaded, store := FeatureStore()), torch.no_grad():
        again = logits_at(loaded.model, inputs, mask)
    assert store.num_computed == num_seen(loaded, rows)
    for found in (shared, again):
        torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)


def test_fewer_positions_are_computed(loaded, rows):
    inputs, mask = inputs_and_mask(collate(rows, 0))
    layout = pack(loaded.model, inputs, mask)
    assert layout is not None
    assert layout_size(loaded.model, inputs, mask).positions == layout.mask.numel() < mask.numel()
    with packing("never"):
        assert layout_size(loaded.model, inputs, mask).positions == mask.numel()


def test_a_row_alone_is_left_as_it_is(loaded, rows):
    inputs, mask = inputs_and_mask(collate(rows[:1], 0))
    with packing("always"):
        assert pack(loaded.model, inputs, mask) is None


def make_unlike(loaded) -> list[Encoded]:
    """Rows about pictures of many sizes, no two of them alike, behind a turn that all share."""
    encoder = ChatEncoder(loaded.tokenizer, loaded.processor)
    begin = Text("You look at pictures, and say no more than what is asked: ")
    sizes = [(40, 30), (28, 120), (60, 60), (160, 90), (90, 28), (36, 36)]
    return [
        encoder.encode_answer(
            [Message("user", (begin, noise(*size, 20 + 9 * i), Text("what? " * (1 + i % 3))))],
            "a house" if i % 2 else "it is a bird",
        )
        for i, size in enumerate(sizes)
    ]


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_unlike_pictures_stand_in_lines_with_the_numbers_of_the_plain_path(loaded, dtype, limit):
    rows = make_unlike(loaded)
    model, batch = in_dtype(loaded.model, dtype).requires_grad_(True), collate(rows, 0)
    batch["pixel_values"] = batch["pixel_values"].to(dtype)
    inputs, mask = inputs_and_mask(batch)
    found = []
    with packing("always"):
        layout = pack(model, inputs, mask)
    assert layout is not None
    assert len(layout.mask) < len(rows)
    assert layout.mask.numel() < mask.numel()
    with InFp64() if dtype == torch.float64 else nullcontext():
        for when in ("never", "always"):
            with packing(when):
                total, count = labelled_cross_entropy(model, batch)
                logits = {"logits": logits_at(model, inputs, mask).detach()}
                found.append((total.item(), count, logits, gradients(model, total)))
    plain, laid = found
    assert laid[:2] == (pytest.approx(plain[0], rel=limit), plain[1])
    for mine, other in zip(laid[2:], plain[2:], strict=True):
        assert difference(mine, other) <= limit


def test_what_unlike_pictures_stand_behind_is_computed_once(loaded):
    rows = make_unlike(loaded)
    inputs, mask = inputs_and_mask(collate(rows, 0))
    placeholder = loaded.model.config.image_token_id
    if (
        rows[0].input_ids[: (first := rows[0].input_ids.index(placeholder))]
        != (rows[1].input_ids[:first])
    ):
        pytest.skip("this family's template puts sizes before pictures")
    with packing("always"):
        layout = pack(loaded.model, inputs, mask)
    groups = group_rows(loaded.model, inputs, "cpu")
    tokens = [
        len(rows[row].input_ids) - start
        for line, starts in zip(groups.rows, groups.starts, strict=True)
        for row, start in zip(line, starts, strict=True)
    ]
    own = sum(len(row.input_ids) - first for row in rows)
    assert sum(tokens) == len(layout.mask) * first + own
    assert groups.length == layout.mask.shape[1]


def test_a_picture_behind_a_question_is_not_shared(loaded):
    encoder = ChatEncoder(loaded.tokenizer, loaded.processor)
    picture = noise(40, 30, 20)
    made = [
        encoder.encode_answer([Message("user", (Text(question), picture))], "yes")
        for question in ("is it red?", "can it fly?")
    ]
    inputs, mask = inputs_and_mask(collate(made, 0))
    first = made[0].input_ids.index(loaded.model.config.image_token_id)
    if made[0].input_ids[:first] == made[1].input_ids[:first]:
        pytest.skip("this family's template puts pictures first")
    with packing("always"):
        layout = pack(loaded.model, inputs, mask)
    placeholder = loaded.model.config.image_token_id
    assert (layout.inputs["input_ids"] == placeholder).sum() == (
        inputs["input_ids"] == placeholder
    ).sum()


def test_rows_with_two_pictures_share_them_where_each_is_seen_by_itself(loaded):
    encoder = ChatEncoder(loaded.tokenizer, loaded.processor)
    pictures = (noise(40, 30, 20), noise(40, 30, 40))
    made = [
        encoder.encode_answer([Message("user", (*pictures, Text(question)))], "yes")
        for question in ("one?", "two?")
    ]
    inputs, mask = inputs_and_mask(collate(made, 0))
    with packing("always"):
        layout = pack(loaded.model, inputs, mask)
    if loaded.family.name not in ("llava", "gemma3", "internvl", "idefics3", "smolvlm"):
        assert layout is None
        return
    assert layout is not None
    assert len(layout.mask) == 1
    with torch.no_grad():
        with packing("never"):
            plain = logits_at(loaded.model, inputs, mask)
        with packing("always"):
            found = logits_at(loaded.model, inputs, mask)
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "loaded", ["llava", "gemma3", "internvl", "idefics3", "smolvlm"], indirect=True
)
def test_rows_that_differ_between_their_pictures_share_none_of_them(loaded):
    encoder = ChatEncoder(loaded.tokenizer, loaded.processor)
    one, two = noise(40, 30, 20), noise(40, 30, 40)
    asked = [("and", "same?"), ("or", "which?"), ("and", "why?"), ("or", "same?")]
    made = [
        encoder.encode_answer([Message("user", (one, Text(between), two, Text(question)))], "yes")
        for between, question in asked
    ]
    inputs, mask = inputs_and_mask(collate(made, 0))
    with torch.no_grad():
        with packing("never"):
            plain = logits_at(loaded.model, inputs, mask)
        with packing("always"):
            assert pack(loaded.model, inputs, mask) is not None
            found = logits_at(loaded.model, inputs, mask)
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)


def test_crops_of_a_picture_are_shared_with_it(tiny):
    cut_up = {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 8}
    loaded = load_model(str(tiny("gemma3")), device="cpu", processor_kwargs=cut_up)
    encoder = ChatEncoder(loaded.tokenizer, loaded.processor)
    asked = [(noise(90, 28, 20), "one?"), (noise(40, 40, 30), "two?")]
    made = [
        encoder.encode_answer([Message("user", (picture, Text(question + more)))], "yes")
        for picture, question in asked
        for more in ("", " and why?")
    ]
    assert len(made[0].features["pixel_values"]) > 1
    assert len(made[2].features["pixel_values"]) == 1
    inputs, mask = inputs_and_mask(collate(made, 0))
    layout = pack(loaded.model, inputs, mask)
    assert layout is not None
    assert len(layout.mask) <= 2
    with packing("never"), torch.no_grad():
        plain = logits_at(loaded.model, inputs, mask)
    with torch.no_grad():
        found = logits_at(loaded.model, inputs, mask)
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)


def test_pictures_that_see_themselves_whole_do_so_in_branches(tiny, monkeypatch):
    """With a mask that only looks back, the numbers are others: the comparisons above can fail."""
    loaded = load_model(str(tiny("gemma3")), device="cpu")
    encoder = ChatEncoder(loaded.tokenizer, loaded.processor)
    picture = noise(40, 30, 20)
    made = [
        encoder.encode_answer([Message("user", (picture, Text(question)))], "yes")
        for question in ("one?", "two?")
    ]
    inputs, mask = inputs_and_mask(collate(made, 0))
    found = []
    for kinds in (packing_module.pictures_in_rows, lambda kinds: torch.full_like(kinds, -1)):
        monkeypatch.setattr(packing_module, "pictures_in_rows", kinds)
        with packing("always"), torch.no_grad():
            found.append(logits_at(loaded.model, inputs, mask))
    assert (found[0] - found[1]).norm() > 0.01 * found[0].norm()


def test_all_the_same_question_shares_all_but_the_answer(loaded, rows):
    made = [rows[0], rows[0], rows[2]]
    inputs, mask = inputs_and_mask(collate(made, 0))
    layout = pack(loaded.model, inputs, mask)
    assert layout is not None
    with packing("never"), torch.no_grad():
        plain = logits_at(loaded.model, inputs, mask)
    with torch.no_grad():
        torch.testing.assert_close(
            logits_at(loaded.model, inputs, mask), plain, rtol=1e-4, atol=1e-5
        )


def test_rows_of_text_stand_in_lines_with_pictures(loaded, rows):
    encoder = ChatEncoder(loaded.tokenizer, loaded.processor)
    text = encoder.encode_answer([Message("user", (Text("how are you today?"),))], "well")
    made = [rows[0], text, rows[1], rows[2]]
    inputs, mask = inputs_and_mask(collate(made, 0))
    with packing("never"), torch.no_grad():
        plain = logits_at(loaded.model, inputs, mask)
    with packing("always"), torch.no_grad():
        layout = pack(loaded.model, inputs, mask)
        assert layout is not None
        assert len(layout.mask) <= 3
        found = logits_at(loaded.model, inputs, mask)
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)


def test_a_row_that_begins_otherwise_does_not_keep_others_from_sharing(loaded):
    encoder = ChatEncoder(loaded.tokenizer, loaded.processor)
    picture = noise(40, 30, 20)
    made = [
        encoder.encode_answer([Message("user", (*before, picture, Text(question)))], "yes")
        for before, question in (((), "one?"), ((Text("Look: "),), "two?"), ((), "three?"))
    ]
    first = made[0].input_ids.index(loaded.model.config.image_token_id)
    if made[0].input_ids[: first + 1] == made[1].input_ids[: first + 1]:
        pytest.skip("this family's template puts pictures first")
    inputs, mask = inputs_and_mask(collate(made, 0))
    with packing("always"):
        layout = pack(loaded.model, inputs, mask)
    assert layout is not None
    placeholder = loaded.model.config.image_token_id
    seen = int((layout.inputs["input_ids"] == placeholder).sum())
    assert 3 * seen == 2 * int((inputs["input_ids"] == placeholder).sum())


def test_pictures_that_differ_in_one_pixel_are_two(loaded, rows):
    other = dict(rows[2].features)
    pixels = other["pixel_values"].clone()
    pixels.view(-1)[-3] += 0.5
    changed = replace(rows[2], features={**other, "pixel_values": pixels})
    for other_row, pictures in ((changed, 2), (rows[2], 1)):
        inputs, mask = inputs_and_mask(collate([rows[0], other_row], 0))
        with packing("always"):
            layout = pack(loaded.model, inputs, mask)
        placeholder = loaded.model.config.image_token_id
        seen = int((layout.inputs["input_ids"] == placeholder).sum())
        assert 2 * seen == pictures * int((inputs["input_ids"] == placeholder).sum())


@pytest.mark.parametrize(
    "loaded",
    ["qwen2_5_vl", "qwen3_vl", "llava_next", "gemma3", "internvl", "smolvlm"],
    indirect=True,
)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 3e-5)])
def test_anchors_and_checkpointing_go_with_branches(loaded, rows, dtype, limit):
    encoder = ChatEncoder(loaded.tokenizer, loaded.processor)
    settings = AnchorSettings(rows_per_step=2, max_new_tokens=3)
    prompts = [(Message("user", (noise(40, 30, 70), Text(t))),) for t in ("describe it", "more?")]
    anchor = build_anchor(loaded, encoder, prompts, settings, batch_size=2, seed=1)
    merged = anchor.merge(collate(rows, 0), [0, 1])
    held, asked = merged.pop("anchor_distributions"), merged.pop("anchor_mask")
    labels, _ = label_positions(merged["labels"])
    model = in_dtype(loaded.model, dtype).train().requires_grad_(True)
    merged["pixel_values"] = merged["pixel_values"].to(dtype)
    if dtype == torch.float32:  # what is computed again is not reached by the mode of fp64
        model.gradient_checkpointing_enable()
    found = []
    with InFp64() if dtype == torch.float64 else nullcontext():
        for when in ("never", "always"):
            with packing(when):
                logits = logits_at(model, merged, asked | labels)
                loss = kl_base_tuned(held, logits[-len(held) :]) - logits[: -len(held)].mean()
                found.append(({"logits": logits.detach()}, gradients(model, loss)))
    for plain, shared in zip(*found, strict=True):
        assert difference(shared, plain) <= limit
