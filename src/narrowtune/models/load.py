"""A folder or hub id becomes a model with its tokenizer, and goes back to a folder.

Owns loading and saving. Nothing is initialised at random: a missing, extra or misshapen tensor is
an error. No code but transformers' own runs.
"""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from packaging.version import Version
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.utils import is_torchvision_available

from narrowtune.core.errors import ModelError
from narrowtune.core.extras import require
from narrowtune.models.alignment import align_weights
from narrowtune.models.chunks import attend_to_chunks_together
from narrowtune.models.disk import LEGACY_CONSTANTS, check_folder, stored_dtypes
from narrowtune.models.experts import follow_autocast
from narrowtune.models.families import Family, find_family
from narrowtune.models.hub import find_folder
from narrowtune.models.processors import IMAGE_ONLY, NEEDED, check_kwargs, leave_to_pictures
from narrowtune.models.shortage import is_out_of_memory

logger = logging.getLogger(__name__)

_FEW = 0.01
"""Share of a checkpoint's numbers in another dtype that does not decide what it is loaded in."""

# What save_pretrained copies as it is: everything that belongs to text and pictures.
_PROCESSOR_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "generation_config.json",
)


@dataclass
class LoadedModel:
    """A model and everything that turns rows into its inputs.

    Attributes:
        model: in eval mode, in `dtype`.
        tokenizer: the processor's, for a multimodal model.
        processor: of a multimodal model; None for text.
        family: where its parts are.
        source: what the user asked for.
        folder: where its files lie.
        dtype: of every parameter.
        notes: what the user should know, for the record.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    processor: ProcessorMixin | None
    family: Family
    source: str
    folder: Path
    dtype: torch.dtype
    notes: list[str] = field(default_factory=list)


@dataclass
class RowReader:
    """What turns rows into a model's inputs, without the model.

    Attributes:
        tokenizer: the processor's, for a multimodal model.
        processor: of a multimodal model; None for text.
        family: which kind of model it belongs to.
        notes: what the user should know.
    """

    tokenizer: PreTrainedTokenizerBase
    processor: ProcessorMixin | None
    family: Family
    notes: list[str] = field(default_factory=list)


def load_reader(
    source: str,
    *,
    revision: str | None = None,
    processor_kwargs: Mapping[str, Any] | None = None,
) -> RowReader:
    """Load what reads a model's rows; its weights are neither read nor fetched.

    Args and errors are those of `load_model`.
    """
    notes: list[str] = []
    folder = find_folder(source, revision, weights=False)
    config = check_folder(folder, weights=False, notes=notes)
    family = find_family(config)
    _check_version(family)
    tokenizer, processor = _load_processor(folder, family, notes, processor_kwargs or {})
    return RowReader(tokenizer, processor, family, notes)


def load_model(
    source: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    revision: str | None = None,
    processor_kwargs: Mapping[str, Any] | None = None,
) -> LoadedModel:
    """Load the model in a folder or under a hub id.

    Args:
        source: a local folder, or the id of a model on the Hugging Face hub.
        dtype: "bfloat16", "float16", "float32", or "auto" for the dtype of the stored weights.
        device: a torch device, or "auto" for the first accelerator, else the CPU.
        revision: commit, tag or branch of a hub id.
        processor_kwargs: settings of the processor that replace those of its files, such as
            `max_pixels`.

    Raises:
        UsageError: the processor takes no such setting, or there is none.
        ModelError: the source is not there, not safe, incomplete or quantised.
        UnknownFamilyError: no table says where this model's parts are.
    """
    notes: list[str] = []
    folder = find_folder(source, revision)
    config = check_folder(folder, notes=notes)
    family = find_family(config)
    _check_version(family)
    torch_dtype = _choose_dtype(folder, dtype, notes)
    model = _load_weights(folder, family, torch_dtype, notes)
    tokenizer, processor = _load_processor(folder, family, notes, processor_kwargs or {})
    # transformers' wrapper of `to` hides whose method it is.
    model.to(_choose_device(device)).eval()  # type: ignore[arg-type]
    align_weights(model)
    attend_to_chunks_together(model)
    follow_autocast(model)
    for note in notes:
        _warn_once(note)
    return LoadedModel(
        model, tokenizer, processor, find_family(model), source, folder, torch_dtype, notes
    )


def save_pretrained(
    loaded: LoadedModel, folder: str | Path, *, max_shard_size: str = "5GB"
) -> None:
    """Write weights and config, and copy the tokenizer's and processor's files as they are.

    Raises:
        ModelError: the folder has files already, or a parameter is not in the model's dtype.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ModelError(
            asked=f"save the model to {str(folder)!r}",
            found="files there already",
            do="name a new folder",
        )
    wide = [n for n, p in loaded.model.named_parameters() if p.dtype != loaded.dtype]
    if wide:
        raise ModelError(
            asked=f"save the model in {loaded.dtype}",
            found=f"parameters in another dtype, such as {wide[0]}",
            do="finish training first: it rounds the trained weights to the model's dtype",
        )
    loaded.model.save_pretrained(folder, max_shard_size=max_shard_size)
    for name in _PROCESSOR_FILES:
        if (loaded.folder / name).is_file():
            shutil.copyfile(loaded.folder / name, folder / name)
    for name in ("chat_templates", "additional_chat_templates"):
        if (loaded.folder / name).is_dir():
            shutil.copytree(loaded.folder / name, folder / name)


@cache
def _warn_once(note: str) -> None:
    logger.warning(note)


def _choose_dtype(folder: Path, dtype: str, notes: list[str]) -> torch.dtype:
    """The dtype to load in; "auto" is that of nearly all numbers, else one that loses no bit."""
    counts = stored_dtypes(folder)
    stored = list(counts)
    if dtype == "auto":
        most = max(stored, key=lambda name: counts[name])
        rest = 1 - counts[most] / sum(counts.values())
        # Wider ones alone: bf16 has the range of fp32, and what is rounded can be told from it.
        if most == "bfloat16" and {*stored} <= {most, "float32", "float64"} and 0 < rest <= _FEW:
            notes.append(
                f"{100 * rest:.2g} % of the weights' numbers are stored in "
                f"{' and '.join(name for name in stored if name != most)}, and loaded in {most} as "
                "the others are. A delta leaves them in the folder as they are stored; one of a "
                "recipe that trains them (full, language_model) fits no folder that has them so."
            )
            return getattr(torch, most)
        if len(stored) > 1:
            notes.append(
                f"The weights are stored in {' and '.join(stored)}; all are loaded in {stored[0]}: "
                f"a delta will fit the model in {stored[0]} only, and not this folder, whose "
                f"tensors in {' and '.join(stored[1:])} are others."
            )
        return getattr(torch, stored[0])
    if dtype not in ("bfloat16", "float16", "float32"):
        raise ModelError(
            f"load in the dtype {dtype!r}",
            "no such choice",
            "choose auto, bfloat16, float16 or float32",
        )
    if [dtype] != stored:
        notes.append(
            f"The weights are stored in {' and '.join(stored)} and loaded in {dtype}: "
            f"a delta will fit the model in {dtype} only, and a folder that stores what is trained "
            "in it."
        )
    return getattr(torch, dtype)


def _choose_device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"use the device {device!r}", str(error).splitlines()[0], "choose auto, cpu or cuda"
        ) from None
    return chosen


def _load_weights(
    folder: Path, family: Family, dtype: torch.dtype, notes: list[str]
) -> PreTrainedModel:
    asked = f"load the weights in {str(folder)!r}"
    auto = AutoModelForImageTextToText if family.is_multimodal else AutoModelForCausalLM
    try:
        loaded: Any = auto.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation="sdpa",
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that the report names them; refused below
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        do = "check config.json and the weights"
        if is_out_of_memory(error):
            do = "load it in bfloat16 (dtype), or on a machine with more memory"
        raise ModelError(asked, f"{type(error).__name__}: {error}", do) from error
    model, report = loaded
    odd = {kind: sorted(map(str, names)) for kind, names in report.items() if names}
    legacy = [n for n in odd.get("unexpected_keys", []) if n.endswith(LEGACY_CONSTANTS)]
    if legacy:
        odd["unexpected_keys"] = [n for n in odd["unexpected_keys"] if n not in legacy]
        notes.append(f"{len(legacy)} constants of older transformers versions are not read.")
    odd = {kind: names for kind, names in odd.items() if names}
    if odd:
        raise ModelError(
            asked,
            "; ".join(
                f"{kind.replace('_', ' ')}: {', '.join(names[:8])}" for kind, names in odd.items()
            ),
            "fetch the checkpoint again; what is missing would be random",
        )
    other = [name for name, p in model.named_parameters() if p.dtype != dtype]
    assert not other, f"transformers kept {other[:4]} in a dtype of their own"
    return model


def _check_version(family: Family) -> None:
    """Refuse a family that this transformers reads otherwise than the tests have seen it."""
    if family.transformers is None:
        return
    installed = Version(transformers.__version__)
    if (installed.major, installed.minor) < Version(family.transformers).release:
        raise ModelError(
            f"load a model of the family {family.title}",
            f"transformers {installed}; it is known to work with {family.transformers} and newer",
            f"pip install 'transformers>={family.transformers}'",
        )


def _load_processor(
    folder: Path, family: Family, notes: list[str], given: Mapping[str, Any]
) -> tuple[PreTrainedTokenizerBase, ProcessorMixin | None]:
    settings: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    kind: Any = AutoProcessor if family.is_multimodal else AutoTokenizer
    if family.name in NEEDED:
        require(family.name, *NEEDED[family.name], asked=f"load the processor of {family.title}")
    if family.name in IMAGE_ONLY and not is_torchvision_available():
        kind = IMAGE_ONLY[family.name]
        notes.append(
            f"torchvision is not installed, so {family.title}'s processor is loaded for text and "
            "pictures only; its files, those for video included, are kept as they are."
        )
    try:
        loaded = kind.from_pretrained(folder, **settings)
        if given:
            check_kwargs(loaded, given, lambda key: kind.from_pretrained(folder, **settings, **key))
            plain, loaded = (
                loaded,
                kind.from_pretrained(folder, **settings, **copy.deepcopy(dict(given))),
            )
            leave_to_pictures(plain, loaded, given)
            notes.append(f"The processor's own settings are replaced by {dict(given)}.")
    except (OSError, ValueError, KeyError, TypeError, ImportError, AttributeError) as error:
        raise ModelError(
            f"load the {'processor' if family.is_multimodal else 'tokenizer'} in {str(folder)!r}",
            f"{type(error).__name__}: {error}",
            "fetch the tokenizer's and processor's files of the checkpoint again",
        ) from error
    if not family.is_multimodal:
        return loaded, None
    if not isinstance(loaded, ProcessorMixin):
        raise ModelError(
            f"load the processor in {str(folder)!r}",
            f"a {type(loaded).__name__} alone",
            "fetch preprocessor_config.json and processor_config.json of the checkpoint",
        )
    return loaded.tokenizer, loaded
