"""How much memory training takes: counted where it can be, calibrated where it can't.

Weights, masters, gradients and the base's copy follow from shapes. What autograd keeps for the
backward pass is counted on the real graph of two batches, which gives a part per position and a
part per step (casts of masters); it needs no formula per family. What an optimiser keeps is
counted on a small parameter. Only the allocator's losses on a CPU are a calibrated factor
(benchmarks/plan_accuracy.py measures how good the sum is).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType

import psutil
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from narrowtune.core.results import MemoryEstimate

HEAP_LOSS = 0.4
"""On a CPU: memory that glibc's heap holds beyond what is in use, as a share of the activations.

Blocks of a few MiB that are freed between blocks that stay leave gaps. Calibrated on SmolLM2-135M
at batch sizes 4 to 16; a GPU's allocator counts what is in use, so there it is 0.
"""

_LOGIT_BYTES = 12  # per label and vocabulary entry: log-softmax, its gradient, the logits' gradient
_LOGIT_BYTES_KEPT = 4  # of these, what autograd keeps from the forward pass (log-softmax, fp32)
_ANCHOR_LOGIT_BYTES = 24
"""The same with KL: base, tuned, their difference, exp(base), gradients. With `anchor.top_k` there
is less of the base, and as much again for the words that are put together."""

_MASTER_BYTES = 4  # fp32
_PROBE_SHAPE = (256, 256)


class SavedTensors:
    """Context manager that counts what autograd keeps for the backward pass.

    Each storage counts once, and the model's own parameters and buffers not at all. Storages are
    told apart as objects and not by address, which those of tensors without data don't have.

    Attributes:
        num_bytes: what was kept by the operations inside the block.
    """

    def __init__(self, model: nn.Module) -> None:
        own = [*model.parameters(), *model.buffers()]
        self._own = {StorageWeakRef(tensor.untyped_storage()) for tensor in own}
        self._kept: dict[StorageWeakRef, int] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    @property
    def num_bytes(self) -> int:
        """Bytes kept."""
        return sum(self._kept.values())

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if (key := StorageWeakRef(storage)) not in self._own:
            self._kept[key] = storage.nbytes()
        return tensor

    def __enter__(self) -> SavedTensors:
        """Start counting. What is kept must stay alive until the block ends."""
        self._hooks.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop counting."""
        self._hooks.__exit__(kind, value, trace)


@dataclass(frozen=True)
class Kept:
    """What autograd kept of one batch.

    Attributes:
        num_bytes: all of it.
        positions: that the model computed.
        logits: label positions x vocabulary.
    """

    num_bytes: int
    positions: int
    logits: int

    @property
    def without_logits(self) -> int:
        """Bytes without the log-probabilities that the loss keeps."""
        return self.num_bytes - _LOGIT_BYTES_KEPT * self.logits


@dataclass(frozen=True)
class Activations:
    """What one forward pass keeps, without the logits.

    Attributes:
        per_step: bytes whatever the batch.
        per_position: bytes for each position of a batch.
    """

    per_step: float
    per_position: float

    def at(self, num_positions: float) -> int:
        """Return bytes for a batch of so many positions."""
        return math.ceil(self.per_step + self.per_position * num_positions)

    @classmethod
    def from_traces(cls, small: Kept, large: Kept) -> Activations:
        """Make it from what a smaller and a larger batch kept."""
        slope = (large.without_logits - small.without_logits) / (large.positions - small.positions)
        return cls(max(0.0, small.without_logits - slope * small.positions), slope)


def optimizer_bytes(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> float:
    """Return how many bytes of state an optimiser keeps for each parameter.

    Args:
        make: builds the optimiser for a list of parameters. It is tried on a small fp32 one.
    """
    parameter = nn.Parameter(torch.zeros(_PROBE_SHAPE))
    parameter.grad = torch.ones_like(parameter)
    optimizer = make([parameter])
    optimizer.step()
    kept = [value for state in optimizer.state.values() for value in state.values()]
    num_bytes = sum(tensor_bytes(value) for value in kept if isinstance(value, Tensor))
    return num_bytes / parameter.numel()


def estimate_memory(
    *,
    frozen_bytes: int,
    num_trainable: int,
    base_bytes: int,
    base_on_device: bool = False,
    optimizer_bytes_per_parameter: float,
    activations: Activations,
    num_positions: float,
    logits: int,
    anchor_logits: int = 0,
    anchor_cache_bytes: int = 0,
    matrix_bytes: int = 0,
    moment_bytes: int = 0,
    step_copy_bytes: int = 0,
    head_gradient_bytes: int = 0,
    accumulates: bool = False,
    workspace: int = 0,
    device: torch.device,
) -> MemoryEstimate:
    """Return the peak of a training step, by part.

    Args:
        frozen_bytes: parameters that do not train, and buffers, as held while training.
        num_trainable: numbers that train; their masters and gradients are fp32.
        base_bytes: the copy of what trains, in the base's dtype, kept for the delta on the CPU.
        base_on_device: whether the device has one too, to pull weights back to.
        num_positions: of a micro-batch as the model computes it, anchor rows included.
        logits: label positions in the micro-batch x vocabulary; `anchor_logits` likewise.
        anchor_cache_bytes: the base's distributions, kept on the CPU.
        matrix_bytes: of what steps are multiplied by, on the device.
        moment_bytes: of what these are made of, before there is a gradient or an optimiser.
        step_copy_bytes: of what trains as it was before a step, while the step is taken.
        head_gradient_bytes: of the head's weight, if it trains: it exists before the activations
            are freed.
        accumulates: several micro-batches make a step, so gradients are held through all of them.
        workspace: what the process held without the model (a GPU: 0).

    Returns:
        Parts, and as `total` the largest of three moments: before training, the backward pass's
        beginning (all activations, no new gradients) and its end (all gradients). So the parts add
        up to more than the total, unless gradients are accumulated.
    """
    on_cpu = device.type == "cpu"
    masters = _MASTER_BYTES * num_trainable
    gradients = _MASTER_BYTES * num_trainable
    optimizer = math.ceil(optimizer_bytes_per_parameter * num_trainable)
    logit_bytes = _LOGIT_BYTES * logits + _ANCHOR_LOGIT_BYTES * anchor_logits
    kept = activations.at(num_positions)
    losses = math.ceil(HEAP_LOSS * (kept + logit_bytes)) if on_cpu else 0
    weights = frozen_bytes + (base_bytes if on_cpu or base_on_device else 0)
    cache = matrix_bytes + (anchor_cache_bytes if on_cpu else 0)
    held = weights + masters + optimizer + cache + workspace
    before = held - optimizer + moment_bytes
    ending = gradients + max(head_gradient_bytes, step_copy_bytes)
    beginning = kept + logit_bytes + (gradients if accumulates else head_gradient_bytes)
    return MemoryEstimate(
        weights=weights,
        masters=masters,
        gradients=gradients,
        optimizer=optimizer,
        activations=kept,
        logits=logit_bytes,
        anchor=cache,
        workspace=workspace + losses,
        total=max(before, held + losses + max(beginning, ending)),
    )


def tensor_bytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor's elements; of one that is made of others, as states in 8 bits.

    Such tensors say how many elements they stand for, and of which dtype they look.
    """
    if is_traceable_wrapper_subclass(tensor):
        names, _ = tensor.__tensor_flatten__()
        return sum(tensor_bytes(getattr(tensor, name)) for name in names)
    return tensor.numel() * tensor.element_size()


def sum_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of the elements of distinct tensors; tied ones count once."""
    return sum(
        tensor_bytes(tensor) for tensor in {id(tensor): tensor for tensor in tensors}.values()
    )


def process_bytes() -> int:
    """Return the memory that this process holds now (resident set)."""
    return int(psutil.Process().memory_info().rss)


def available_bytes(device: torch.device) -> int:
    """Return the memory that could still be taken on `device`."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
