"""Learning without Forgetting: hold the student to the model that training began with.

On the task's own rows, at their labelled positions: T² · KL(teacher‖student), both softened by T
(arXiv 1606.09282, with the distillation of arXiv 1503.02531). The teacher is the model itself with
its earlier weights swapped in, so no second model is held; it runs once more per pass, forward.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from narrowtune.models.swap import WeightSwap


class Distillation:
    """The teacher, and what differing from it costs.

    Args:
        swap: brings the teacher's weights back.
        weight: λ, of the term beside cross-entropy at weight 1.
        temperature: T.
    """

    def __init__(self, swap: WeightSwap, *, weight: float, temperature: float) -> None:
        self._swap = swap
        self.weight = weight
        self.temperature = temperature

    def teach(self, forward: Callable[[], Tensor]) -> Tensor:
        """Return what `forward` gives with the teacher's weights, without a graph.

        To be asked before the student's own pass, whose graph holds on to the live weights.
        """
        with torch.no_grad(), self._swap.base():
            return forward()

    def loss(self, teacher_NV: Tensor, student_NV: Tensor) -> Tensor:
        """Return T² · KL(teacher‖student) summed over N positions, in nats.

        Args:
            teacher_NV: logits [N, V].
            student_NV: logits [N, V] at the same positions.
        """
        softened = [(logits.float() / self.temperature) for logits in (student_NV, teacher_NV)]
        student, teacher = (logits.log_softmax(dim=-1) for logits in softened)
        divergence = torch.nn.functional.kl_div(student, teacher, reduction="sum", log_target=True)
        return self.temperature**2 * divergence
