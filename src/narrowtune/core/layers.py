"""What layers write, compared: a plain value that goes to JSON and back."""

from __future__ import annotations

from narrowtune.core.results import Value


class LayerContributions(Value):
    """How far each decoder layer's writes to the residual stream moved, seen through the head.

    Attributes:
        num_positions: positions averaged over: those that predict a token of the base's answers.
        attention, mlp: by layer, the mean of ‖W_base (h_tuned − h_base) + (W_tuned − W_base)
            h_tuned‖₂, in the units of logits: h what the module writes, W the head's matrix.
    """

    num_positions: int
    attention: list[float]
    mlp: list[float]
