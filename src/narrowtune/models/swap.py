"""Base and tuned weights in one model, exchanged exactly.

Owns `WeightSwap`. Only the selected tensors are held twice; everything else is shared, since it is
the same in both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from narrowtune.core.errors import ModelError, SelectionError
from narrowtune.models.alignment import is_aligned


class WeightSwap:
    """Puts the base's weights into a tuned model for a while.

    The model's own tensors are set aside, not copied back, so what was there returns bit for bit,
    and with it whatever an optimiser knows about it. The model may hold float32 masters of a
    bfloat16 base: the base's values are then widened, which is exact.

    Args:
        model: a model with tuned weights.
        base: name in memory → the base's tensor, in the base's dtype.
        copied: hold a copy of it where the model is; False takes `base` itself, which must not
            change, from where it is at every exchange.

    Raises:
        SelectionError: a name or a shape that the model does not have.
        ModelError: the model's dtype cannot hold the base's values exactly.
    """

    def __init__(
        self, model: nn.Module, base: Mapping[str, Tensor], *, copied: bool = True
    ) -> None:
        self._parameters = dict(model.named_parameters())
        for name, tensor in base.items():
            live = self._parameters.get(name)
            if live is None or live.shape != tensor.shape:
                raise SelectionError(
                    asked=f"swap {name} of shape {list(tensor.shape)}",
                    found="no such parameter in the model"
                    if live is None
                    else f"a parameter of shape {list(live.shape)}",
                    do="give the base's tensors under their names in this model",
                )
            if torch.promote_types(live.dtype, tensor.dtype) != live.dtype:
                raise ModelError(
                    asked=f"swap {name}, {tensor.dtype} in the base",
                    found=f"{live.dtype} in the model, which can't hold those values exactly",
                    do="load base and tuned model in the same dtype",
                )
            if not is_aligned(live):
                # Base and tuned values must lie alike, or equal ones would compute other bits.
                live.data = live.data.clone()
        self._base = {
            name: tensor.detach().to(self._parameters[name].device, copy=True)
            if copied
            else tensor.detach()
            for name, tensor in base.items()
        }
        self._busy = False

    @contextmanager
    def base(self) -> Iterator[None]:
        """While this is open, the model is the base.

        Raises:
            ModelError: a swap of this model is open already, or weights were changed in it.
        """
        with self._exchange(self._base):
            yield

    @contextmanager
    def tuned(self) -> Iterator[None]:
        """While this is open, the model has the tuned weights as a delta stores them.

        That is rounded to the base's dtype; where the model holds no masters, nothing changes.
        Raises as `base`.
        """
        rounded = {
            name: self._parameters[name].detach().to(tensor.dtype)
            for name, tensor in self._base.items()
            if self._parameters[name].dtype != tensor.dtype
        }
        with self._exchange(rounded):
            yield

    @contextmanager
    def _exchange(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        if self._busy:
            raise ModelError(
                asked="put other weights into the model",
                found="other weights are in it already",
                do="leave the first swap before entering the second",
            )
        self._busy = True
        aside = {name: self._parameters[name].data for name in tensors}
        try:
            for name, tensor in tensors.items():
                live = self._parameters[name]
                live.data = tensor.to(device=live.device, dtype=live.dtype)
            versions = {name: self._parameters[name]._version for name in tensors}
            yield
            changed = [
                n for n, version in versions.items() if self._parameters[n]._version != version
            ]
        finally:
            for name, tensor in aside.items():
                self._parameters[name].data = tensor
            self._busy = False
        if changed:
            raise ModelError(
                asked="leave a swap",
                found=f"weights that were changed inside it: {', '.join(changed[:8])}",
                do="train outside of the swap; the base's copy here can't be trusted any more",
            )
