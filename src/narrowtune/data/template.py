"""A chat template renders a conversation, and we know which characters the assistant produces.

Owns: rendering, and finding each turn in the rendered text by position. A second rendering with
marks in place of the contents gives the template's own text; the first must be that text with the
contents in it. Where a template rewrites contents, the renderings of the turns up to the answer
and through it are compared instead; where neither works, the row is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jinja2

from narrowtune.core.errors import DataError, UsageError
from narrowtune.data.examples import RowError
from narrowtune.data.literals import SpecialTokens

Span = tuple[int, int]

_MARK = re.compile("\ue8e0([0-9]+)\ue8e1")


@dataclass(frozen=True)
class Turn:
    """One message: its pieces are text, or None for a picture."""

    role: str
    pieces: tuple[str | None, ...]

    @property
    def shape(self) -> tuple[str, tuple[bool, ...]]:
        """What the template's own text may depend on: the role, and which pieces are pictures."""
        return self.role, tuple(piece is None for piece in self.pieces)


@dataclass(frozen=True)
class Skeleton:
    """A rendering without contents: `literals[0] + text order[0] + literals[1] + …`."""

    literals: tuple[str, ...]
    order: tuple[int, ...]


@dataclass(frozen=True)
class Rendered:
    """A conversation as text.

    Attributes:
        text: what is tokenised.
        answers: for each assistant turn the characters it has to produce, end of turn included.
        prompt: what generation of the last answer starts from; `text` starts with it unless the
            template is inconsistent.
        appended: whether the end-of-text token was added, as the template ends no turn.
    """

    text: str
    answers: tuple[Span, ...]
    prompt: str
    appended: bool


class ChatTemplate:
    """The chat template of a processor or tokenizer.

    Args:
        tokenizer: of the model; a fast one.
        processor: of a multimodal model, else None.
        specials: the tokenizer's special tokens.
        kwargs: passed to the template.

    Raises:
        DataError: there is no template, or it renders neither strings nor content blocks.
        UsageError: the template does not use one of `kwargs`.
    """

    def __init__(
        self, tokenizer: Any, processor: Any, specials: SpecialTokens, kwargs: dict[str, Any]
    ) -> None:
        has_own = getattr(processor, "chat_template", None) is not None
        self._source = processor if has_own else tokenizer
        if self._source.chat_template is None:
            raise DataError(
                asked="conversations in the model's own format",
                found="no chat template beside its tokenizer",
                do="use an instruction-tuned model, or add a chat_template.jinja to its folder",
            )
        unused = [k for k in kwargs if not re.search(rf"\b{k}\b", str(self._source.chat_template))]
        if unused:
            raise UsageError(
                asked=f"the chat template setting {', '.join(unused)}",
                found="a chat template that does not use it",
                do="correct chat_template_kwargs, or leave it out",
            )
        self._kwargs, self._specials = kwargs, specials
        self._end_of_text: str | None = tokenizer.eos_token
        self._skeletons: dict[Any, Skeleton] = {}
        self.notes: list[str] = []
        self.uses_blocks = self._find_content_kind(prefer_blocks=processor is not None)

    @property
    def writes_the_date(self) -> bool:
        """Whether prompts depend on the day: the template asks for it, and was given none."""
        asks = "strftime_now" in str(self._source.chat_template)
        return asks and "date_string" not in self._kwargs

    def render(self, turns: Sequence[Turn], *, generation: bool) -> str:
        """Return `turns` as text, with the generation prompt if asked for.

        Raises:
            RowError: the template does not accept these turns.
        """
        try:
            return self._render(turns, generation, self.uses_blocks)
        # Templates raise their own errors, and stumble over roles and content that they don't know.
        except (jinja2.TemplateError, TypeError, ValueError, AttributeError) as error:
            raise RowError(f"the chat template does not accept it: {error}") from None

    def skeleton(self, turns: Sequence[Turn], *, generation: bool) -> Skeleton:
        """Return the template's own text around contents of this shape.

        Raises:
            RowError: the template leaves a content out or repeats it.
        """
        key = (generation, tuple(turn.shape for turn in turns))
        if key not in self._skeletons:
            self._skeletons[key] = self._make_skeleton(turns, generation)
        return self._skeletons[key]

    def render_answers(self, turns: Sequence[Turn]) -> Rendered:
        """Render turns that end with the assistant's, and find what the assistant produces.

        An answer starts where the generation prompt ends (so that what the template writes in the
        assistant's name is learned too), and ends with the end-of-turn token that follows. If the
        template writes none after the last answer, the end-of-text token is appended.

        Raises:
            RowError: the template does not accept the turns, or changes their text.
        """
        text = self.render(turns, generation=False)
        contents = self._find_contents(text, turns)
        prompts = {
            index: self.render(turns[:index], generation=True)
            for index, turn in enumerate(turns)
            if turn.role == "assistant"
        }
        if contents is None:
            answers = [self._by_prefix(text, turns[: i + 1], p) for i, p in prompts.items()]
        else:
            answers = [self._by_content(text, contents[i], p) for i, p in prompts.items()]
            text = self._use_prompt(text, answers, contents[len(turns) - 1], prompts)
        start, end, ended = answers[-1]
        appended = not ended
        if appended:
            if self._end_of_text is None:
                raise RowError("neither the template nor the tokenizer has an end of turn")
            text = text[:end] + text[end:].rstrip() + self._end_of_text
            answers[-1] = _Answer(start, len(text), True)
        spans = tuple((answer.start, answer.end) for answer in answers)
        return Rendered(text, spans, prompts[len(turns) - 1], appended)

    def _by_content(self, text: str, content: _Content, prompt: str) -> _Answer:
        starts_so = text.startswith(prompt) and len(prompt) < content.end
        stop = self._specials.end_of_turn(content.following)
        start = len(prompt) if starts_so else content.start
        return _Answer(start, content.end + (stop or 0), stop is not None)

    def _by_prefix(self, text: str, turns: Sequence[Turn], prompt: str) -> _Answer:
        through = self.render(turns, generation=False)
        if not (text.startswith(through) and through.startswith(prompt)) or prompt == through:
            raise RowError("the chat template changes the text, so the answer can't be found in it")
        body = through[len(prompt) :]
        ending = self._specials.ending(body)
        stop = self._specials.end_of_turn(body[ending:])
        end = ending if stop is None else ending + stop
        return _Answer(len(prompt), len(prompt) + end, stop is not None)

    def _use_prompt(
        self, text: str, answers: list[_Answer], content: _Content, prompts: dict[int, str]
    ) -> str:
        """Let the last answer follow what generation starts from, where only white space differs.

        LLaVA-OneVision's template writes "assistant " and a line break before an answer, and a
        line break alone when it asks for one.
        """
        prompt, header = list(prompts.values())[-1], text[: content.start]
        same = "".join(header.split()) == "".join(prompt.split())
        shared = all(prompt.startswith(text[: answer.end]) for answer in answers[:-1])
        if text.startswith(prompt) or not same or not shared:
            return text
        note = "The chat template's own header of an answer differs from its generation prompt in "
        if not self.notes:
            self.notes.append(f"{note}white space; the generation prompt is used.")
        shift = len(prompt) - content.start
        last = answers[-1]
        answers[-1] = _Answer(last.start + shift, last.end + shift, last.ended)
        return prompt + text[content.start :]

    def _find_contents(self, text: str, turns: Sequence[Turn]) -> dict[int, _Content] | None:
        """Where each assistant turn's text is in `text`; None if the template rewrote something."""
        skeleton = self.skeleton(turns, generation=False)
        owners = [(i, p) for i, turn in enumerate(turns) for p in turn.pieces if p is not None]
        ordered = [owners[index] for index in skeleton.order]
        spans = _match(text, [piece for _, piece in ordered], skeleton.literals)
        if spans is None:
            return None
        contents: dict[int, _Content] = {}
        for (turn, _), (start, end), following in zip(
            ordered, spans, skeleton.literals[1:], strict=True
        ):
            start = contents[turn].start if turn in contents else start
            contents[turn] = _Content(start, end, following)
        return contents

    def _make_skeleton(self, turns: Sequence[Turn], generation: bool) -> Skeleton:
        marked, number = [], 0
        for turn in turns:
            pieces: list[str | None] = []
            for piece in turn.pieces:
                pieces.append(None if piece is None else f"\ue8e0{number}\ue8e1")
                number += piece is not None
            marked.append(Turn(turn.role, tuple(pieces)))
        parts = _MARK.split(self.render(marked, generation=generation))
        order = tuple(int(part) for part in parts[1::2])
        if sorted(order) != list(range(number)):
            raise RowError("the chat template leaves out or repeats a turn's text")
        return Skeleton(tuple(parts[0::2]), order)

    def _render(self, turns: Sequence[Turn], generation: bool, blocks: bool) -> str:
        messages = [_message(turn, blocks) for turn in turns]
        text = self._source.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=generation, **self._kwargs
        )
        assert isinstance(text, str)
        return text

    def _find_content_kind(self, prefer_blocks: bool) -> bool:
        """Whether the template takes content blocks; processors' do, tokenizers' take strings."""
        probe = [Turn("user", ("\ue8e00\ue8e1",)), Turn("assistant", ("\ue8e01\ue8e1",))]
        for blocks in (prefer_blocks, not prefer_blocks):
            try:
                text = self._render(probe, False, blocks)
            # A template that is given the other kind of content fails in its own way.
            except (jinja2.TemplateError, TypeError, ValueError, AttributeError):
                continue
            # Blocks that were printed as they are look like a dictionary.
            if _MARK.findall(text) == ["0", "1"] and "'type'" not in text:
                return blocks
        raise DataError(
            asked="conversations in the model's own format",
            found="a chat template that accepts neither text nor content blocks",
            do="check the model's chat template with a question and an answer",
        )


class _Content(NamedTuple):
    """A turn's text within the rendering, and the template's text up to the next content."""

    start: int
    end: int
    following: str


class _Answer(NamedTuple):
    """What the assistant produces, and whether that includes an end of turn."""

    start: int
    end: int
    ended: bool


def _message(turn: Turn, blocks: bool) -> dict[str, Any]:
    if not blocks:
        return {"role": turn.role, "content": "\n".join(p for p in turn.pieces if p is not None)}
    content = [{"type": "image"} if p is None else {"type": "text", "text": p} for p in turn.pieces]
    return {"role": turn.role, "content": content}


def _match(text: str, pieces: Sequence[str], literals: Sequence[str]) -> list[Span] | None:
    """Read `text` as literals around pieces, each as it is or stripped; None if that fails."""
    if not text.startswith(literals[0]):
        return None
    states: dict[int, tuple[Span, ...]] = {len(literals[0]): ()}
    for piece, literal in zip(pieces, literals[1:], strict=True):
        following: dict[int, tuple[Span, ...]] = {}
        variants = dict.fromkeys((piece, piece.strip(), piece.lstrip(), piece.rstrip()))
        for position, spans in states.items():
            for variant in variants:
                end = position + len(variant)
                if text.startswith(variant, position) and text.startswith(literal, end):
                    following.setdefault(end + len(literal), (*spans, (position, end)))
        states = following
    found = states.get(len(text))
    return None if found is None else list(found)
