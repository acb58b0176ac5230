"""Frozen linear layers whose weights are held in 8 or 4 bits.

Libraries quantise and dequantise (torchao int8, bitsandbytes NF4). The product is autograd's own
with the dequantised weight, which is made anew for the backward pass: torchao's layer would keep a
floating-point copy of every weight until then, and with it more memory than quantising saves.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from narrowtune.core.errors import UsageError
from narrowtune.core.training_settings import Quantisation

LIBRARIES: dict[Quantisation, str] = {"int8": "torchao", "nf4": "bitsandbytes"}
"""What quantises."""

_DEVICES = ("cpu", "cuda")
_CHUNK = 2**18
"""Numbers that int8 dequantises at a time."""


class QuantisedTensor(NamedTuple):
    """A matrix in fewer bits.

    Attributes:
        parts: tensors that hold it, by name.
        dequantise: makes the matrix from these, in the dtype that it had.
    """

    parts: dict[str, Tensor]
    dequantise: Callable[[], Tensor]


def check_quantiser(kind: Quantisation) -> None:
    """See that the library that quantises is there.

    Raises:
        UsageError: it can't be imported.
    """
    library = LIBRARIES[kind]
    try:
        importlib.import_module(library)
    except (ImportError, OSError) as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == library
        raise UsageError(
            asked=f"training.quantize_frozen: {kind}",
            found=f"{library} is not installed" if missing else f"{library} fails: {error}",
            do="pip install 'narrowtune[quant]' (in a clone: pip install '.[quant]'), or leave "
            "quantize_frozen out",
        ) from None


def quantise(weight: Tensor, kind: Quantisation) -> QuantisedTensor:
    """Quantise a matrix [out, in].

    `int8`: symmetric, one scale a row. `nf4`: blocks of 64, whose scales are quantised too.

    Raises:
        UsageError: it lies on a device on which this was never tried.
    """
    if weight.device.type not in _DEVICES:
        raise UsageError(
            asked=f"training.quantize_frozen: {kind}",
            found=f"a model on the device {weight.device}",
            do=f"choose the device {' or '.join(_DEVICES)}, or leave quantize_frozen out",
        )
    return (_int8 if kind == "int8" else _nf4)(weight.detach())


def _int8(weight: Tensor) -> QuantisedTensor:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    num_out, num_in = weight.shape
    holder = nn.Linear(num_in, num_out, bias=False, device="meta")
    holder.weight = nn.Parameter(weight, requires_grad=False)
    quantize_(holder, Int8WeightOnlyConfig())
    quantised: Any = holder.weight.data
    names, _ = quantised.__tensor_flatten__()
    dtype, device, rows = weight.dtype, weight.device, max(1, _CHUNK // num_in)
    # Cut here, since it can't be cut in inference mode; the pieces share its memory.
    pieces = [quantised[start : start + rows] for start in range(0, num_out, rows)]

    def dequantise() -> Tensor:
        # torchao makes two more copies on the way: of some rows at a time they are small.
        whole = torch.empty(num_out, num_in, dtype=dtype, device=device)
        for number, piece in enumerate(pieces):
            whole[number * rows : (number + 1) * rows] = piece.dequantize()
        return whole

    return QuantisedTensor({name: getattr(quantised, name) for name in names}, dequantise)


def _nf4(weight: Tensor) -> QuantisedTensor:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed, state = quantize_4bit(weight.contiguous(), quant_type="nf4", compress_statistics=True)
    held = {name: part for name, part in state.as_dict().items() if isinstance(part, Tensor)}
    return QuantisedTensor({"packed": packed, **held}, lambda: dequantize_4bit(packed, state))


class QuantisedLinear(nn.Module):
    """Takes the place of a frozen `nn.Linear`.

    What holds the weight are buffers that are not saved, so that whoever counts, hashes or widens
    parameters need not know of it.

    Args:
        linear: whose weight is quantised; its bias, if any, stays its own.
        kind: how.
    """

    def __init__(self, linear: nn.Linear, kind: Quantisation) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_parameter("bias", linear.bias)
        parts, self._dequantise = quantise(linear.weight, kind)
        for name, part in parts.items():
            self.register_buffer(f"weight_{name}", part, persistent=False)

    def weight_in(self, dtype: torch.dtype) -> Tensor:
        """Return the weight [out, in] as it is computed with.

        It is rounded to the base's dtype first: one base, whatever it is computed in.
        """
        return self._dequantise().to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return x [..., in] times the weight's transpose, with the bias: [..., out]."""
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            # As autocast does before a product, and has undone after the backward pass.
            x = x.to(torch.get_autocast_dtype(kind))
        return _Product.apply(x, self)


class _Product(torch.autograd.Function):
    """x Wᵀ + b for a frozen W that is not kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantisedLinear) -> Tensor:
        ctx.layer = layer
        bias: Any = layer.bias
        bias = None if bias is None else bias.to(x.dtype)
        return nn.functional.linear(x, layer.weight_in(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.layer.weight_in(gradient.dtype), None
