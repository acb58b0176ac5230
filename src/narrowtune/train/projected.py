"""Steps that leave alone what a model computes on general prompts: scaled gradient projection.

A change D of a linear layer's weight moves its outputs on an input x by D x: over the anchor's
positions by tr(D C Dᵀ) on average, C = E[x xᵀ] being the second moment of what the layer is given
there before training. The D' that minimises |D' − D|² + s · tr(D' C D'ᵀ) / m, with m = tr(C) / I,
is D (I + s C/m)⁻¹: as near to D as can be, and moving outputs less. Both the gradient, before the
optimiser has it, and the step that the optimiser makes of it are multiplied by this matrix, so that
what the optimiser remembers is of what can move. Directions that general prompts use hardly move,
others learn; it takes no labels, no second model and, by itself, no further rows in a step.

After the hard projections of GPM (arXiv 2103.09762) and Adam-NSCL (arXiv 2103.07113), the scaled
one of SGP (arXiv 2302.01386), and AlphaEdit's on language models (arXiv 2410.02355).

Shapes: I inputs and O outputs of a layer, N positions, B rows of T tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from narrowtune.core.errors import TrainingError
from narrowtune.data.collate import Encoded, collate, padding_id
from narrowtune.engine.arithmetic import Arithmetic, autocast
from narrowtune.engine.batches import length_batches
from narrowtune.engine.forward import label_positions, logits_at, to_device
from narrowtune.engine.modes import evaluation_mode
from narrowtune.engine.packing import packing
from narrowtune.models.families import find_family, is_below
from narrowtune.models.load import LoadedModel


@dataclass(frozen=True)
class Layer:
    """A linear layer of which the weight trains.

    Attributes:
        module: its full name.
        has_bias: whether its bias trains too; it counts as the weight of an input that is 1.
    """

    module: str
    has_bias: bool

    @property
    def weight(self) -> str:
        """Name of its weight."""
        return f"{self.module}.weight"

    @property
    def bias(self) -> str:
        """Name of its bias."""
        return f"{self.module}.bias"


def projected_layers(model: nn.Module, names: Sequence[str]) -> list[Layer]:
    """Return the layers whose steps can be projected: linear ones of the decoder.

    Not the head, embeddings and norms, which are no maps of a position's state within a layer, and
    not what a model sees with, which the anchor's positions say nothing of.
    """
    chosen = set(names)
    layers = find_family(model).language_model.layers
    return [
        Layer(path, f"{path}.bias" in chosen)
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and is_below(path, layers) and f"{path}.weight" in chosen
    ]


def check_layers(layers: Sequence[Layer], strength: float) -> None:
    """See that there is something to project.

    Raises:
        TrainingError: there is not.
    """
    if not layers:
        raise TrainingError(
            asked=f"anchor.projection {strength:g}",
            found="no linear layer of the language model's decoder among what trains",
            do="choose a recipe of the language model, or leave anchor.projection out",
        )


class ProjectedSteps:
    """The matrices by which steps are multiplied.

    Args:
        matrices: (I + s C/m)⁻¹ by layer, [I, I], or [I + 1, I + 1] where a bias trains; those of
            layers with the same inputs are one tensor.
        strength: s.
        seconds: what computing them took.
    """

    def __init__(
        self, matrices: Mapping[Layer, Tensor], *, strength: float, seconds: float
    ) -> None:
        self.matrices = dict(matrices)
        self.strength = strength
        self.seconds = seconds

    def attach(
        self, optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
    ) -> None:
        """Project every further step of `optimizer`, and the gradients that it is given.

        Args:
            optimizer: whichever; what it adds to a weight in a step, decay included, is projected.
            parameters: by name, those of the layers among them.
        """
        before: dict[str, Tensor] = {}

        def project_gradients(*_: Any) -> None:
            for layer, matrix in self.matrices.items():
                weight, bias = _pair(layer, parameters)
                if weight.grad is None:
                    continue
                bias_grad = None if bias is None else bias.grad
                projected, projected_bias = _project(matrix, weight.grad, bias_grad)
                weight.grad.copy_(projected)
                if bias_grad is not None and projected_bias is not None:
                    bias_grad.copy_(projected_bias)
                before[layer.weight] = weight.detach().clone()
                if bias is not None:
                    before[layer.bias] = bias.detach().clone()

        @torch.no_grad()
        def project_steps(*_: Any) -> None:
            for layer, matrix in self.matrices.items():
                if layer.weight not in before:
                    continue
                weight, bias = _pair(layer, parameters)
                old, old_bias = before.pop(layer.weight), before.pop(layer.bias, None)
                # In place: a pass over all that trains is felt on a CPU.
                step = weight.sub_(old)
                bias_step = None if bias is None or old_bias is None else bias.sub_(old_bias)
                projected, projected_bias = _project(matrix, step, bias_step)
                torch.add(old, projected, out=weight)
                if bias is not None and old_bias is not None and projected_bias is not None:
                    torch.add(old_bias, projected_bias, out=bias)

        optimizer.register_step_pre_hook(project_gradients)
        optimizer.register_step_post_hook(project_steps)


def _pair(
    layer: Layer, parameters: Mapping[str, nn.Parameter]
) -> tuple[nn.Parameter, nn.Parameter | None]:
    return parameters[layer.weight], parameters[layer.bias] if layer.has_bias else None


def _project(
    matrix: Tensor, weight_OI: Tensor, bias_O: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Multiply what is to be added to a weight, and to a bias, by a layer's matrix.

    In the matrix's dtype, and left in it: a step's rounding is a thousandth of a step, and not of a
    weight.
    """
    if bias_O is None:
        num_inputs = weight_OI.shape[1]
        return weight_OI.to(matrix.dtype) @ matrix[:num_inputs, :num_inputs], None
    joined = torch.cat([weight_OI.to(matrix.dtype), bias_O.to(matrix.dtype)[:, None]], dim=1)
    product = joined @ matrix
    return product[:, :-1], product[:, -1]


def project_steps(
    loaded: LoadedModel,
    layers: Sequence[Layer],
    rows: Sequence[Encoded],
    *,
    strength: float,
    arithmetic: Arithmetic,
    batch_size: int,
) -> ProjectedSteps:
    """Run the model on the anchor's rows once, and make the matrices of its layers.

    Args:
        loaded: the model as it is before training, as it computes while training.
        layers: whose steps are to be projected.
        rows: prompts with answers; positions that predict a labelled token count.
        strength: s.
        arithmetic: what it computes in; the matrices too.
        batch_size: most rows computed together.

    Raises:
        TrainingError: no layer can be projected, or a layer's inputs are not finite.
    """
    started = time.perf_counter()
    check_layers(layers, strength)
    found = _second_moments(loaded, layers, rows, arithmetic, batch_size)
    by_path = {layer.module: layer for layer in layers}
    made = {}
    for path in list(found.sums):  # one after the other: moments take four times as much room
        inverse = _inverse(found.sums.pop(path), by_path[path], strength)
        made[path] = _same_everywhere(inverse).to(arithmetic.torch_dtype)
    matrices = {layer: made[found.twin[layer.module]] for layer in layers}
    seconds = time.perf_counter() - started
    return ProjectedSteps(matrices, strength=strength, seconds=seconds)


def _inverse(moment: Tensor, layer: Layer, strength: float) -> Tensor:
    """Return (I + s C/m)⁻¹ in fp64; m is the mean over true inputs, without the bias's."""
    num_inputs = len(moment) - layer.has_bias
    mean = moment.diagonal()[:num_inputs].mean()
    if not bool(torch.isfinite(moment).all()) or float(mean) <= 0:
        raise TrainingError(
            asked="anchor.projection",
            found=f"inputs of {layer.module} that are zero or not finite on the anchor's prompts",
            do="leave anchor.projection out for this model",
        )
    identity = torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    return torch.cholesky_inverse(torch.linalg.cholesky(identity + strength / mean * moment))


def _same_everywhere(matrix: Tensor) -> Tensor:
    """Return the first process's matrix: others may differ in the last digits, and steps with it.

    Gradients are averaged over processes, steps are not.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        matrix = matrix.contiguous()
        torch.distributed.broadcast(matrix, 0)
    return matrix


@dataclass
class _Sums:
    """Sums of x xᵀ over positions, by layer; layers that are given the same tensor share one.

    Attributes:
        layers: whose inputs are looked at.
        mask: [B, T], positions that count in the batch at hand.
        sums: by the first layer that was given a tensor.
        twin: each layer's first.
    """

    layers: Mapping[str, Layer]
    mask: Tensor = field(default_factory=lambda: torch.empty(0))
    sums: dict[str, Tensor] = field(default_factory=dict)
    twin: dict[str, str] = field(default_factory=dict)
    _last: tuple[str, Tensor] | None = None

    def hook(self, path: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        """Return what looks at a layer's input."""

        def look(_: nn.Module, args: tuple[Any, ...]) -> None:
            given: Tensor = args[0]
            if self._last is not None and given is self._last[1]:
                first = self._last[0]
                if self.layers[first].has_bias == self.layers[path].has_bias:
                    self.twin[path] = first
                    return
            self._last = path, given
            self.twin[path] = path
            # An MLP beside experts is given its tokens in one line, [B T, I].
            chosen_NI = given.unflatten(0, self.mask.shape) if given.ndim == 2 else given
            chosen_NI = chosen_NI[self.mask].to(torch.float64)
            if self.layers[path].has_bias:
                chosen_NI = nn.functional.pad(chosen_NI, (0, 1), value=1.0)
            if path in self.sums:
                self.sums[path].addmm_(chosen_NI.T, chosen_NI)
            else:
                self.sums[path] = chosen_NI.T @ chosen_NI

        return look

    def forget(self) -> None:
        """Let go of the last input."""
        self._last = None


@torch.no_grad()
def _second_moments(
    loaded: LoadedModel,
    layers: Sequence[Layer],
    rows: Sequence[Encoded],
    arithmetic: Arithmetic,
    batch_size: int,
) -> _Sums:
    """Return E[x xᵀ] in fp64, in place of the sums."""
    model = loaded.model
    sums = _Sums({layer.module: layer for layer in layers})
    count = 0
    # Row by row: a layout has other positions than the mask.
    with _looking(model, sums), evaluation_mode(model), packing("never"):
        for indices in length_batches([len(row.input_ids) for row in rows], batch_size):
            batch = collate([rows[i] for i in indices], padding_id(loaded.tokenizer))
            batch = to_device(batch, model.device)
            sums.mask, targets = label_positions(batch["labels"])
            count += len(targets)
            with autocast(arithmetic, model.device):
                logits_at(model, batch, sums.mask)
            sums.forget()
    for total in sums.sums.values():
        total /= count
    return sums


@contextmanager
def _looking(model: nn.Module, sums: _Sums) -> Iterator[None]:
    handles = [
        model.get_submodule(path).register_forward_pre_hook(sums.hook(path)) for path in sums.layers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def input_sizes(model: nn.Module, layers: Sequence[Layer]) -> list[int]:
    """Return I, with the bias's, of every input that layers have, for what matrices take.

    The projections q, k and v of a decoder layer have the same input, and so have gate and up, and
    what leads into a layer with a state (`in_proj_…`).
    """
    roles = find_family(model).matrices
    shared = {
        path.rpartition(".")[2]: group[0]
        for group in (("q", "k", "v"), ("gate", "up"))
        for role in group
        for kind in roles[role]
        for path in kind
    }
    found: dict[tuple[str, str, bool], int] = {}
    for layer in layers:
        parent, _, name = layer.module.rpartition(".")
        given = "in_proj" if name.startswith("in_proj_") else shared.get(name, name)
        weight: Tensor = model.get_submodule(layer.module).weight  # type: ignore[assignment]
        found[parent, given, layer.has_bias] = weight.shape[1] + layer.has_bias
    return list(found.values())
