"""Conversations become tokens with labels on what the assistant says, and on nothing else.

Owns: `ChatEncoder`. Labels come from positions in the rendered text (template.py), never from pad
ids or marks in a template: SmolLM2's pad token is its end-of-turn token, and it has no such marks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from copy import copy
from functools import cached_property
from typing import Any

from torch import Tensor

from narrowtune.core.errors import DataError
from narrowtune.data.collate import IGNORE_INDEX, Encoded
from narrowtune.data.examples import Example, Image, Message, RowError, Text
from narrowtune.data.expansion import Tokens, expand, put_in_place, runs_of
from narrowtune.data.images import open_image
from narrowtune.data.literals import SpecialTokens, guard_tokens
from narrowtune.data.room import Room
from narrowtune.data.template import ChatTemplate, Rendered, Skeleton, Span, Turn

__all__ = ["ChatEncoder", "Encoded", "RowError"]


_TOKEN_BYTES = 44
"""Of an encoded token in memory: a number, and two places in lists."""


class ChatEncoder:
    """Encodes conversations with a model's own chat template.

    The tokens are those of `apply_chat_template(..., tokenize=True)`, with two differences, both
    on purpose: special tokens that users or assistants typed are plain text, and where the
    template ends no turn, the end-of-text token follows the last answer.

    Args:
        tokenizer: a fast one.
        processor: of a multimodal model, else None.
        max_length: most tokens per row, pictures included; a longer row is an error, never cut.
        chat_template_kwargs: passed to the template.
        remembered_bytes: how much of what `encode_prompt` gives is kept for the next time it is
            asked for, pictures by the file's path; none unless given.

    Attributes:
        num_prefix_mismatches: rows of `encode` whose tokens before the last answer are not those
            that `encode_prompt` gives for the same messages.
        num_unlearned_turns: of the assistant, in rows of `encode`.
        notes: what was decided about the template, for the record.

    Raises:
        DataError: the tokenizer is not a fast one, or there is no usable chat template.
        UsageError: the template does not use one of `chat_template_kwargs`.
    """

    def __init__(
        self,
        tokenizer: Any,
        processor: Any = None,
        *,
        max_length: int | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        remembered_bytes: int = 0,
    ) -> None:
        if not tokenizer.is_fast:
            raise DataError(
                asked="the place of every token in the text",
                found=f"{type(tokenizer).__name__}, which is not a fast tokenizer",
                do="use a model with a tokenizer.json",
            )
        self._tokenizer, self._processor, self._max_length = tokenizer, processor, max_length
        self._specials = SpecialTokens(tokenizer, processor)
        kwargs = dict(chat_template_kwargs or {})
        self._template = ChatTemplate(tokenizer, processor, self._specials, kwargs)
        self._known: dict[tuple[str, ...], Counter[int]] = {}
        self._prompts: dict[tuple[Message, ...], Encoded] = {}
        self._room = Room(remembered_bytes)
        self.num_prefix_mismatches = self.num_unlearned_turns = 0

    def __getstate__(self) -> dict[str, Any]:
        """Leave out remembered prompts: rows that go to a data loader's process bring no others."""
        return {**vars(self), "_prompts": {}}

    @property
    def notes(self) -> list[str]:
        """What was decided about the template, for the record."""
        return self._template.notes

    @property
    def writes_the_date(self) -> bool:
        """Whether the template writes today's date into prompts."""
        return self._template.writes_the_date

    @cached_property
    def stop_tokens(self) -> tuple[int, ...]:
        """Ids of the token that the template ends an assistant's turn with, if it is one token.

        The model's own end of text may be another one, and both end an answer.
        """
        turns = (Message("user", (Text("a"),)), Message("assistant", (Text("b"),)))
        labels = self._encode(turns, every_turn=True).labels
        last = next((label for label in reversed(labels) if label != IGNORE_INDEX), None)
        return (last,) if last in self._special_ids else ()

    def encode(self, example: Example) -> Encoded:
        """Encode a whole conversation; every assistant turn that is learned is labelled.

        Its end of turn too.

        Raises:
            RowError: longer than `max_length`, or one of the template's, processor's or
                pictures' reasons; it names the row.
        """
        try:
            return self._encode(example.messages, every_turn=True)
        except RowError as error:
            raise RowError(error.reason, id=example.id, row=example.row) from error

    def encode_features(self, example: Example) -> dict[str, Tensor]:
        """Return the features of a row that was encoded before.

        Raises:
            RowError: as for `encode`.
        """
        return self._encode(example.messages, every_turn=False).features

    @property
    def reads_pictures(self) -> bool:
        """Whether the model does."""
        return self._processor is not None

    @property
    def image_token_id(self) -> int | None:
        """The token that stands for parts of pictures; None where the model reads none.

        Not always the one that templates write: Gemma 3's write where a picture begins.
        """
        known: list[int | None] = getattr(self._processor, "image_token_ids", None) or []
        return next((token for token in known if token is not None), self._specials.image_id)

    def num_tokens(self, text: str) -> int:
        """Return how many tokens a text is by itself."""
        return len(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def encode_prompt(self, messages: Sequence[Message]) -> Encoded:
        """Encode messages up to where generation starts; no label.

        Raises:
            RowError: as for `encode`.
        """
        key = tuple(messages)
        if key in self._prompts:
            return self._prompts[key]
        turns, guard = self._turns(messages)
        text = self._template.render(turns, generation=True)
        tokens = self._tokenize(text, turns, guard, messages, generation=True)
        encoded = self._finish(tokens, [])
        size = _TOKEN_BYTES * len(encoded.input_ids)
        size += sum(value.nbytes for value in encoded.features.values())
        if self._room.take(size):
            self._prompts[key] = encoded
        return encoded

    def without_limit(self) -> ChatEncoder:
        """Return the same for rows of any length."""
        unlimited = copy(self)
        unlimited._max_length = None
        return unlimited

    def encode_answer(self, messages: Sequence[Message], answer: str) -> Encoded:
        """Encode messages followed by a given answer; only the answer is labelled.

        Raises:
            RowError: as for `encode`.
        """
        return self._encode((*messages, Message("assistant", (Text(answer),))), every_turn=False)

    def _encode(self, messages: Sequence[Message], *, every_turn: bool) -> Encoded:
        if messages[-1].role != "assistant":
            raise RowError("no answer: the last turn is not the assistant's")
        turns, guard = self._turns(messages)
        rendered = self._template.render_answers(turns)
        tokens = self._tokenize(
            rendered.text, turns, guard, messages, generation=False, appended=rendered.appended
        )
        spoken = [message for message in messages if message.role == "assistant"]
        learned = [
            answer
            for answer, message in zip(rendered.answers, spoken, strict=True)
            if message.is_learned
        ]
        encoded = self._finish(tokens, learned if every_turn else rendered.answers[-1:])
        if every_turn:
            self.num_unlearned_turns += len(spoken) - len(learned)
            self._compare_prefix(tokens, rendered, guard)
        return encoded

    def _turns(self, messages: Sequence[Message]) -> tuple[list[Turn], str | None]:
        """Messages as the template gets them, special tokens in their text guarded."""
        guard = self._specials.guard_for(
            [part.text for m in messages for part in m.content if isinstance(part, Text)]
        )
        turns = []
        for message in messages:
            pieces: list[str | None] = []
            for part in message.content:
                text = None if isinstance(part, Image) else self._specials.protect(part.text, guard)
                pieces.append(text)
            if not self._template.uses_blocks:
                pieces = ["\n".join(piece for piece in pieces if piece is not None)]
            turns.append(Turn(message.role, tuple(pieces)))
        return turns, guard

    def _tokenize(
        self,
        text: str,
        turns: Sequence[Turn],
        guard: str | None,
        messages: Sequence[Message],
        *,
        generation: bool,
        appended: bool = False,
    ) -> Tokens:
        tokens = self._tokenize_text(text)
        skeleton = self._template.skeleton(turns, generation=generation)
        found = self._specials.count(tokens.ids)
        expected = self._own_specials(skeleton)
        if appended:
            expected = expected + Counter([self._tokenizer.eos_token_id])
        images = [image for message in messages for image in message.images]
        placeholders = found[self._specials.image_id] if self._specials.image_id is not None else 0
        if placeholders != len(images):
            if not self.reads_pictures:
                raise RowError("it has pictures, and this model reads none")
            raise RowError(
                f"the chat template has {placeholders} places for {len(images)} pictures"
            )
        if found != expected:
            raise RowError("the text spells a special token together with its surroundings")
        if images:
            tokens = expand(
                self._processor,
                text,
                tokens,
                [open_image(image) for image in images],
                placeholders=self._specials.placeholders,
                adds_special_tokens=self._adds_special_tokens(text),
                close_gaps=_close_gaps,
            )
        return tokens.without(guard_tokens(text, guard, tokens.spans))

    def _own_specials(self, skeleton: Skeleton) -> Counter[int]:
        """The special tokens that the template itself writes."""
        if skeleton.literals not in self._known:
            ids = self._tokenize_text("\ue8e0".join(skeleton.literals)).ids
            self._known[skeleton.literals] = self._specials.count(ids)
        return self._known[skeleton.literals]

    def _tokenize_text(self, text: str) -> Tokens:
        out = self._tokenizer(
            text,
            add_special_tokens=self._adds_special_tokens(text),
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        return Tokens(list(out["input_ids"]), _close_gaps(text, out["offset_mapping"]), {})

    def _adds_special_tokens(self, text: str) -> bool:
        """As transformers' own `apply_chat_template`: only processors, unless the text has it."""
        bos = self._tokenizer.bos_token
        return self._processor is not None and not (bos is not None and text.startswith(bos))

    def _finish(self, tokens: Tokens, answers: Sequence[Span]) -> Encoded:
        if self._max_length is not None and len(tokens.ids) > self._max_length:
            raise RowError(f"{len(tokens.ids)} tokens, and max_length is {self._max_length}")
        labels = [
            token if any(self._is_of(answer, token, span) for answer in answers) else IGNORE_INDEX
            for token, span in zip(tokens.ids, tokens.spans, strict=True)
        ]
        assert not answers or any(label != IGNORE_INDEX for label in labels)
        return Encoded(tokens.ids, labels, tokens.features)

    def _is_of(self, answer: Span, token: int, span: Span) -> bool:
        """Whether a token is part of an answer.

        A token before it that takes the white space behind it along may have swallowed the
        answer's first spaces (Phi-3's `<|assistant|>`), and is not.
        """
        return _within(span, answer) and not (span[0] < answer[0] and token in self._swallowing)

    @cached_property
    def _swallowing(self) -> frozenset[int]:
        added = self._tokenizer.added_tokens_decoder
        return frozenset(token for token, spelled in added.items() if spelled.rstrip)

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        tokenizer = self._tokenizer
        return frozenset((*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder))

    def _compare_prefix(self, tokens: Tokens, rendered: Rendered, guard: str | None) -> None:
        """Count rows that generation would start differently from training."""
        text, media = rendered.prompt, self._specials.placeholders
        if tokens.replacements:
            text = put_in_place(text, self._processor.image_token, tokens.replacements)
            media = set()
        prompt = self._tokenize_text(text)
        known = prompt.without(guard_tokens(text, guard, prompt.spans)).ids
        last = rendered.answers[-1]
        pairs = enumerate(zip(tokens.ids, tokens.spans, strict=True))
        before = next(i for i, (token, span) in pairs if self._is_of(last, token, span))
        if runs_of(known, tokens.ids[:before], media) is None:
            self.num_prefix_mismatches += 1


def _close_gaps(text: str, offsets: Sequence[Span]) -> list[Span]:
    """Return each token's characters: some tokenizers leave the space before a word out."""
    spans: list[Span] = []
    reached = 0
    for start, end in offsets:
        if reached < start and text[reached:start].isspace():
            start = reached
        spans.append((start, end))
        reached = max(reached, end)
    return spans


def _within(span: Span, answer: Span) -> bool:
    """Whether a token stands for any character of an answer; one without characters, by place."""
    start, end = span
    return start < answer[1] and (end > answer[0] or start == end == answer[0])
