"""One forward pass for training, evaluation and probes: logits only where they are needed.

Owns where the language-model head is computed and how labels become a loss. Every family goes
through its own `forward`, so that its scalings and soft caps hold; only the rows that reach the
head are chosen here.

Shapes: B batch, T tokens, N chosen positions, V vocabulary, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn

from narrowtune.core.errors import ModelError
from narrowtune.data.collate import IGNORE_INDEX
from narrowtune.engine.gated import keeping_operands
from narrowtune.engine.last_layer import last_layer_at
from narrowtune.engine.modes import evaluation_mode, without_router_logits
from narrowtune.engine.packing import as_numbers, is_packing_allowed, pack, packing
from narrowtune.engine.padding import without_mask
from narrowtune.models.chunks import chunk_by_chunk

LOGITS_AT_ONCE = 2**26
"""Logits of one model held at a time: 256 MiB in fp32."""


def logits_at(model: nn.Module, batch: Mapping[str, Any], mask: Tensor) -> Tensor:
    """Run `model` on `batch` and return the logits at the positions where `mask` is true.

    The head sees the chosen positions only. At a vocabulary of 150,000 and one label in fifty
    tokens, that saves most of the logits' memory and, in a small model, most of the time. So does
    what of the last layer nothing else reads (`engine.last_layer`). Rows go through the
    model end to end, what they begin with alike once, pictures too, where that is cheaper
    (`engine.packing`).

    Args:
        model: a Hugging Face causal model, plain or wrapped for distributed training.
        batch: its inputs; `labels` is left out, so that the model computes no loss of its own.
        mask: [B, T] bool, over the positions of `input_ids`.

    Returns:
        [N, V], in the dtype in which the model computes, in row-major order of `mask`.

    Raises:
        ModelError: the model has no head, or never calls it, or calls it with another shape.
    """
    inner = extract_model_from_parallel(model, keep_torch_compile=False)
    head = inner.get_output_embeddings()
    if head is None:
        raise ModelError(
            asked=f"logits of {type(inner).__name__}",
            found="get_output_embeddings() returns no language-model head",
            do="load the checkpoint with its causal class (…ForCausalLM or "
            "…ForConditionalGeneration)",
        )
    num_calls = 0

    def gather(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        nonlocal num_calls
        num_calls += 1
        hidden_BTH = args[0]
        if hidden_BTH.shape[:2] != mask.shape:
            raise ModelError(
                asked=f"logits of {type(inner).__name__} at {tuple(mask.shape)} positions",
                found=f"its head is given hidden states of shape {tuple(hidden_BTH.shape)}",
                do="check that this family expands image tokens in `input_ids`, not inside",
            )
        # By number and not by mask, so that states without data have a known shape here too.
        chosen = mask.to(hidden_BTH.device).nonzero(as_tuple=True)
        return (hidden_BTH[chosen].unsqueeze(0), *args[1:])

    inputs = {name: value for name, value in batch.items() if name != "labels"}
    order = None
    layout = pack(inner, inputs, mask)
    if layout is not None:
        inputs, mask, order = layout
        known = model is inner or torch.is_autocast_enabled(mask.device.type)
        dtype = _attention_dtype(inner) if known else None
        if dtype is not None:
            inputs["attention_mask"] = as_numbers(inputs["attention_mask"], dtype)
    elif is_packing_allowed():
        inputs = without_mask(inner, inputs, mask.device.type)
    handle = head.register_forward_pre_hook(gather)
    try:
        with _leaner(inner, mask), without_router_logits(inner):
            logits_1NV = model(**inputs, use_cache=False).logits
    finally:
        handle.remove()
    if num_calls != 1:
        raise ModelError(
            asked=f"logits of {type(inner).__name__} at chosen positions",
            found=f"its forward called the language-model head {num_calls} times",
            do="this architecture is not supported; report it with the model's class",
        )
    logits_NV: Tensor = logits_1NV[0]
    return logits_NV if order is None else logits_NV[order]


@contextmanager
def _leaner(model: nn.Module, mask: Tensor) -> Iterator[None]:
    """Compute and keep only what is needed for logits at `mask` inside the block."""
    if not is_packing_allowed():
        yield
        return
    with last_layer_at(model, mask), keeping_operands(model):
        yield


def _attention_dtype(model: nn.Module) -> torch.dtype | None:
    """Return the dtype in which attention will compute; None where parameters have several."""
    parameters = list(model.parameters())
    kind = parameters[0].device.type
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    dtypes = {parameter.dtype for parameter in parameters if parameter.is_floating_point()}
    return dtypes.pop() if len(dtypes) == 1 else None


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's own mode is restored afterwards."""
    with evaluation_mode(model), torch.inference_mode():
        yield


def to_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Return the batch with its tensors on `device`."""
    return {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }


def label_positions(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return where a label is predicted, and the labels.

    Args:
        labels: [B, T], `IGNORE_INDEX` where there is none.

    Returns:
        mask [B, T]: true at t where the token at t + 1 is labelled; targets [N]: those tokens.
    """
    mask = torch.zeros_like(labels, dtype=torch.bool)
    mask[:, :-1] = labels[:, 1:] != IGNORE_INDEX
    targets = labels[:, 1:][mask[:, :-1]]
    return mask, targets


@torch.no_grad()
def packing_error(model: nn.Module, batch: Mapping[str, Any]) -> float | None:
    """Return how much packing, or leaving out a mask, changes the logits at a batch's labels.

    The norm of the difference relative to that of the logits around their mean: about 1e-6 in
    fp32 and 1e-2 in bf16, and of the order of 1 where a model does not honour the layout's mask or
    positions. None where the batch can't be packed.
    """
    mask, _ = label_positions(batch["labels"])
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    bare = without_mask(model, inputs, mask.device.type)
    others: list[Mapping[str, Any]] = [bare] if bare is not inputs else []
    with packing("always"):
        if pack(model, inputs, mask) is not None:
            others.append(batch)
    if not others:
        return None
    with packing("never"), chunk_by_chunk(model):
        plain = logits_at(model, batch, mask).float()
    with packing("always"):
        found = [logits_at(model, other, mask).float() for other in others]
    spread = plain - plain.mean(dim=-1, keepdim=True)
    return max(float((other - plain).norm() / spread.norm()) for other in found)


def labelled_cross_entropy(model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, int]:
    """Return the summed next-token cross-entropy over the batch's labels, and their number.

    The sum and not the mean: a step that spans several micro-batches or devices divides by the
    labels of all of them. The first token of a row is never predicted, so a label on it does not
    count. Cross-entropy is computed in fp32 (fp64 if the logits are fp64), whatever the model
    computes in.

    Args:
        model: as for `logits_at`.
        batch: inputs with `labels` [B, T].

    Returns:
        A scalar tensor that carries gradient, in nats, and the number of labels.
    """
    mask, targets = label_positions(batch["labels"])
    logits_NV = logits_at(model, batch, mask)
    if logits_NV.dtype != torch.float64:
        logits_NV = logits_NV.float()
    loss = nn.functional.cross_entropy(logits_NV, targets.to(logits_NV.device), reduction="sum")
    return loss, int(targets.numel())
