"""Hashes of tensors."""

from __future__ import annotations

import hashlib
import sys

import torch
from torch import Tensor


def tensor_sha256(tensor: Tensor) -> str:
    """SHA-256, in hexadecimal, of a tensor's dtype, shape and raw little-endian bytes.

    Two tensors have the same hash only if they are the same bit for bit: −0.0 is not 0.0, and
    float32 is not bfloat16 with the same values.
    """
    assert sys.byteorder == "little", "raw bytes are hashed as they lie in memory"
    dtype = str(tensor.dtype).removeprefix("torch.")
    digest = hashlib.sha256(f"{dtype} {list(tensor.shape)}\n".encode())
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
