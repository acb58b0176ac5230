"""The anchors of a study's arms, made when they are first needed and kept for all chains.

Owns: that general prompts are answered by the base throughout, also about a skill's pictures, and
those of skills that were taught before by the model that a stage begins with.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from narrowtune.core.anchor_settings import AnchorSettings
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.examples import Example, Message
from narrowtune.data.splits import Prompts, draw_examples
from narrowtune.engine.features import FeatureStore
from narrowtune.models.load import LoadedModel
from narrowtune.models.swap import WeightSwap
from narrowtune.pipeline.crossed import ask_of_skill_pictures, shows_pictures
from narrowtune.pipeline.stages import measuring
from narrowtune.train.anchor import Anchor, build_anchor

logger = logging.getLogger(__name__)


def prompts_key(settings: AnchorSettings) -> str:
    """Return what general prompts and the base's answers to them depend on, and no more."""
    return settings.model_dump_json(exclude={"earlier_skills", "skill_pictures"})


class Anchors:
    """Rows that hold models to what they answered.

    Args:
        loaded: the model.
        encoder: the chat template.
        prompts: of each anchor, by `prompts_key`.
        measured: what scores are measured on.
        base: tensors of the base that any arm trains.
        batch_size: of answering.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        encoder: ChatEncoder,
        prompts: Mapping[str, Sequence[tuple[Message, ...]]],
        measured: Sequence[Example],
        base: Mapping[str, Tensor],
        batch_size: int,
    ) -> None:
        self.loaded, self.encoder, self.base, self.batch_size = loaded, encoder, base, batch_size
        self._prompts, self._measured = prompts, measured
        self._general: dict[str, Anchor] = {}

    def general(self, settings: AnchorSettings, features: FeatureStore | None) -> Anchor:
        """Return the base's own answers to general prompts; made once, whatever the model is now.

        Args:
            settings: of the anchor.
            features: what the base's tower made of pictures.
        """
        key = prompts_key(settings)
        if key not in self._general:
            self._general[key] = self._of_base(self._prompts[key], settings, features)
        return self._general[key]

    def about_skill(
        self,
        general: Anchor,
        settings: AnchorSettings,
        rows: Sequence[Example],
        asked: Sequence[Example],
        seed: int,
        features: FeatureStore | None,
    ) -> Anchor:
        """Return `general` with the base's answers to general questions about a skill's pictures.

        Args:
            general: of the base.
            settings: of the anchor.
            rows: that the stage teaches.
            asked: all rows of the skill, whose questions are none of these.
            seed: of the draw of `settings.skill_pictures`.
            features: what the base's tower made of pictures.
        """
        if not settings.skill_pictures or not shows_pictures(rows):
            return general
        found = ask_of_skill_pictures(
            self._prompts[prompts_key(settings)],
            rows,
            settings.skill_pictures,
            self.encoder,
            asked=asked,
            measured=self._measured,
            seed=seed,
        )
        if len(found.messages) < settings.skill_pictures:
            logger.warning(found.notes[0])
        own = self._of_base(found.messages, settings, features)
        return general.beside(own, in_turn=False)

    def with_taught(
        self,
        general: Anchor,
        settings: AnchorSettings,
        taught: Sequence[Sequence[Example]],
        now: Iterable[Example],
        seed: int,
        features: FeatureStore | None,
    ) -> Anchor:
        """Return `general` with what the model answers now to some rows of earlier skills.

        Args:
            general: of the base.
            settings: of the anchor.
            taught: rows that each earlier skill was taught with; none of them is measured.
            now: rows that the stage teaches: none of their prompts is held at another answer.
            seed: of the draw of `settings.earlier_skills` of each.
            features: what the model's tower made of pictures.
        """
        number = settings.earlier_skills
        known = Prompts(now if taught and number else ())
        allowed = ((row for row in rows if known.find(row) is None) for rows in taught)
        drawn = [each for rows in allowed for each in draw_examples(rows, number, seed)]
        if not drawn:
            return general
        own = self._build([example.prompt for example in drawn], settings, features)
        return general.beside(own)

    def _of_base(
        self,
        prompts: Sequence[Sequence[Message]],
        settings: AnchorSettings,
        features: FeatureStore | None,
    ) -> Anchor:
        with WeightSwap(self.loaded.model, self.base).base():
            return self._build(prompts, settings, features)

    def _build(
        self,
        prompts: Sequence[Sequence[Message]],
        settings: AnchorSettings,
        features: FeatureStore | None,
    ) -> Anchor:
        with measuring(self.loaded, features):
            return build_anchor(
                self.loaded,
                self.encoder,
                prompts,
                settings,
                batch_size=self.batch_size,
                seed=0,
            )
