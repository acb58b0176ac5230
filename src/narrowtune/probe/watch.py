"""What can be told without labels, again and again while a model trains.

Owns: the figures beside KL that its own forward gives, along the base's answers. Nothing is
generated for them: at the first token they are about the model's own greedy answer, and further on
about what it would say where the base's answer stands.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from narrowtune.data.chat import ChatEncoder
from narrowtune.engine.generate import stop_tokens
from narrowtune.models.load import LoadedModel
from narrowtune.models.swap import WeightSwap
from narrowtune.probe.drift import BaseAnswers, drift_against, mean_mass
from narrowtune.probe.token_groups import Forms, GroupMass, standard_groups


@dataclass(frozen=True)
class Reading:
    """One measurement. None is what was not measured: by an earlier version, or without numbers.

    Attributes:
        kl: KL(base‖now), nats per token.
        number_bias: the number-token bias: the largest probability of a number (`GroupMass`), mean
            over answers of the mean over their steps, 0 to 1.
        base_number_bias: the base's.
        format_valid: share of prompts whose most likely first token begins an answer of the form
            that the base's answer has (`Forms`).
    """

    kl: float
    number_bias: float | None = None
    base_number_bias: float | None = None
    format_valid: float | None = None


class Watch:
    """Takes readings of one model.

    Args:
        loaded: the model.
        encoder: the chat template.

    Attributes:
        collect: for `prepare_base_answers`: the base's side of the number-token bias.
    """

    def __init__(self, loaded: LoadedModel, encoder: ChatEncoder) -> None:
        groups = [group for group in standard_groups(loaded.tokenizer) if group.name == "numbers"]
        self.collect = GroupMass(groups)
        self._forms = Forms(loaded.tokenizer, stop_tokens(loaded, encoder.stop_tokens))

    def read(
        self, loaded: LoadedModel, answers: BaseAnswers, swap: WeightSwap | None = None
    ) -> Reading:
        """Measure the model as it is now, in the one forward that `drift_against` takes.

        Args:
            loaded: the model.
            answers: prepared with `collect`.
            swap: as for `drift_against`.
        """
        masses: list[Tensor] = []
        kept = 0

        def see(place: int, logits_SV: Tensor) -> None:
            nonlocal kept
            masses.append(self.collect(logits_SV).cpu())
            first = answers.generations[place].step_ids[0]
            kept += self._forms.alike(first, int(logits_SV[0].argmax()))

        kl = drift_against(loaded, answers, swap, see).kl_base_tuned
        valid = kept / len(answers.generations)
        if not self.collect.groups:
            return Reading(kl, format_valid=valid)
        base = mean_mass([answer.collected for answer in answers.generations])
        return Reading(kl, mean_mass(masses)[0], base[0], valid)
