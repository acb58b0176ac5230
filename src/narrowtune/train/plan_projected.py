"""What keeping steps off the anchor's prompts costs, for the plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from narrowtune.engine.arithmetic import Arithmetic
from narrowtune.train.projected import (
    Layer,
    ProjectedSteps,
    check_layers,
    input_sizes,
    projected_layers,
)
from narrowtune.train.trial import MakeOptimizer


@dataclass(frozen=True)
class ProjectedCost:
    """What `anchor.projection` takes.

    Attributes:
        layers: of which steps are projected; empty where they are not.
        parameters: of the model, by name.
        dtype: of the matrices.
        matrix_bytes: of all of them.
        moment_bytes: of the moments that they are made of, in fp64, before training.
        num_others: tensors that train and are not projected.
    """

    layers: Sequence[Layer]
    parameters: Mapping[str, nn.Parameter]
    dtype: torch.dtype
    matrix_bytes: int
    moment_bytes: int
    num_others: int

    @property
    def copy_bytes(self) -> int:
        """Bytes of what is projected as it was before a step, in fp32."""
        return sum(4 * self.parameters[name].numel() for name in self._names)

    @property
    def flops(self) -> float:
        """Of a step's products: a gradient's, and the step's own."""
        weights = [self.parameters[layer.weight] for layer in self.layers]
        return sum(4.0 * weight.numel() * weight.shape[1] for weight in weights)

    @property
    def notes(self) -> list[str]:
        """Sentences for people."""
        if not self.layers:
            return []
        rest = f"; those of {self.num_others} others are not." if self.num_others else "."
        return [
            f"Steps of {len(self._names)} tensors are kept off what the anchor's prompts use "
            f"(anchor.projection){rest}"
        ]

    @property
    def _names(self) -> list[str]:
        return [
            name
            for layer in self.layers
            for name in (layer.weight, layer.bias)[: 1 + layer.has_bias]
        ]

    def attached(self, make: MakeOptimizer) -> MakeOptimizer:
        """Return what makes optimisers as `make` does, whose steps take as long as projected ones.

        Their matrices are those of a model in which no prompt uses anything.
        """
        if not self.layers:
            return make

        def projecting(trained: list[nn.Parameter]) -> torch.optim.Optimizer:
            blank: dict[int, torch.Tensor] = {}
            for layer in self.layers:
                weight = self.parameters[layer.weight]
                size = weight.shape[1] + layer.has_bias
                blank.setdefault(size, torch.eye(size, dtype=self.dtype, device=weight.device))
            matrices = {
                layer: blank[self.parameters[layer.weight].shape[1] + layer.has_bias]
                for layer in self.layers
            }
            optimizer = make(trained)
            steps = ProjectedSteps(matrices, strength=0.0, seconds=0.0)
            steps.attach(optimizer, self.parameters)
            return optimizer

        return projecting


def projected_cost(
    model: nn.Module, names: Sequence[str], strength: float, arithmetic: Arithmetic
) -> ProjectedCost:
    """Return what `anchor.projection` at `strength` costs a training of `names`.

    Raises:
        TrainingError: there is nothing to project.
    """
    layers = projected_layers(model, names) if strength else []
    if strength:
        check_layers(layers, strength)
    dtype = arithmetic.torch_dtype
    sizes = input_sizes(model, layers)
    num_projected = sum(1 + layer.has_bias for layer in layers)
    return ProjectedCost(
        layers=layers,
        parameters=dict(model.named_parameters()),
        dtype=dtype,
        matrix_bytes=sum(dtype.itemsize * size**2 for size in sizes),
        moment_bytes=sum(8 * size**2 for size in sizes),
        num_others=len(names) - num_projected,
    )
