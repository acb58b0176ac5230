"""Where a folder keeps a parameter: in a tensor, or in parts of one.

A mixture's experts are one tensor in memory; most checkpoints have a tensor for each matrix of each
expert, others the same numbers transposed. Owns the way from one to the other and back, so that
hashes and bits of deltas are those of what is in memory, and whole files are never rewritten.

Shapes: E experts of a layer, O and I rows and columns of what is in memory, P parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from narrowtune.core.errors import ModelError
from narrowtune.models.shortage import is_out_of_memory

Read = Callable[[str], Tensor]
"""Returns the tensor of a name on disk."""


@dataclass(frozen=True)
class Stored:
    """A parameter on disk.

    Attributes:
        names: of the tensors that make it up, expert by expert, an expert's parts in order.
        num_parts: tensors of one expert, [O/P, I] each; 0 where one tensor is the whole.
        transposed: whether it is [E, I, O] on disk, unless it has the shape that it has in memory.
    """

    names: tuple[str, ...]
    num_parts: int = 0
    transposed: bool = False

    def assemble(self, read: Read, shape: tuple[int, ...] | None = None) -> Tensor:
        """Return the tensor as it is in memory, [E, O, I] for experts.

        Args:
            read: gives what is on disk.
            shape: in memory, where it is known. It tells whether what may be transposed is.

        Raises:
            ModelError: the parts are of unlike sizes.
        """
        if not self.num_parts:
            whole = read(self.names[0])
            if self.transposed and tuple(whole.shape) != shape:
                return whole.transpose(-2, -1).contiguous()
            return whole
        starts = range(0, len(self.names), self.num_parts)
        experts = (self.names[start : start + self.num_parts] for start in starts)
        try:
            return torch.stack([torch.cat([read(name) for name in names]) for names in experts])
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise ModelError(
                asked=f"put together {self.names[0]} … {self.names[-1]}",
                found=f"parts that do not fit each other: {str(error).splitlines()[0]}",
                do="fetch the checkpoint again",
            ) from None

    def take_apart(self, tensor: Tensor, read: Read) -> Iterator[tuple[str, Tensor]]:
        """Yield what each tensor on disk has of `tensor`, which is as in memory, contiguous.

        Args:
            tensor: the parameter, or bits of its shape.
            read: gives what is on disk, of which the shapes are used.
        """
        if not self.num_parts:
            turned = self.transposed and read(self.names[0]).shape != tensor.shape
            yield self.names[0], (tensor.transpose(-2, -1) if turned else tensor).contiguous()
            return
        for expert, matrix in enumerate(tensor):
            start = 0
            for name in self.names[expert * self.num_parts :][: self.num_parts]:
                rows = len(read(name))
                yield name, matrix[start : start + rows].contiguous()
                start += rows
