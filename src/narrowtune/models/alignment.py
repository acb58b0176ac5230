"""Where weights lie in memory decides the last bits of what is computed from them.

Owns: putting weights at addresses that are multiples of `ALIGNMENT`, as torch's own allocator
does. A tensor that safetensors maps from a file starts anywhere, and a CPU's matrix kernels add in
another order where it starts at an address that is no multiple of 16. Equal weights must give
equal logits, whether they were mapped from a file, copied, trained or restored.
"""

from __future__ import annotations

from itertools import chain

from torch import Tensor, nn

ALIGNMENT = 64
"""Bytes."""


def is_aligned(tensor: Tensor) -> bool:
    """Whether the tensor starts where a fresh copy would; always true off the CPU."""
    return tensor.device.type != "cpu" or tensor.data_ptr() % ALIGNMENT == 0


def align_weights(model: nn.Module) -> None:
    """Move every parameter and buffer that starts at another address; no value changes.

    Parameters stay the same objects, so ties and optimisers hold.
    """
    for tensor in chain(model.parameters(), model.buffers()):
        if not is_aligned(tensor):
            tensor.data = tensor.data.clone()
