"""A delta on a model in memory: put on, taken off, each exactly and only where it fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn

from narrowtune.core.errors import DeltaError
from narrowtune.data.digest import tensor_sha256
from narrowtune.delta.bits import view_bits
from narrowtune.delta.store import Delta
from narrowtune.delta.verify import (
    Direction,
    result_sha256,
    verify_frozen,
    verify_selected,
    widest_dtype,
)
from narrowtune.models.fingerprint import named_tensors, tensor_hashes
from narrowtune.models.structure import find_ties, show_names


def apply(model: nn.Module, delta: Delta, *, strict: bool = True) -> None:
    """Turn the base into the tuned model, in place, bit for bit.

    The model may be on any device and wrapped (DDP, `torch.compile`). Everything is verified
    before anything is touched. Time and memory: one pass of SHA-256 over the model when strict,
    and a copy of one tensor at a time.

    Args:
        model: the base, in the dtype that the delta was made from.
        delta: what to apply.
        strict: also check that every tensor the delta leaves alone is the base's.

    Raises:
        DeltaError: the model is not the base, the delta is already applied, or it is damaged.
            The model is then as it was.
    """
    _exchange(model, delta, "apply", strict)


def undo(model: nn.Module, delta: Delta, *, strict: bool = True) -> None:
    """Turn the tuned model back into the base, in place, bit for bit; see `apply`."""
    _exchange(model, delta, "undo", strict)


def _exchange(model: nn.Module, delta: Delta, direction: Direction, strict: bool) -> None:
    asked = f"{direction} a delta ({delta.metadata.recipe}, {len(delta.bits)} tensors)"
    model = extract_model_from_parallel(model, keep_torch_compile=False)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    verify_selected(delta, direction, lambda name, _: parameters.get(name), asked)
    _verify_ties(model, delta, asked)
    if strict:
        present = dict(named_tensors(model))
        frozen = [name for name in delta.metadata.frozen if name in present]
        if away := [name for name in frozen if present[name].is_meta]:
            raise DeltaError(
                asked=asked,
                found=f"{len(away)} of {len(frozen)} tensors that the delta leaves alone are not "
                f"loaded (meta device): {show_names(away)}",
                do="load the whole model, without offloading (device_map); in Python, strict=False "
                "leaves these unchecked",
            )
        fitting = _fits(model, delta, frozen)
        verify_frozen(delta, lambda name, _: name in fitting, asked)
    flipped: list[str] = []
    try:
        for name, bits in delta.bits.items():
            view = view_bits(parameters[name])
            moved = bits.to(view.device)  # may run out of memory, so before the flip
            flipped.append(name)
            view.bitwise_xor_(moved)
    except BaseException:
        # Interrupted between tensors: the same operation puts those back that were done.
        _roll_back(parameters, delta, flipped, direction)
        raise


def _fits(model: nn.Module, delta: Delta, frozen: Sequence[str]) -> set[str]:
    """Return those of some tensors that are the base's, as they are or rounded to its dtype.

    `extract` rounds what is wider, such as an earlier selection's masters.
    """
    known, hashes = delta.metadata.frozen, tensor_hashes(model, frozen)
    other = [name for name in frozen if hashes[name] != known[name]]
    rounded = tensor_hashes(model, other, widest=widest_dtype(delta.metadata.tensors))
    return {name for name in frozen if known[name] in (hashes[name], rounded.get(name))}


def _roll_back(
    parameters: Mapping[str, Tensor], delta: Delta, flipped: list[str], direction: Direction
) -> None:
    for name in flipped:
        done = result_sha256(delta.metadata.tensors[name], direction)
        if tensor_sha256(parameters[name]) == done:
            view_bits(parameters[name]).bitwise_xor_(delta.bits[name].to(parameters[name].device))


def _verify_ties(model: nn.Module, delta: Delta, asked: str) -> None:
    ties = find_ties(model)
    for name, record in delta.metadata.tensors.items():
        found = ties.get(name, ())
        if sorted(found) != sorted(record.tied):
            raise DeltaError(
                asked=asked,
                found=f"{name} is tied to {', '.join(found) or 'nothing'}, in the delta to "
                f"{', '.join(record.tied) or 'nothing'}",
                do="load the model with the configuration (tie_word_embeddings) of the base",
            )
