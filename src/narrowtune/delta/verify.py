"""Whether a delta fits: every check, before anything is touched.

One set of checks for models in memory and folders on disk; they differ only in how a tensor is
found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from narrowtune.core.errors import DeltaError
from narrowtune.data.digest import tensor_sha256
from narrowtune.delta.bits import all_finite, dtype_name, flip
from narrowtune.delta.store import Delta, TensorRecord
from narrowtune.models.disk import check_folder
from narrowtune.models.families import Family, find_family
from narrowtune.models.structure import show_names

Direction = Literal["apply", "undo"]
"""`apply` goes from base to tuned, `undo` back."""

MAX_NAMED = 8
"""How many tensors an error names."""


def source_sha256(record: TensorRecord, direction: Direction) -> str:
    """Return the hash that a tensor must have before the delta goes over it."""
    return record.base_sha256 if direction == "apply" else record.tuned_sha256


def result_sha256(record: TensorRecord, direction: Direction) -> str:
    """Return the hash that a tensor has after the delta went over it."""
    return record.tuned_sha256 if direction == "apply" else record.base_sha256


def widest_dtype(records: Mapping[str, TensorRecord]) -> torch.dtype | None:
    """Return the widest dtype that a delta's tensors are stored in; None for none."""
    dtypes = {getattr(torch, record.dtype) for record in records.values()}
    return max(dtypes, key=lambda dtype: dtype.itemsize, default=None)


def verify_family(folder: Path, deltas: Sequence[Delta], asked: str) -> Family:
    """Return the family of a folder's model, which is that of all these deltas.

    Raises:
        DeltaError: a delta is of another family.
        ModelError: the folder can't be loaded safely.
    """
    family = find_family(check_folder(folder))
    for delta in deltas:
        if family.name != delta.metadata.family:
            raise DeltaError(
                asked=asked,
                found=f"a {family.name} model, and a delta of a {delta.metadata.family} model",
                do="name the folder of the delta's base",
            )
    return family


def verify_selected(
    delta: Delta,
    direction: Direction,
    find: Callable[[str, TensorRecord], Tensor | None],
    asked: str,
) -> None:
    """Check that every tensor of the delta is there, is what it must be, and will come out right.

    Args:
        find: returns the tensor that has this name in memory and this record, or None.
        asked: the clause that an error begins with.

    Raises:
        DeltaError: a tensor is missing or has another shape, dtype or content; the delta is
            already applied, or not applied; a result would not be finite or not the promised one.
    """
    misfits: list[str] = []
    source: list[str] = []
    result: list[str] = []
    other: list[str] = []
    for name, record in delta.metadata.tensors.items():
        tensor = find(name, record)
        if (misfit := _describe_misfit(name, record, tensor)) is not None:
            misfits.append(misfit)
            continue
        assert tensor is not None, "what is not there is a misfit"
        digest = tensor_sha256(tensor)
        before, after = source_sha256(record, direction), result_sha256(record, direction)
        if digest not in (before, after):
            other.append(name)
        elif before != after:  # one that training left as it was does not tell which it is
            (source if digest == before else result).append(name)
    if misfits:
        raise DeltaError(
            asked=asked,
            found="; ".join(misfits[:MAX_NAMED]) + f" ({len(misfits)} in all do not fit)",
            do="use the model and the dtype that the delta was made from (`narrowtune delta info`)",
        )
    if result or other:
        raise _contents_error(delta, direction, source, result, other, asked)
    for name, record in delta.metadata.tensors.items():
        tensor = find(name, record)
        assert tensor is not None, "what is not there is a misfit"
        _verify_result(delta, direction, name, tensor, asked)


def _describe_misfit(name: str, record: TensorRecord, tensor: Tensor | None) -> str | None:
    if tensor is None:
        return f"{name} is not there"
    if list(tensor.shape) != record.shape:
        return f"{name} has shape {list(tensor.shape)}, the delta {record.shape}"
    if dtype_name(tensor.dtype) != record.dtype:
        return f"{name} is {dtype_name(tensor.dtype)}, the delta {record.dtype}"
    if tensor.is_meta:
        return f"{name} is not loaded (meta device)"
    return None


def _contents_error(
    delta: Delta,
    direction: Direction,
    source: list[str],
    result: list[str],
    other: list[str],
    asked: str,
) -> DeltaError:
    if not other and not source:
        if direction == "apply":
            return DeltaError(
                asked, "the delta is already applied", "use the model as it is, or undo first"
            )
        return DeltaError(
            asked, "the delta is not applied: this is the base", "use the model as it is"
        )
    wanted = "base" if direction == "apply" else "tuned"
    parts = []
    if other:
        parts.append(
            f"{len(other)} of {len(delta.metadata.tensors)} tensors are neither base nor tuned: "
            + show_names(other)
        )
    if result:
        opposite = "tuned" if direction == "apply" else "base"
        parts.append(f"{len(result)} already hold the {opposite} values: {show_names(result)}")
    return DeltaError(
        asked=asked,
        found="; ".join(parts),
        do=f"use exactly the {wanted} model that the delta names (`narrowtune delta info`)",
    )


def _verify_result(
    delta: Delta, direction: Direction, name: str, tensor: Tensor, asked: str
) -> None:
    after = flip(tensor, delta.bits[name])
    if tensor_sha256(after) != result_sha256(delta.metadata.tensors[name], direction):
        found = f"the bits of {name} do not lead to the hash that the delta promises"
    elif not all_finite(after):
        found = f"{name} would hold NaN or infinity"
    else:
        return
    raise DeltaError(
        asked=asked, found=found, do="the delta is damaged: fetch it again from where it came from"
    )


def verify_frozen(delta: Delta, is_there: Callable[[str, str], bool], asked: str) -> None:
    """Check that the tensors that the delta does not change are those of its base.

    Args:
        is_there: whether the tensor of this name in memory has this hash.

    Raises:
        DeltaError: one has not; the error names it.
    """
    frozen = delta.metadata.frozen
    changed = [name for name, digest in frozen.items() if not is_there(name, digest)]
    if changed:
        raise DeltaError(
            asked=asked,
            found=f"{len(changed)} of {len(frozen)} tensors that the delta leaves alone are not "
            f"its base's: {show_names(changed)}",
            do="use the exact base; in Python, strict=False switches this check off, for where "
            "the rest of the model is meant to differ",
        )
