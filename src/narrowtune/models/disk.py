"""A model folder as it lies on disk: which files it has, and whether it is safe to load.

Owns every check that comes before transformers sees the folder: weights must be safetensors, no
file may ask for code to be run, and nothing may be quantised.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from narrowtune.core.errors import ModelError
from narrowtune.models.families import Family
from narrowtune.models.stored import Stored

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
LEGACY_CONSTANTS = (".position_ids", ".rotary_emb.inv_freq")
"""Ends of names of what old checkpoints carry along and models of today compute themselves."""

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_CODE = ("modeling_", "configuration_", "tokenization_", "processing_", "image_processing_")
# Large, and no settings: vocabularies and indexes.
_NOT_SETTINGS = ("tokenizer.json", "vocab.json", "added_tokens.json", INDEX)
_ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
_FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def check_folder(
    folder: Path, *, weights: bool = True, notes: list[str] | None = None
) -> dict[str, Any]:
    """Refuse a folder that can't be loaded safely; return its parsed config.json.

    Args:
        folder: of a model.
        weights: False looks at settings alone, where weights may not be there.
        notes: gets what people should know of the folder.

    Raises:
        ModelError: no config.json, broken JSON, pickled or missing weights, settings that fetch or
            run code, an adapter, a quantised checkpoint; and, unless transformers has the model
            itself, code files or an `auto_map`, which elsewhere than at the top of config.json is
            refused anyway.
    """
    asked = f"load the model at {str(folder)!r}"
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            asked=asked, found="an adapter (LoRA)", do="merge it into its base model first"
        )
    config = _read_object(folder / "config.json", asked)
    passed_over: list[str] = []
    for path in sorted(folder.glob("*.json")):
        if path.name not in _NOT_SETTINGS:
            settings = _read_json(path, asked)
            # Of a part, and of a tokenizer or processor, transformers may ask whether to run it, or
            # take another class.
            if path.name == "config.json" and "auto_map" in settings and _has_own_class(config):
                del settings["auto_map"]
                passed_over = ["auto_map in config.json"]
            for key, value in _settings(settings):
                _check_setting(path.name, key, value, asked)
    code = sorted(p.name for p in folder.glob("*.py") if p.name.startswith(_CODE))
    own_decoding = [p.name for p in folder.iterdir() if p.name == "custom_generate"]
    if own_decoding or (code and not _has_own_class(config)):
        raise ModelError(
            asked=asked,
            found=f"code that ships with the checkpoint: {', '.join([*own_decoding, *code])}",
            do="narrowtune runs transformers' own code only; if transformers knows the model, "
            "use a copy of the folder without that code",
        )
    if weights:
        disk_files(folder)
    passed_over += code
    if passed_over and notes is not None:
        notes.append(
            f"The folder has code of its own ({', '.join(passed_over)}), which is not run: "
            f"transformers' own {config['model_type']} takes its place."
        )
    return config


def disk_files(folder: Path) -> dict[str, Path]:
    """Map every tensor of a model folder to the safetensors file that has it.

    Raises:
        ModelError: there are no safetensors weights, or the index does not fit its files.
    """
    asked = f"read the weights in {str(folder)!r}"
    single, index = folder / WEIGHTS, folder / INDEX
    if single.is_file():
        return dict.fromkeys(_header(single, asked), single)
    if not index.is_file():
        if not folder.is_dir():
            raise ModelError(
                asked=asked,
                found="no such folder",
                do="give a folder; for a hub id: hf download ID --local-dir FOLDER",
            )
        pickles = sorted(p.name for p in folder.glob("*") if p.suffix in _PICKLES)
        raise ModelError(
            asked=asked,
            found=f"pickled weights ({', '.join(pickles[:4])}), which can run code when loaded"
            if pickles
            else f"neither {WEIGHTS} nor {INDEX}",
            do="convert the weights to safetensors"
            if pickles
            else "give the folder of a complete checkpoint",
        )
    weight_map = _read_object(index, asked).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(asked=asked, found=f"{INDEX} without a weight_map", do="fetch it again")
    files: dict[str, Path] = {}
    for shard in dict.fromkeys(map(str, weight_map.values())):
        path = folder / shard
        if Path(shard).name != shard or path.suffix != ".safetensors" or not path.is_file():
            raise ModelError(
                asked=asked,
                found=f"{INDEX} names {shard!r}, which is no safetensors file in the folder",
                do="fetch the missing shards again",
            )
        files |= dict.fromkeys(_header(path, asked), path)
    if set(files) != set(weight_map):
        odd = sorted(set(files) ^ set(weight_map))
        raise ModelError(
            asked=asked,
            found=f"{INDEX} and the shards disagree about {', '.join(odd[:8])}",
            do="fetch the folder again",
        )
    return files


def stored_dtypes(folder: Path) -> dict[str, int]:
    """Numbers stored in each floating dtype ("bfloat16", …), the widest dtype first.

    Constants that are not loaded are not counted.

    Raises:
        ModelError: a tensor is stored as integers or in 8 bits or less: a quantised checkpoint.
    """
    asked = f"read the weights in {str(folder)!r}"
    counts: dict[str, int] = {}
    for path in sorted(set(disk_files(folder).values())):
        for name, (stored, shape) in _header(path, asked).items():
            if name.endswith(LEGACY_CONSTANTS):  # not loaded, so their dtype decides nothing
                continue
            if stored in _FLOATS:
                dtype = _FLOATS[stored]
                counts[dtype] = counts.get(dtype, 0) + math.prod(shape)
            else:
                raise ModelError(
                    asked=asked,
                    found=f"{name} is stored as {stored}: a quantised checkpoint",
                    do="use it in bfloat16, float16 or float32",
                )
    if not counts:
        raise ModelError(asked=asked, found="no numbers at all", do="fetch the weights again")
    return {dtype: counts[dtype] for dtype in _FLOATS.values() if dtype in counts}


def locate(
    family: Family, names: Iterable[str], folder: Path, ties: dict[str, tuple[str, ...]]
) -> dict[str, tuple[Stored, ...]]:
    """Say under which names `folder` stores the parameters called `names` in memory.

    Args:
        family: the model's family.
        names: names in memory.
        folder: a model folder; published, saved by transformers, or in memory names.
        ties: other names of tied tensors, as `structure.find_ties` gives them.

    Returns:
        For each name, where it is in the folder; for a tied tensor that the folder stores more than
        once, all places.

    Raises:
        ModelError: the folder has no tensor that could be it.
    """
    stored = disk_files(folder)
    found: dict[str, tuple[Stored, ...]] = {}
    for name in names:
        places: list[Stored] = []
        for alias in (name, *ties.get(name, ())):
            places += _places(family, alias, stored)[:1]
        if not places:
            raise ModelError(
                asked=f"find {name} in {str(folder)!r}",
                found=f"no tensor called {' or '.join(family.disk_candidates(name))}",
                do="give a folder of the same family as the model",
            )
        found[name] = tuple(places)
    return found


def _places(family: Family, name: str, stored: Mapping[str, Path]) -> list[Stored]:
    """Where the parameter called `name` may be in a folder that has these tensors."""
    found = []
    other = family.stored_otherwise(name)
    if other is not None:
        parts = [family.disk_candidates(part) for part in other.parts]
        for patterns in zip(*parts, strict=True):
            names = _experts(patterns, stored) if "*" in patterns[0] else patterns
            if names and all(part in stored for part in names):
                number = len(patterns) if "*" in patterns[0] else 0
                found.append(Stored(tuple(names), number, other.transposed))
    return found + [Stored((c,)) for c in family.disk_candidates(name) if c in stored]


def _experts(patterns: Sequence[str], stored: Mapping[str, Path]) -> list[str]:
    """Names of all experts' parts, expert by expert, up to the first that lacks one."""
    names: list[str] = []
    for number in itertools.count():
        parts = [pattern.replace("*", str(number)) for pattern in patterns]
        if not all(part in stored for part in parts):
            return names
        names += parts
    raise AssertionError("counting does not end")


def _has_own_class(config: dict[str, Any]) -> bool:
    """Whether transformers has a class of its own for a config.json, which it takes then."""
    import transformers  # takes a while, and few folders are asked about

    return str(config.get("model_type")) in transformers.CONFIG_MAPPING


def _check_setting(file: str, key: str, value: Any, asked: str) -> None:
    """Refuse a setting that makes transformers run code that is not its own, or unpack weights."""
    if key == "auto_map":
        found = "auto_map, which loads code that ships with the checkpoint"
        do = "if transformers knows what it stands for, use a copy of the folder without auto_map"
    elif key.startswith("_") and key.endswith("_internal"):
        found, do = f"the private setting {key!r}", "remove it from a copy of the folder"
    elif key.strip("_") == "attn_implementation" and value not in (None, *_ATTENTION):
        found, do = f"{key} = {value!r}, which can fetch code", "remove it from a copy"
    elif key == "transformers_weights":
        found, do = f"{key}, which names weights of its own", "remove it from a copy"
    elif key in ("quantization_config", "compression_config") and value:
        found, do = "a quantised checkpoint", "use it in bfloat16, float16 or float32"
    else:
        return
    raise ModelError(asked=asked, found=f"{file} has {found}", do=do)


def _settings(value: Any) -> Iterator[tuple[str, Any]]:
    """All keys with their values, at any depth."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner
            yield from _settings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _settings(inner)


def _read_object(path: Path, asked: str) -> dict[str, Any]:
    value = _read_json(path, asked)
    if not isinstance(value, dict):
        raise ModelError(asked=asked, found=f"{path.name} is no object", do="fetch the file again")
    return value


def _read_json(path: Path, asked: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            asked=asked, found=f"no {path.name}", do="give the folder of a complete checkpoint"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            asked=asked, found=f"{path.name} can't be read: {error}", do="fetch the file again"
        ) from None


def _header(path: Path, asked: str) -> dict[str, tuple[str, list[int]]]:
    """Dtype and shape of every tensor in a safetensors file, without reading the tensors."""
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: (s.get_dtype(), s.get_shape()) for name, s in slices.items()}
    except (OSError, SafetensorError) as error:
        raise ModelError(
            asked=asked,
            found=f"{path.name} is no intact safetensors file ({error})",
            do="fetch the file again",
        ) from None
