"""From a tuned model to its delta."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from accelerate.utils import extract_model_from_parallel
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from torch import Tensor, nn

from narrowtune.core.errors import DeltaError, ModelError
from narrowtune.data.digest import tensor_sha256
from narrowtune.delta.bits import DTYPES, SAFETENSORS_TAGS, all_finite, dtype_name, xor
from narrowtune.delta.layout import read_layout
from narrowtune.delta.store import Delta, Metadata, TensorRecord, check_free_space
from narrowtune.delta.verify import widest_dtype
from narrowtune.models.disk import locate
from narrowtune.models.families import find_family
from narrowtune.models.fingerprint import combine_hashes, named_tensors, tensor_hashes
from narrowtune.models.select import Selection
from narrowtune.models.structure import find_ties, show_names

Base = Mapping[str, Tensor] | nn.Module | str | Path
"""Where the selected tensors' values before training come from; see `extract`."""

_DTYPES_BY_TAG = {tag: dtype_name(dtype) for dtype, tag in SAFETENSORS_TAGS.items()}


class OtherDtypeWarning(UserWarning):
    """A delta is in another dtype than the folder that its model was loaded from."""


def extract(
    model: nn.Module,
    selection: Selection,
    base: Base | None = None,
    *,
    base_hashes: Mapping[str, str] | None = None,
    notes: Iterable[str] = (),
) -> Delta:
    """Return what training changed in the selected tensors of `model`.

    Tuned values are rounded to the base's dtype (to nearest, ties to even), so a model whose
    selected parameters are fp32 masters over a bf16 base gives a bf16 delta. The model is not
    changed; to go on with exactly what the delta holds, round it or `apply` the delta to a base.

    Args:
        model: the tuned model, on any device, wrapped or not.
        selection: what `select` returned.
        base: the values before training: a mapping from name in memory to tensor, in the base's
            dtype; or the untouched base model; or its folder, from which the selected tensors
            alone are read, in the dtype that the model was loaded in (`model.config.dtype`); or
            None for the folder that the model was loaded from (`config._name_or_path`), which for
            a hub id is the one in the hub's cache on this disk.
        base_hashes: what `tensor_hashes` returned for the base. Unless given, frozen tensors are
            hashed as they are now, and parameters that are wider than the base (masters of an
            earlier selection, a model held in fp32 for the run) as they are when rounded to its
            dtype: so a delta has them, and so does a folder. Needed where they are quantised.
        notes: what a user of the delta must know, kept in the file.

    Warns:
        OtherDtypeWarning: the base is in another dtype than the folder that the model was loaded
            from, as after `from_pretrained(…, dtype=torch.float32)` of bf16 weights: the delta is
            exact, but fits models loaded in that dtype alone, not the folder. Nothing is said
            where that folder can't be read.

    Raises:
        DeltaError: the base can't be found or does not match the selection or its hashes, a dtype
            has no delta, or a value is NaN or infinite.
    """
    asked = f"extract the delta of {selection.recipe} ({len(selection.names)} tensors)"
    model = extract_model_from_parallel(model, keep_torch_compile=False)
    find_base = _base_reader(model, selection, base, asked)
    parameters = dict(model.named_parameters())
    ties = find_ties(model)
    bits, records = {}, {}
    for name in selection.names:
        if name not in parameters:
            raise _mismatch(asked, f"the model has no parameter {name}")
        before = find_base(name)
        after = _round_to(parameters[name], before, name, asked)
        bits[name] = xor(after, before).contiguous()
        records[name] = TensorRecord(
            disk_name=selection.disk_names[name],
            shape=list(before.shape),
            dtype=dtype_name(before.dtype),
            base_sha256=tensor_sha256(before),
            tuned_sha256=tensor_sha256(after),
            tied=list(ties.get(name, ())),
        )
    if base_hashes is None:
        # Masters that an earlier `select` left are in no folder, rounded ones are.
        frozen = tensor_hashes(
            model,
            [name for name, _ in named_tensors(model) if name not in records],
            widest=widest_dtype(records),
        )
    else:
        frozen = {name: h for name, h in base_hashes.items() if name not in records}
        wrong = [n for n, record in records.items() if base_hashes.get(n) != record.base_sha256]
        if wrong:
            raise _mismatch(asked, f"the base's hashes are not those of {show_names(wrong)}")
    _warn_of_other_dtype(model, records)
    metadata = Metadata(
        recipe=selection.recipe,
        family=selection.family,
        base_fingerprint=combine_hashes(
            {**frozen, **{n: r.base_sha256 for n, r in records.items()}}
        ),
        tuned_fingerprint=combine_hashes(
            {**frozen, **{n: r.tuned_sha256 for n, r in records.items()}}
        ),
        notes=list(notes),
        tensors=records,
        frozen=frozen,
    )
    return Delta(metadata, bits)


def check_room(folder: Path, model: nn.Module, selection: Selection, *, number: int = 1) -> None:
    """See that `number` deltas of this selection will have room, before anything is trained.

    Args:
        folder: where they will be written; it is there.
        model: in the base's dtype.
        selection: what will be trained.
        number: of deltas.

    Raises:
        DeltaError: the disk has too little room for them, if nothing of them can be packed.
    """
    parameters = dict(model.named_parameters())
    num_bytes = sum(parameters[name].nbytes for name in selection.names)
    check_free_space(
        folder, number * num_bytes, f"room for the delta of {selection.recipe} in {folder}"
    )


def _base_reader(
    model: nn.Module, selection: Selection, base: Base | None, asked: str
) -> Callable[[str], Tensor]:
    """Return how to get the base's tensor of a name, on the CPU."""
    if isinstance(base, nn.Module):
        unwrapped = extract_model_from_parallel(base, keep_torch_compile=False)
        if unwrapped is model:
            raise DeltaError(
                asked=asked,
                found="the base that was given is the tuned model itself",
                do="give the values from before training, or the base's folder",
            )
        base = dict(unwrapped.named_parameters())
    if isinstance(base, Mapping):
        tensors = base
        missing = [name for name in selection.names if name not in tensors]
        if missing:
            raise _mismatch(asked, f"the base has no {missing[0]} ({len(missing)} are missing)")
        return lambda name: tensors[name].detach().to("cpu").contiguous()
    folder = Path(base) if base is not None else _loaded_from(model)
    dtype = getattr(getattr(model, "config", None), "dtype", None)
    if folder is None or not folder.is_dir() or not isinstance(dtype, torch.dtype):
        named = base if base is not None else _name(model)
        raise DeltaError(
            asked=asked,
            found=f"no folder {str(named)!r} with the model before training",
            do="give `base`: the values before training, the base model, or its folder",
        )
    layout = read_layout(folder)
    places = locate(find_family(model), selection.names, folder, find_ties(model))
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    return lambda name: (
        places[name][0].assemble(layout.read, shapes.get(name)).to(dtype).contiguous()
    )


def _loaded_from(model: nn.Module) -> Path | None:
    """Return the folder that a model was loaded from, a hub id's being in the hub's cache."""
    name = _name(model)
    if not name:
        return None
    revision = getattr(model.config, "_commit_hash", None)
    try:
        if Path(name).is_dir():
            return Path(name)
        if revision is None:  # what the cache has by that name may be another base
            return None
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError, OSError):
        return None


def _name(model: nn.Module) -> str:
    """Return the folder or hub id that a model was loaded by; nothing where it has none."""
    return getattr(getattr(model, "config", None), "_name_or_path", "") or ""


def _warn_of_other_dtype(model: nn.Module, records: Mapping[str, TensorRecord]) -> None:
    """Say so where the folder behind `model` holds the selected tensors in another dtype."""
    folder = _loaded_from(model)
    if folder is None or not (folder / "config.json").is_file():
        return
    try:
        places = read_layout(folder).places
    except (ModelError, OSError):
        # The delta needs nothing of this folder, which may have been moved since, or hold pickled
        # weights: what was trained is not given up for a warning.
        return
    for name, record in records.items():
        disk_name = record.disk_name.split(", ")[0].replace("*", "0")  # of parts, the first
        if disk_name not in places:
            continue
        tag = places[disk_name].entry.dtype
        stored = _DTYPES_BY_TAG.get(tag, tag)
        if stored != record.dtype:
            warnings.warn(
                f"this delta is {record.dtype}, and {folder} stores {name} as {stored}: it can be "
                f"applied to models loaded in {record.dtype}, not to that folder. For a delta that "
                f"fits the folder, load the base with dtype={stored!r}, or give `base` in it.",
                OtherDtypeWarning,
                stacklevel=3,
            )
            return


def _round_to(parameter: Tensor, base: Tensor, name: str, asked: str) -> Tensor:
    if dtype_name(base.dtype) not in DTYPES or not parameter.is_floating_point():
        raise _mismatch(asked, f"{name} is {dtype_name(base.dtype)}: no delta can be made of it")
    if parameter.shape != base.shape or parameter.is_meta:
        raise _mismatch(
            asked,
            f"{name} has shape {list(parameter.shape)} ({parameter.device}), "
            f"its base {list(base.shape)}",
        )
    rounded = parameter.detach().to(base.dtype).to("cpu").contiguous()
    for which, tensor in (("tuned", rounded), ("base", base)):
        if not all_finite(tensor):
            raise DeltaError(
                asked=asked,
                found=f"the {which} {name} holds NaN or infinity as {dtype_name(base.dtype)}",
                do="train with a lower learning rate, or from a sound checkpoint",
            )
    return rounded


def _mismatch(asked: str, found: str) -> DeltaError:
    return DeltaError(
        asked=asked, found=found, do="use the model, selection and base of one and the same run"
    )
