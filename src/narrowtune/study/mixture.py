"""A mixture of two experts in every MLP: the base's own, frozen, and a copy that learns.

One of the paper's baselines (arXiv 2510.08564, section 5), for studies only: the result is no
delta of the base's tensors. A linear router weighs the two per token, in training and in evaluation
alike; the paper's code mixes in training and takes the larger share alone in evaluation.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from narrowtune.models.families import is_below
from narrowtune.models.select import Selection

_ROUTER_DEVIATION = 0.02


class ExpertMixture(nn.Module):
    """An MLP and a copy of it that learns, weighed token by token.

    Args:
        original: the MLP; nothing of it trains.
        width: of its input, H.
        generator: of the router's first weights.
    """

    def __init__(self, original: nn.Module, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.original = original
        self.tuned = copy.deepcopy(original)
        like = next(original.parameters())
        self.router = nn.Linear(width, 2, device=like.device, dtype=like.dtype)
        with torch.no_grad():
            drawn = torch.randn(self.router.weight.shape, generator=generator)
            self.router.weight.copy_(_ROUTER_DEVIATION * drawn)
            self.router.bias.zero_()

    def forward(self, states: Tensor) -> Tensor:
        """Return both experts' outputs [..., H], each times its share."""
        shares = self.router(states).float().softmax(dim=-1).to(states.dtype)
        first, second = shares.split(1, dim=-1)
        return first * self.original(states) + second * self.tuned(states)


@dataclass(frozen=True)
class Mixed:
    """A model with experts in it.

    Attributes:
        selection: what trains: the copies and the routers.
        twins: tensors of the copies → the names that the originals have without experts. Where a
            copy holds its original's values the model is the base, whatever its routers say.
    """

    selection: Selection
    twins: Mapping[str, str]


@contextmanager
def expert_mixture(model: nn.Module, selection: Selection, seed: int) -> Iterator[Mixed]:
    """Give every MLP of the selection a copy that learns; take them out at the end of the block.

    Args:
        model: the base.
        selection: of the recipe `mlp`.
        seed: of the routers.
    """
    found = dict.fromkeys(name.rsplit(".", 2)[0] for name in selection.names)
    # An MLP inside of one, beside a mixture's experts, is copied with it.
    names = [n for n in found if not any(is_below(n, other) for other in found if other != n)]
    generator = torch.Generator().manual_seed(seed)
    originals = {name: model.get_submodule(name) for name in names}
    for name, original in originals.items():
        # What multiplies the input has its width as the last dimension.
        width = next(p.shape[-1] for p in original.parameters() if p.ndim == 2)
        model.set_submodule(name, ExpertMixture(original, width, generator))
    try:
        twins = {
            f"{name}.tuned.{inner}": f"{name}.{inner}"
            for name, original in originals.items()
            for inner, _ in original.named_parameters()
            if f"{name}.{inner}" in selection.names  # not the router of experts that it has itself
        }
        routers = [f"{name}.router.{part}" for name in names for part in ("weight", "bias")]
        sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
        chosen = tuple(name for name in sizes if name in twins or name in routers)
        yield Mixed(
            replace(
                selection,
                names=chosen,
                disk_names={},
                fused=(),
                num_parameters=sum(sizes[name] for name in chosen),
            ),
            twins,
        )
    finally:
        for name, original in originals.items():
            model.set_submodule(name, original)
