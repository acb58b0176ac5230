"""The forward pass of a reference model where every picture has the same size.

Owns: a path without the bookkeeping that pictures of any size need, so that it compiles to a few
graphs; a test holds it to the model's own forward pass.

Shapes: B samples, V visual tokens, P and T tokens before and after them, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from narrowtune.data.collate import IGNORE_INDEX
from narrowtune.miniature.reference.batches import Batch
from narrowtune.miniature.reference.eyes import LOOK, place


def hidden_states(model: PreTrainedModel, batch: Batch, states: Tensor) -> Tensor:
    """Return the language model's last states of the tokens after the picture [B, T, H]."""
    embed = model.get_input_embeddings()
    looked = LOOK[model.config.model_type](model, states)
    before = embed(batch.before).expand(len(looked), -1, -1)
    inputs = torch.cat((before, looked.to(before), embed(batch.after)), dim=1)
    # Right padding can't be seen by what stands before it: causal attention needs no mask.
    positions = place(model, len(batch.before), looked.shape[1], inputs.shape[1])
    found = model.model.language_model(
        inputs_embeds=inputs, position_ids=positions, use_cache=False
    ).last_hidden_state
    return found[:, -batch.after.shape[1] :]


@contextmanager
def plain_attention() -> Iterator[None]:
    """Attend by two matrix products and a softmax inside the block.

    A CPU's flash kernel takes a third of a training step at this size, most of it going back.
    """
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    # Named after CUDA, but it is what keeps the products in bf16 on a CPU, too.
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)


def answer_loss(logits: Tensor, labels: Tensor, all_labels: Tensor) -> Tensor:
    """Return the cross-entropy of each sample's answer, per token of it, summed over samples.

    A caption's twelve tokens count as much as a letter and its end of turn: otherwise the
    captions have most of the loss.

    Args:
        logits, labels: of `answer_logits`.
        all_labels: [B, T] that these came from.
    """
    lengths = (all_labels[:, 1:] != IGNORE_INDEX).sum(1)
    each = nn.functional.cross_entropy(logits.float(), labels, reduction="none")
    return (each / lengths.repeat_interleave(lengths)).sum()


def answer_logits(model: PreTrainedModel, states: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits [n, vocabulary] and labels [n] of the answers' tokens, row by row."""
    ahead = labels[:, 1:]
    wanted = ahead != IGNORE_INDEX
    return model.lm_head(states[:, :-1][wanted]), ahead[wanted]


class PatchHead(nn.Module):
    """Names what each patch of 8 pixels below a visual token shows, and its colour."""

    def __init__(self, size: int, patches_per_side: int, num_what: int, num_hue: int) -> None:
        super().__init__()
        self.patches_per_side, self.num_what, self.num_hue = patches_per_side, num_what, num_hue
        self.norm = nn.LayerNorm(size)
        self.classify = nn.Linear(size, patches_per_side**2 * (num_what + num_hue))

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits of what [B, N, num_what] and of hue [B, N, num_hue], row by row."""
        found = self.classify(self.norm(states))
        num_pictures, num_tokens, _ = found.shape
        side, inner = round(num_tokens**0.5), self.patches_per_side
        grid = found.view(num_pictures, side, side, inner, inner, -1)
        flat = grid.transpose(2, 3).reshape(num_pictures, (side * inner) ** 2, -1)
        what, hue = flat.split((self.num_what, self.num_hue), dim=-1)
        return what, hue
