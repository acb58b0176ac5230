"""Bit patterns of floating-point tensors: the arithmetic that a delta rests on.

Tuned XOR base, as integers of the same width, is its own inverse and exact for every value
(signed zeros and subnormals included), where a floating-point difference is not.
"""

from __future__ import annotations

import torch
from torch import Tensor

INTEGER_BY_ITEMSIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

SAFETENSORS_TAGS = {
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.uint8: "U8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
}
"""How a safetensors header writes the dtypes that a delta deals with."""

DTYPES = {str(d).removeprefix("torch."): d for d in SAFETENSORS_TAGS if d.is_floating_point}
"""The dtypes that a base tensor may have, by the name that a delta file gives them."""


def dtype_name(dtype: torch.dtype) -> str:
    """Return the dtype's name as delta files write it, such as "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def bits_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the integer dtype that holds the bits of `dtype`."""
    return INTEGER_BY_ITEMSIZE[dtype.itemsize]


def view_bits(tensor: Tensor) -> Tensor:
    """Return the tensor's bits as integers of the same width and shape, sharing its memory."""
    return tensor.detach().view(bits_dtype(tensor.dtype))


def xor(left: Tensor, right: Tensor) -> Tensor:
    """Return the XOR of the bits of two tensors of the same dtype and shape, as integers."""
    return torch.bitwise_xor(view_bits(left), view_bits(right))


def flip(tensor: Tensor, bits: Tensor) -> Tensor:
    """Return a copy of `tensor` with `bits` (same shape and width) flipped, on its device."""
    return torch.bitwise_xor(view_bits(tensor), bits.to(tensor.device)).view(tensor.dtype)


def all_finite(tensor: Tensor) -> bool:
    """Return whether the tensor holds neither NaN nor infinity."""
    if tensor.dtype.itemsize == 1:  # no isfinite for fp8
        tensor = tensor.to(torch.float32)
    return bool(torch.isfinite(tensor).all())
