"""What holds a model to its own answers while it is taught."""

from __future__ import annotations

from pydantic import Field, model_validator

from narrowtune.core.data_settings import PromptSettings


class AnchorSettings(PromptSettings):
    """A KL pull towards the base on its own answers to unlabelled prompts.

    Attributes:
        prompts: file of prompts, with or without pictures; unless given, 160 that ship with the
            package: texts, half of them about pictures where the model reads these.
        max_prompts: how many of them; all unless given. The first of a file, and shipped ones
            spread over all forms.
        weight: of the KL term, beside cross-entropy at weight 1; 0 leaves it to `projection`, and
            steps without anchor rows.
        projection: how strongly updates of the decoder's linear layers are damped along the
            directions that their inputs have on the prompts; 0: not at all. A direction as strong
            as the mean is scaled by 1 / (1 + strength), stronger ones are damped more. Heads,
            embeddings, norms and what sees pictures are not held by it.
        skill_pictures: so many questions of the prompts about pictures are asked about pictures
            that the skill is taught with, too: what looks like these is what a skill takes over
            first. Only with prompts that ask nothing like what the skill asks.
        rows_per_step: anchor rows in every optimiser step.
        earlier_skills: of every skill that the model was taught before (with a ledger, or in a
            study's sequence), how many of the prompts that it was taught with are held too, at the
            answers that the model gives now; general prompts at those of the first base. They get
            every other place of `rows_per_step`.
        max_new_tokens: length of the base's answers. Forgetting begins with an answer's first
            tokens, and the pull is a mean over tokens, so short answers hold more.
        top_k: at every token, how many of the words that are likeliest for the base are told apart,
            all others being one outcome; all words unless given. Of each of these 8 bytes are kept,
            in place of 4 of each word of the vocabulary.
    """

    max_prompts: int | None = Field(None, ge=1)
    weight: float = Field(1.0, ge=0)
    projection: float = Field(0.0, ge=0, le=1e6)
    skill_pictures: int = Field(0, ge=0)
    rows_per_step: int = Field(4, ge=1)
    earlier_skills: int = Field(64, ge=0)
    max_new_tokens: int = Field(12, ge=1)
    top_k: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _holds(self) -> AnchorSettings:
        if not self.weight and not self.projection:
            raise ValueError("weight 0 without projection holds nothing: give one, or no anchor")
        return self
