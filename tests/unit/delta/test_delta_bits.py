from __future__ import annotations

import pytest
import torch

from narrowtune.delta.bits import DTYPES, all_finite, bits_dtype, flip, view_bits, xor

SPECIAL = [0.0, -0.0, 1.0, -1.5, float("inf"), float("-inf"), float("nan"), 1e-45, -1e-45, 1e-38]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_xor_is_its_own_inverse_for_every_special_value(dtype):
    left = torch.tensor(SPECIAL, dtype=dtype).repeat_interleave(len(SPECIAL))
    right = torch.tensor(SPECIAL, dtype=dtype).repeat(len(SPECIAL))
    bits = xor(left, right)
    assert view_bits(flip(left, bits)).equal(view_bits(right))
    assert view_bits(flip(right, bits)).equal(view_bits(left))
    # -0.0 and 0.0 compare equal as numbers; as bits they must not.
    assert int(xor(left, right)[1]) != 0


def test_every_pattern_of_a_16_bit_float_survives():
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    other = patterns.flip(0)
    for dtype in (torch.bfloat16, torch.float16):
        bits = xor(patterns.view(dtype), other.view(dtype))
        assert view_bits(flip(patterns.view(dtype), bits)).equal(other)


def test_scalars_and_strided_tensors_have_bits():
    scalar = torch.tensor(1.5, dtype=torch.bfloat16)
    assert flip(scalar, xor(scalar, -scalar)).item() == -1.5
    strided = torch.arange(6.0).reshape(2, 3).T
    assert flip(strided, xor(strided, strided + 1)).equal(strided + 1)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_finiteness_is_seen_in_every_dtype(dtype):
    good = torch.tensor([0.0, -1.0, 2.0]).to(dtype)
    assert all_finite(good)
    assert bits_dtype(dtype).itemsize == dtype.itemsize
    assert not all_finite(torch.tensor([0.0, float("nan")]).to(dtype))
