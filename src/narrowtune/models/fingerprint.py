"""Hashes of weights: what proof and deltas compare.

Owns `tensor_sha256`, the hash of one tensor, and `fingerprint`, the hash of a model.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from narrowtune.core.errors import SelectionError
from narrowtune.data.digest import tensor_sha256


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and persistent buffers, by name in memory; a tied tensor once."""
    yield from model.named_parameters()
    for name, buffer in model.named_buffers():
        owner, _, leaf = name.rpartition(".")
        if leaf not in model.get_submodule(owner)._non_persistent_buffers_set:
            yield name, buffer


def tensor_hashes(
    model: nn.Module, names: Iterable[str] | None = None, *, widest: torch.dtype | None = None
) -> dict[str, str]:
    """`tensor_sha256` of each of `names`, or of all parameters and persistent buffers.

    Args:
        model: holds them.
        names: in memory.
        widest: a parameter in a wider floating dtype is hashed as it is when rounded to this one.

    Raises:
        SelectionError: the model has no tensor of one of the names.
    """
    tensors = dict(named_tensors(model))
    wanted = list(tensors) if names is None else list(names)
    missing = [name for name in wanted if name not in tensors]
    if missing:
        raise SelectionError(
            asked="hash tensors of a model",
            found=f"the model has no {', '.join(missing[:8])}",
            do="use the names of model.named_parameters()",
        )
    # hashlib works outside of Python's lock, so threads share the cores.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        hashes = pool.map(lambda name: tensor_sha256(_narrowed(tensors[name], widest)), wanted)
        return dict(zip(wanted, hashes, strict=True))


def _narrowed(tensor: Tensor, widest: torch.dtype | None) -> Tensor:
    if widest is None or not isinstance(tensor, nn.Parameter) or not tensor.is_floating_point():
        return tensor
    return tensor.detach().to(widest) if tensor.dtype.itemsize > widest.itemsize else tensor


def fingerprint(model: nn.Module, names: Iterable[str] | None = None) -> str:
    """SHA-256, in hexadecimal, over `tensor_hashes` in order of name. Raises as that does."""
    return combine_hashes(tensor_hashes(model, names))


def combine_hashes(hashes: Mapping[str, str]) -> str:
    """The fingerprint of the model whose `tensor_hashes` these are."""
    lines = "".join(f"{name} {hashes[name]}\n" for name in sorted(hashes))
    return hashlib.sha256(lines.encode()).hexdigest()
