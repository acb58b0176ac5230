"""Evidence that training moved the selected tensors, and nothing else.

Frozen tensors are compared by hash, before and after. Selected ones are watched for gradients
while training, and compared with the base after rounding to its dtype, since a master's update
can be too small to survive that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from narrowtune.core.errors import ProofError
from narrowtune.core.results import Proof, TensorProof
from narrowtune.data.digest import tensor_sha256
from narrowtune.delta.bits import xor
from narrowtune.models.select import Selection
from narrowtune.models.structure import recomputed_buffers, show_names


def snapshot_frozen(model: nn.Module, selected_names: Iterable[str]) -> dict[str, str]:
    """Hash everything that must not move: parameters that are not selected, and all buffers.

    Buffers that are not saved count too, except rotary tables that the forward pass itself
    recomputes from the length of its input (rope types "dynamic" and "longrope").

    Returns:
        SHA-256 by name in memory. Comparable only while the tensors keep their dtypes.
    """
    model = extract_model_from_parallel(model, keep_torch_compile=False)
    selected = set(selected_names)
    hashes = {
        name: tensor_sha256(parameter)
        for name, parameter in model.named_parameters()
        if name not in selected
    }
    hashes.update((name, tensor_sha256(buffer)) for name, buffer in _fixed_buffers(model))
    return hashes


def _fixed_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    recomputed = recomputed_buffers(model)
    for name, buffer in model.named_buffers():
        if name not in recomputed:
            yield name, buffer


class GradientWitness:
    """Sees which selected parameters receive a gradient while training.

    A hook sits on each parameter until the first gradient that is not zero throughout, so the
    cost is one comparison per parameter and run. It works under gradient checkpointing, DDP and
    accumulation; it must be made after parameters are replaced, if anything replaces them.

    Args:
        model: the model, wrapped or not.
        names: the selected parameters.

    Attributes:
        received: parameters that got a gradient; a resumed run adds what its checkpoint lists.
        nonzero: those among them whose gradient was not zero throughout.
        passes_zeros: takes zeros for no gradient; where a loss is filled up with zeros.
    """

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        model = extract_model_from_parallel(model, keep_torch_compile=False)
        parameters = dict(model.named_parameters())
        self.received: set[str] = set()
        self.nonzero: set[str] = set()
        self.passes_zeros = False
        self._handles: dict[str, RemovableHandle] = {
            name: parameters[name].register_hook(partial(self.see, name)) for name in names
        }

    def see(self, name: str, gradient: Tensor) -> None:
        """Take note of a gradient, or of the part of it that this process has."""
        if name in self.nonzero or bool(torch.any(gradient != 0)):
            self.received.add(name)
            self.nonzero.add(name)
            if (handle := self._handles.pop(name, None)) is not None:
                handle.remove()
        elif not self.passes_zeros:
            self.received.add(name)

    def close(self) -> None:
        """Take the remaining hooks off."""
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()


def prove(
    model: nn.Module,
    selection: Selection,
    before: Mapping[str, str],
    base: Mapping[str, Tensor],
    witness: GradientWitness,
    *,
    num_steps: int,
) -> Proof:
    """Compare the model after training with what it was.

    Args:
        model: the trained model, wrapped or not, its frozen tensors in the dtypes that they had
            for `snapshot_frozen`.
        selection: what trained.
        before: what `snapshot_frozen` returned before training.
        base: the selected tensors before training, in the base's dtype.
        witness: watched over the training.
        num_steps: optimiser steps that it watched; with 0 no gradient is expected.

    Returns:
        One line per selected tensor: whether a gradient arrived, how many elements differ in
        their bits after rounding to the base's dtype, and ‖tuned − base‖ / ‖base‖ of the rounded
        values (infinite where a base of zeros moved).

    Raises:
        ProofError: a frozen tensor or buffer moved, a selected parameter got no gradient, or the
            gradient of every one of them was zero throughout.
    """
    asked = f"train {selection.recipe} ({len(selection.names)} tensors) and nothing else"
    after = snapshot_frozen(model, selection.names)
    moved = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    if moved:
        raise ProofError(
            asked=asked,
            found=f"{len(moved)} frozen tensors moved: {show_names(moved)}",
            do="discard this run; something other than the optimiser of the selection writes to "
            "the model",
        )
    if num_steps > 0:
        _check_gradients(selection.names, witness, asked)
    model = extract_model_from_parallel(model, keep_torch_compile=False)
    parameters = dict(model.named_parameters())
    buffers = {name for name, _ in model.named_buffers()}
    num_buffers = sum(name in buffers for name in before)
    return Proof(
        num_frozen_tensors=len(before) - num_buffers,
        num_frozen_buffers=num_buffers,
        frozen_identical=True,
        moved=[],
        selected=[
            _compare(name, parameters[name], base[name], name in witness.received)
            for name in selection.names
        ],
    )


def _check_gradients(names: Sequence[str], witness: GradientWitness, asked: str) -> None:
    without = [name for name in names if name not in witness.received]
    if without:
        raise ProofError(
            asked=asked,
            found=f"no gradient reached {len(without)} of {len(names)} selected tensors: "
            f"{show_names(without)}",
            do="check that the data exercises that part (a vision tower needs pictures), or "
            "choose another recipe",
        )
    if names and not witness.nonzero:
        raise ProofError(
            asked=asked,
            found="every gradient was zero throughout",
            do="check that the rows have labelled answers and that the loss depends on the model",
        )


@torch.no_grad()
def _compare(name: str, parameter: Tensor, base: Tensor, received: bool) -> TensorProof:
    before = base.to("cpu")
    tuned = parameter.detach().to(base.dtype).to("cpu")
    num_changed = int(torch.count_nonzero(xor(tuned, before)))
    # In the base's own narrow dtype the difference would be rounded.
    wide = torch.promote_types(base.dtype, torch.float32)
    difference = tuned.to(wide) - before.to(wide)
    moved = float(torch.linalg.vector_norm(difference, dtype=torch.float64))
    size = float(torch.linalg.vector_norm(before.to(wide), dtype=torch.float64))
    return TensorProof(
        name=name,
        received_gradient=received,
        changed=num_changed > 0,
        num_changed=num_changed,
        num_elements=parameter.numel(),
        relative_update=moved / size if size > 0 else (float("inf") if moved > 0 else 0.0),
    )
