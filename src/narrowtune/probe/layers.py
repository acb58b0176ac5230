"""Which layers write something else than the base's: their writes' change, through the head.

Owns: layer contributions, as in the paper (arXiv 2510.08564, appendix): mean over answer positions
of ‖W_t h_t − W_b h_b‖₂, h what attention or MLP of a layer adds to the residual stream, W the
head's matrix, no final norm between. It is computed as W_b (h_t − h_b) + (W_t − W_b) h_t: what is
equal in both models cancels before it is multiplied, so that small changes are not lost in the
difference of large numbers and an untouched model gives exactly 0. Positions are those of the
model's own sequence, every token of a picture counted.

Shapes: M modules (attention of all layers, then MLPs), N positions, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from narrowtune.core.errors import ModelError
from narrowtune.core.layers import LayerContributions
from narrowtune.core.recipes import Matrix
from narrowtune.data.collate import collate, padding_id
from narrowtune.engine.forward import (
    LOGITS_AT_ONCE,
    evaluating,
    label_positions,
    logits_at,
    to_device,
)
from narrowtune.engine.packing import packing
from narrowtune.models.load import LoadedModel
from narrowtune.models.swap import WeightSwap
from narrowtune.probe.drift import BaseAnswers


def layer_contributions(
    loaded: LoadedModel, swap: WeightSwap, answers: BaseAnswers
) -> LayerContributions:
    """Compare what every layer writes, base and tuned, teacher-forced on the base's answers.

    Args:
        loaded: the tuned model.
        swap: brings the base back.
        answers: from `prepare_base_answers`.
    """
    modules = writers(loaded)
    head = loaded.model.get_output_embeddings()
    tuned_VH = head.weight.detach()
    with swap.base():
        base_VH = head.weight.detach()  # stays the base's when the swap ends
    sums_M = torch.zeros(len(modules), dtype=torch.float64)
    count = 0
    for batch in answers.batches:
        rows = collate([answers.rows[i] for i in batch], padding_id(loaded.tokenizer))
        inputs = to_device(rows, loaded.model.device)
        mask = label_positions(inputs["labels"])[0]
        tuned_MNH = _writes(loaded.model, modules, inputs, mask)
        with swap.base():
            base_MNH = _writes(loaded.model, modules, inputs, mask)
        norms_MN = change_norms(base_MNH, tuned_MNH, base_VH, tuned_VH)
        sums_M += norms_MN.sum(dim=1).cpu()
        count += norms_MN.shape[1]
    means = (sums_M / count).tolist()
    half = len(modules) // 2
    return LayerContributions(num_positions=count, attention=means[:half], mlp=means[half:])


def change_norms(base_MNH: Tensor, tuned_MNH: Tensor, base_VH: Tensor, tuned_VH: Tensor) -> Tensor:
    """Return ‖W_b (h_t − h_b) + (W_t − W_b) h_t‖₂ as [M, N] in fp64, from products in fp32 or fp64.

    Some rows of W at a time, so that no more than `LOGITS_AT_ONCE` products are held.
    """
    dtype = torch.promote_types(base_MNH.dtype, torch.float32)
    base_MNH, tuned_MNH = base_MNH.to(dtype), tuned_MNH.to(dtype)
    change_MNH = tuned_MNH - base_MNH
    is_head_equal = torch.equal(base_VH, tuned_VH)
    num_rows = max(1, LOGITS_AT_ONCE // change_MNH[..., 0].numel())
    squares_MN = torch.zeros_like(change_MNH[..., 0], dtype=torch.float64)
    for base, tuned in zip(base_VH.split(num_rows), tuned_VH.split(num_rows), strict=True):
        base = base.to(dtype)
        products = change_MNH @ base.T
        if not is_head_equal:
            products += tuned_MNH @ (tuned.to(dtype) - base).T
        squares_MN += torch.linalg.vector_norm(products, dim=-1, dtype=torch.float64).square()
    return squares_MN.sqrt()


def writers(loaded: LoadedModel) -> list[nn.Module]:
    """Return the modules whose outputs the layers add to the residual stream: attention, then MLPs.

    That is the module that ends in o or down; where a norm follows it before the sum, as in
    Gemma, the norm.
    """
    paths, matrices = loaded.family.language_model, loaded.family.matrices
    layers = list(loaded.model.get_submodule(paths.layers).children())
    found = []
    norms: dict[Matrix, str] = {
        "o": "post_attention_layernorm",
        "down": "post_feedforward_layernorm",
    }
    for matrix, norm in norms.items():
        # Where there are experts, what a layer adds is the sum over them: the module above.
        blocks = [module.partition(".")[0] for kind in matrices[matrix] for module in kind]
        # "post_attention_layernorm" comes before the MLP, not after attention, in families
        # without norms after their blocks.
        names = [norm] if hasattr(layers[0], "post_feedforward_layernorm") else blocks
        for layer in layers:
            own = dict(layer.named_modules())
            found.append(own[next(name for name in names if name in own)])
    return found


def _writes(
    model: nn.Module, modules: Sequence[nn.Module], inputs: Mapping[str, Any], mask: Tensor
) -> Tensor:
    """Return the modules' outputs [M, N, H] at the positions where `mask` [B, T] is true."""
    found: list[Tensor | None] = [None] * len(modules)

    def keep(place: int, output: Tensor | tuple[Tensor, ...]) -> None:
        states_BTH = output[0] if isinstance(output, tuple) else output
        if states_BTH.shape[:2] != mask.shape:
            raise ModelError(
                asked=f"what the layers of {type(model).__name__} write at given positions",
                found=f"outputs of shape {tuple(states_BTH.shape)} for {tuple(mask.shape)} tokens",
                do="check that this family expands image tokens in `input_ids`, not inside",
            )
        found[place] = states_BTH[mask.to(states_BTH.device)]

    handles = [
        module.register_forward_hook(lambda _, __, output, place=place: keep(place, output))
        for place, module in enumerate(modules)
    ]
    try:
        # In a packed line, positions would not be those of `mask`.
        with evaluating(model), packing("never"):
            logits_at(model, inputs, mask)
    finally:
        for handle in handles:
            handle.remove()
    return _share_of_writes(model) * torch.stack([s for s in found if s is not None])


def _share_of_writes(model: nn.Module) -> float:
    """Return what a layer's output is multiplied by on its way to the logits: 1 but for Granite."""
    config: Any = model.config
    text = config.get_text_config()
    into_stream = getattr(text, "residual_multiplier", None) or 1.0
    return float(into_stream / (getattr(text, "logits_scaling", None) or 1.0))
