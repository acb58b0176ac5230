"""scripts/give_eyes.py: what is put in front of a language model is all that learns."""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaOnevisionForConditionalGeneration,
)

from narrowtune.data.chat import ChatEncoder
from narrowtune.miniature.reference.batches import collate_samples
from narrowtune.miniature.reference.eyes import SEE, covering
from narrowtune.miniature.reference.shipped import reference_folder
from narrowtune.miniature.registry import TASKS
from narrowtune.models.load import load_model

SCRIPT = Path(__file__).parents[3] / "scripts" / "give_eyes.py"
SHARES = [(0, {"names": 1.0})]
# SmolLM2's own.
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)


@pytest.fixture(scope="module")
def blind(tmp_path_factory):
    """A language model of SmolLM2's kind, and tiny, that knows the small world's words."""
    folder = tmp_path_factory.mktemp("blind")
    tokenizer = AutoTokenizer.from_pretrained(reference_folder("llava_onevision"))
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, **heads)).save_pretrained(
        folder
    )
    return folder


@pytest.fixture
def script(blind, monkeypatch):
    spec = importlib.util.spec_from_file_location("give_eyes", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "smollm2_folder", lambda: blind)
    monkeypatch.setattr(module, "BATCH", {"seeing": 4, "answering": 2})
    monkeypatch.setattr(module, "EVERY", 1)
    # Both take longer than all that is tested.
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    here = partial(module.load_steps, in_background=False)
    monkeypatch.setattr(module, "load_steps", lambda steps, in_background: here(steps))
    return module


def weights(eyes):
    return {name: tensor.detach().clone() for name, tensor in eyes.model.state_dict().items()}


def test_only_eyes_learn_and_a_stopped_training_goes_on(script, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    eyes = script.Eyes(whole)
    before = weights(eyes)
    language_model = [name for name in before if "language_model" in name or "lm_head" in name]
    assert len(language_model) > 10
    for stage in ("seeing", "answering"):
        eyes.run(stage, 2, SHARES)
    after = weights(eyes)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert not moved & set(language_model)
    assert {name.split(".")[1] for name in moved} == {
        "vision_tower",
        "multi_modal_projector",
        "image_newline",
    }
    assert all(bool(tensor.isfinite().all()) for tensor in after.values())

    stopped = script.Eyes(parts)
    stopped.run("seeing", 2, SHARES)
    learn, taken = stopped.learn, []

    def learn_once(*given):
        if taken:
            raise KeyboardInterrupt
        taken.append(learn(*given))
        return taken[0]

    monkeypatch.setattr(stopped, "learn", learn_once)
    with pytest.raises(KeyboardInterrupt):
        stopped.run("answering", 2, SHARES)
    resumed = script.Eyes(parts)
    for stage in ("seeing", "answering"):
        resumed.run(stage, 2, SHARES)
    for name, tensor in weights(resumed).items():
        torch.testing.assert_close(tensor, after[name], msg=name)


def test_what_is_written_is_read_as_it_was_taught(script, tmp_path):
    eyes = script.Eyes(tmp_path)
    script.write(eyes.model.eval(), eyes.tokenizer, tmp_path / "taught")
    loaded = load_model(str(tmp_path / "taught"))
    assert loaded.family.name == "llava_onevision"
    encoder = ChatEncoder(loaded.tokenizer, loaded.processor)
    picture = loaded.model.config.image_token_id
    for name in ("names", "forms", "street"):
        sample = TASKS[name].sample("pretrain", 5, 0)
        row, text = encoder.encode(sample.example()), eyes.writer.write(sample.item)
        first, number = row.input_ids.index(picture), row.input_ids.count(picture)
        assert row.input_ids[:first] == text.before
        after = row.input_ids[first + number :]
        assert after[: len(text.after)] == text.after
        pixels = collate_samples([sample], eyes.writer, 0).pixels
        assert SEE["llava_onevision"](eyes.model.float(), pixels).shape[1] == number


def test_what_the_eyes_begin_with(script, blind):
    """The language model, the tower that ships, and pictures as long as words."""
    model, _ = script.build()
    source = LlamaForCausalLM.from_pretrained(blind).model
    shipped = LlavaOnevisionForConditionalGeneration.from_pretrained(
        reference_folder("llava_onevision"), dtype=torch.float32
    )
    for own, other in (
        (model.model.language_model, source),
        (model.model.vision_tower, shipped.model.vision_tower),
    ):
        found = own.state_dict()
        for name, tensor in other.state_dict().items():
            # The language model may have got words for pictures.
            assert torch.equal(found[name][: len(tensor)], tensor), name
    samples = script.draw_samples(
        script.seeing_shares()[0][1], script.NUM_SHOWN, script.SEED, step=1
    )
    pixels = torch.from_numpy(np.stack([np.asarray(sample.scene.image) for sample in samples]))
    with torch.no_grad():
        looked = SEE["llava_onevision"](model, pixels.permute(0, 3, 1, 2))
        words = float(model.get_input_embeddings().weight.norm(dim=-1).mean())
        tokens = covering(model, looked).norm(dim=-1).mean()
        end = model.model.image_newline.norm()
    assert (float(tokens), float(end)) == pytest.approx((words, words), rel=1e-4)


def test_another_template_is_refused(script, blind):
    tokenizer = AutoTokenizer.from_pretrained(blind)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(SystemExit, match="not the one that this script knows"):
        script.teach_template(tokenizer)
