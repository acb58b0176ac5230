"""The last decoder layer where its output is read, and not at every token.

Only keys and values of the last layer are needed at all tokens: its queries, what leaves its
attention and its MLP count at the positions whose logits are asked for. Elsewhere they are zeros,
which nothing reads; gradients there are zero either way, so that results are those of the whole
layer up to the order of sums. With labels on a few tokens it saves nine tenths of one layer.

Shapes: B batch, T tokens, N chosen positions, D a module's width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import ActivationWrapper

from narrowtune.core.errors import ModelError

_MODULES = ("self_attn.q_proj", "self_attn.o_proj", "mlp")
_MOST = 0.5
"""Share of positions up to which leaving out the others repays choosing them."""


@contextmanager
def last_layer_at(model: nn.Module, mask: Tensor) -> Iterator[None]:
    """Compute inside the block what of the last layer is read where `mask` [B, T] is true, alone.

    Nothing changes where the layers can't be found, are compiled, or are computed a second time in
    the backward pass, after the block.

    Raises:
        ModelError: a part of the layer returns more than states.
    """
    modules = read_at_labels(model)
    if not modules:
        yield
        return
    places = mask.nonzero(as_tuple=True)
    number = len(places[0])
    if not 0 < number <= _MOST * mask.numel():
        yield
        return

    def choose(_: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor] | None:
        return (args[0][_on(args[0], places)].unsqueeze(0),) if _whole(args, mask) else None

    def put_back(_: nn.Module, args: tuple[Any, ...], chosen_1ND: Any) -> Tensor | None:
        # Hooks of a call see the arguments that the first of them left.
        if len(args) != 1 or args[0].shape[:2] != (1, number):
            return None
        if not isinstance(chosen_1ND, Tensor):
            raise ModelError(
                asked=f"the last layer of {type(model).__name__} where logits are read",
                found="a part of it that returns more than states",
                do="compute whole rows: narrowtune.engine.packing.packing('never')",
            )
        everywhere = chosen_1ND.new_zeros(*mask.shape, chosen_1ND.shape[-1])
        return everywhere.index_put(_on(chosen_1ND, places), chosen_1ND[0])

    handles = [module.register_forward_pre_hook(choose) for module in modules]
    handles += [module.register_forward_hook(put_back) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _on(states: Tensor, places: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the chosen positions on the device of `states`: layers may lie on several."""
    return tuple(each.to(states.device) for each in places)


def _whole(args: tuple[Any, ...], mask: Tensor) -> bool:
    """Whether a module is given one state for each position of `mask`, and nothing else."""
    return len(args) == 1 and isinstance(args[0], Tensor) and args[0].shape[:2] == mask.shape


def read_at_labels(model: nn.Module) -> list[nn.Module]:
    """Return the modules of the last layer that are needed at chosen positions alone."""
    last = decoder_layers(model)[-1:]
    own = dict(last[0].named_modules()) if last and computes_as_written(last[0]) else {}
    return [own[name] for name in _MODULES if name in own]


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers of a model's decoder, in order; none where they can't be found."""
    find = getattr(model, "get_decoder", None)
    layers = getattr(find(), "layers", None) if find is not None else None
    return list(layers) if isinstance(layers, nn.ModuleList) else []


def computes_as_written(layer: nn.Module) -> bool:
    """Whether a layer is neither compiled nor computed a second time in the backward pass."""
    again = isinstance(layer, ActivationWrapper) or (
        getattr(layer, "gradient_checkpointing", False) and layer.training
    )
    return not again and "forward" not in vars(layer)
