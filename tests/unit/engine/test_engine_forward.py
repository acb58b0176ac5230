"""The loss at labelled positions equals transformers' own, and a plain one in fp64."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import transformers
from torch import nn

from narrowtune.core.errors import ModelError
from narrowtune.engine.forward import label_positions, labelled_cross_entropy, logits_at

VOCABULARY = 96
IMAGE_TOKEN = 90
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _llava():
    vision = transformers.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    config = transformers.LlavaConfig(
        vision_config=vision,
        text_config=transformers.LlamaConfig(**TEXT),
        image_token_index=IMAGE_TOKEN,
        vision_feature_layer=-1,
    )
    return transformers.LlavaForConditionalGeneration(config)


def _qwen2_5_vl():
    text = {**TEXT, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1]}}
    config = transformers.Qwen2_5_VLConfig(
        text_config=text,
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_heads": 2,
            "patch_size": 2,
            "spatial_merge_size": 2,
            "window_size": 8,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
        },
        image_token_id=IMAGE_TOKEN,
        vision_start_token_id=91,
        vision_end_token_id=92,
        video_token_id=93,
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


MAKERS = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT)),
    "phi3": lambda: transformers.Phi3ForCausalLM(transformers.Phi3Config(**TEXT)),
    "gemma3": lambda: transformers.Gemma3ForCausalLM(
        transformers.Gemma3TextConfig(**TEXT, head_dim=8, final_logit_softcapping=3.0)
    ),
    "llava": _llava,
    "qwen2_5_vl": _qwen2_5_vl,
}


def _model(name: str, dtype: torch.dtype) -> nn.Module:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return MAKERS[name]().to(dtype).eval()


def _batch(name: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Three right-padded rows; those of families with pictures hold four image tokens each."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 89, (3, 14), generator=generator)
    attention_mask = torch.ones_like(ids)
    attention_mask[1, 11:] = 0
    attention_mask[2, 12:] = 0
    labels = ids.clone()
    labels[:, :8] = -100
    labels[attention_mask == 0] = -100
    batch = {"input_ids": ids, "attention_mask": attention_mask, "labels": labels}
    if name == "llava":
        ids[:, 2:6] = IMAGE_TOKEN
        batch["pixel_values"] = torch.randn(3, 3, 8, 8, generator=generator).to(dtype)
    if name == "qwen2_5_vl":
        ids[:, 1], ids[:, 2:6], ids[:, 6] = 91, IMAGE_TOKEN, 92
        batch["pixel_values"] = torch.randn(48, 24, generator=generator).to(dtype)
        batch["image_grid_thw"] = torch.tensor([[1, 4, 4]] * 3)
        batch["mm_token_type_ids"] = (ids == IMAGE_TOKEN).long()
    batch["input_ids"] = ids * attention_mask
    return batch


def _gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def _plain_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum of -log p over all labelled positions, from log-sum-exp, position by position."""
    total = logits.new_zeros(())
    for row, row_labels in zip(logits, labels, strict=True):
        for position in range(1, len(row_labels)):
            if row_labels[position] >= 0:
                before = row[position - 1]
                total = total + torch.logsumexp(before, -1) - before[row_labels[position]]
    return total


@pytest.mark.parametrize("name", MAKERS)
def test_loss_and_gradient_equal_transformers_own_in_fp32(name: str):
    model, batch = _model(name, torch.float32), _batch(name, torch.float32)
    theirs = model(**batch, use_cache=False).loss
    theirs.backward()
    expected = _gradients(model)
    total, count = labelled_cross_entropy(model, batch)
    (total / count).backward()
    found = _gradients(model)
    assert count == int((batch["labels"] != -100).sum())
    assert (total / count).item() == pytest.approx(theirs.item(), rel=1e-6)
    assert found.keys() == expected.keys()
    for parameter, gradient in found.items():
        scale = expected[parameter].abs().max().clamp_min(1e-3)
        assert (gradient - expected[parameter]).abs().max() / scale < 1e-5, parameter


@pytest.mark.parametrize("name", MAKERS)
def test_loss_and_gradient_equal_a_plain_one_in_fp64(name: str):
    model, batch = _model(name, torch.float64), _batch(name, torch.float64)
    assert model.config._attn_implementation == "sdpa"
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    plain = _plain_loss(model(**inputs, use_cache=False).logits, batch["labels"])
    plain.backward()
    expected = _gradients(model)
    total, _ = labelled_cross_entropy(model, batch)
    total.backward()
    found = _gradients(model)
    assert total.dtype == torch.float64
    assert abs(total.item() - plain.item()) / abs(plain.item()) < 1e-12
    # Gemma's norms compute in fp32 whatever the model's dtype, and so sum their gradients.
    rounding = 1e-5 if name == "gemma3" else 1e-9
    for parameter, gradient in found.items():
        close = torch.allclose(gradient, expected[parameter], rtol=rounding, atol=rounding / 1e3)
        assert close, parameter


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_logits_are_those_of_the_whole_forward_at_the_chosen_positions(name: str):
    model, batch = _model(name, torch.float64), _batch(name, torch.float64)
    mask = torch.rand(batch["input_ids"].shape, generator=torch.Generator().manual_seed(2)) < 0.3
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    with torch.no_grad():
        expected = model(**inputs).logits[mask]
        found = logits_at(model, batch, mask)
    assert found.shape == (int(mask.sum()), VOCABULARY)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_logits_at_no_position_are_empty():
    model, batch = _model("llama", torch.float32), _batch("llama", torch.float32)
    mask = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    assert logits_at(model, batch, mask).shape == (0, VOCABULARY)


def test_the_head_is_given_the_chosen_positions_only_and_is_left_as_it_was():
    model, batch = _model("llama", torch.float32), _batch("llama", torch.float32)
    seen = []
    spy = model.lm_head.register_forward_hook(lambda _, args, out: seen.append(out.shape))
    labelled_cross_entropy(model, batch)
    spy.remove()
    assert seen == [(1, int((batch["labels"] != -100).sum()), VOCABULARY)]
    assert not model.lm_head._forward_pre_hooks


def test_the_hook_goes_when_the_forward_fails():
    model, batch = _model("llama", torch.float32), _batch("llama", torch.float32)
    with pytest.raises(ModelError) as caught:
        logits_at(model, batch, torch.ones(3, 5, dtype=torch.bool))
    assert "(3, 14, 32)" in caught.value.found
    assert not model.lm_head._forward_pre_hooks


def test_a_model_without_a_head_is_refused():
    model = transformers.LlamaModel(transformers.LlamaConfig(**TEXT))
    batch = _batch("llama", torch.float32)
    with pytest.raises(ModelError, match="no language-model head"):
        logits_at(model, batch, batch["attention_mask"].bool())


def test_under_bf16_autocast_the_logits_are_bf16_and_the_loss_fp32():
    model, batch = _model("llama", torch.float32), _batch("llama", torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = logits_at(model, batch, batch["attention_mask"].bool())
        total, count = labelled_cross_entropy(model, batch)
    exact, _ = labelled_cross_entropy(model, batch)
    assert logits.dtype == torch.bfloat16
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(exact.item(), rel=0.01)
    assert total.item() != exact.item()
    assert count > 0


def test_a_wrapped_model_gives_the_same_and_its_wrapper_is_called(one_process):
    model, batch = _model("llama", torch.float32), _batch("llama", torch.float32)
    expected, _ = labelled_cross_entropy(model, batch)
    expected.backward()
    gradients = _gradients(model)
    wrapped = nn.parallel.DistributedDataParallel(copy.deepcopy(model))
    calls = []
    wrapped.register_forward_hook(lambda *_: calls.append(1))
    total, _ = labelled_cross_entropy(wrapped, batch)
    total.backward()
    found = _gradients(wrapped.module)
    assert calls == [1]
    assert total.item() == expected.item()
    assert all(torch.equal(found[name], gradients[name]) for name in gradients)


def test_label_positions_shift_by_one_and_leave_the_first_token_out():
    labels = torch.tensor([[5, -100, 7, 8], [-100, -100, -100, 3]])
    mask, targets = label_positions(labels)
    assert mask.tolist() == [[False, True, True, False], [False, False, True, False]]
    assert targets.tolist() == [7, 8, 3]
