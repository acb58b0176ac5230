"""A model that is shared out over devices while it trains, and comes back whole.

FSDP (its second version, https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html)
takes a model apart for good. So it gets a copy: frozen tensors are shared with the model until
they are shared out, what trains is held twice, in the host's memory. After the training every
tensor is gathered into the model there, so that the proof is of what was trained, and no device
has to hold it beside the parts and the optimiser.

What a model sees with stays whole on every device where it is frozen: devices wait for each other
in every part that is shared out, and one whose rows have no picture would not come.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from narrowtune.core.errors import UsageError
from narrowtune.data.collate import Encoded
from narrowtune.engine.features import changes_eyes
from narrowtune.models.load import LoadedModel
from narrowtune.models.select import Selection
from narrowtune.train.proof import GradientWitness

_WRAPPERS = ("_checkpoint_wrapped_module.", "_orig_mod.")
"""What checkpointing of activations and compilation put into parameters' names."""


def check_sharing(loaded: LoadedModel, selection: Selection, rows: Iterable[Encoded]) -> None:
    """See that a model can be shared out for a training on `rows`.

    Raises:
        UsageError: eyes are to train and not every row has a picture.
    """
    if changes_eyes(loaded, selection.names) and not all(row.picture_digest for row in rows):
        raise UsageError(
            asked=f"training.fsdp with {selection.recipe}, which trains what sees",
            found="rows without a picture, for which a device would keep the others waiting",
            do="give every row a picture, choose a recipe of the language model, or leave fsdp out",
        )


def shareable_copy(model: nn.Module) -> nn.Module:
    """Return a copy of a model on the CPU, for FSDP to take apart."""
    shared: dict[int, Any] = {
        id(parameter): nn.Parameter(parameter.detach(), requires_grad=False)
        for parameter in model.parameters()
        if not parameter.requires_grad
    }
    return copy.deepcopy(model, shared)


def plan_sharing(trainer: Trainer, loaded: LoadedModel, selection: Selection) -> None:
    """Tell FSDP what to share out and what not, and how, before anything trains.

    Raises:
        UsageError: accelerate does not share out on these devices.
    """
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        raise UsageError(
            asked="training.fsdp",
            found=f"that accelerate does not share out on {trainer.args.device.type}",
            do="train on GPUs, or leave fsdp out: each process then has the whole model",
        )
    if trainer.args.bf16:
        # accelerate's own would add gradients up in bf16, and reduce them in it.
        plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32
        )
    assert trainer.model is not None
    eyes = list(_eyes(trainer.model, loaded))
    frozen = [] if changes_eyes(loaded, selection.names) else eyes
    for module in frozen:
        module.to(trainer.args.device)
    plugin.ignored_modules = frozen or None
    if plugin.transformer_cls_names_to_wrap is None:
        # The model's own list may name classes that it does not have, and those of frozen eyes.
        plugin.transformer_cls_names_to_wrap = sorted(_blocks(trainer.model, skipped=frozen))


def _blocks(model: nn.Module, skipped: Sequence[nn.Module]) -> set[str]:
    """Return the classes of the layers that stand in lists, but for those of `skipped`."""
    if any(model is module for module in skipped):
        return set()
    if isinstance(model, nn.ModuleList):  # what lists inside a layer hold goes with it
        return {type(layer).__name__ for layer in model}
    return set().union(*(_blocks(child, skipped) for child in model.children()))


def _eyes(model: nn.Module, loaded: LoadedModel) -> Iterable[nn.Module]:
    """Yield the largest modules whose parameters are all outside of the language model.

    A parameter that stands by itself is shared out with the whole model, which all devices call.
    """

    def visit(module: nn.Module, path: str) -> Iterable[nn.Module]:
        names = [f"{path}{name}" for name, _ in module.named_parameters()]
        components = {loaded.family.component(name) for name in names}
        if names and "language_model" not in components:
            yield module
            return
        for name, child in module.named_children():
            yield from visit(child, f"{path}{name}.")

    return visit(model, "")


def whole(parameter: Tensor) -> Tensor:
    """Return a tensor with all its parts, on the CPU; every process has to ask for it."""
    tensor = parameter.detach()
    if isinstance(tensor, DTensor):
        tensor = tensor.full_tensor()
    return tensor.cpu().contiguous()


@torch.no_grad()
def fill(parameter: Tensor, values: Tensor) -> None:
    """Put values into a parameter, or this process's part of them into its part."""
    if isinstance(parameter, DTensor):
        mesh = parameter.device_mesh
        parts = distribute_tensor(values.to(mesh.device_type), mesh, parameter.placements)
        parameter.to_local().copy_(parts.to_local())
    else:
        parameter.copy_(values)


def parameters_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return a model's parameters by name; those of one that is shared out are all in parts."""
    inner = extract_model_from_parallel(model)
    for module in inner.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    return dict(_named(inner.named_parameters()))


Named = TypeVar("Named", bound=Tensor)


def _named(tensors: Iterable[tuple[str, Named]]) -> Iterable[tuple[str, Named]]:
    """Yield tensors by the names that they had before something was wrapped around a layer."""
    for name, tensor in tensors:
        for wrapper in _WRAPPERS:
            name = name.replace(wrapper, "")
        yield name, tensor


@torch.no_grad()
def end_sharing(trainer: Trainer, model: nn.Module, witness: GradientWitness) -> None:
    """Gather everything that was shared out into the model on the CPU that it is a copy of.

    Nothing of it stays on the devices: the trainer has no model any more.
    """
    join(witness)
    assert trainer.model is not None
    parameters = parameters_of(trainer.model)
    for name, parameter in model.named_parameters():
        parameter.copy_(whole(parameters[name]))
    buffers = dict(_named(extract_model_from_parallel(trainer.model).named_buffers()))
    for name, buffer in model.named_buffers():
        buffer.copy_(whole(buffers[name]))
    del parameters, buffers
    trainer.accelerator.state.fsdp_plugin.ignored_modules = None
    held: Any = trainer  # it is declared to have a model always
    for holder in (held, held.callback_handler):
        holder.model = holder.model_wrapped = holder.optimizer = holder.lr_scheduler = None
    trainer.accelerator.free_memory()


class PartsWitness(TrainerCallback):
    """Shows a witness the gradients of parameters in parts, which no hook on them sees."""

    def __init__(self, witness: GradientWitness, names: Sequence[str]) -> None:
        self._witness, self._names = witness, names

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **_: Any,
    ) -> None:
        """Look at what has not been seen yet."""
        waiting = [name for name in self._names if name not in self._witness.nonzero]
        inner = extract_model_from_parallel(model)
        parameters = dict(_named(inner.named_parameters())) if waiting else {}
        for name in waiting:
            gradient = parameters[name].grad
            if gradient is not None:
                local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
                self._witness.see(name, local)


def join(witness: GradientWitness) -> None:
    """Let every process know what any of them saw: each has its own part of a gradient."""
    seen: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(seen, (witness.received, witness.nonzero))
    for received, nonzero in seen:
        witness.received.update(received)
        witness.nonzero.update(nonzero)
