"""General questions about a skill's own pictures, for an anchor and for the drift probe.

A skill takes over whatever looks like its pictures: after a course in clocks a gauge is answered
with a time. Asked about a clock's picture what is no question of the skill's, and held to what the
base says there, a model learns that the question decides and not the picture; and what it says
there shows, without labels, whether it has.

Owns: which picture is asked which question.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

from narrowtune.core.errors import DataError
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.examples import Example, Image, Message, RowError, normalised
from narrowtune.data.spilled import pick
from narrowtune.data.splits import draw_key, find_overlap
from narrowtune.pipeline.prompts import AnchorPrompts

_MOST_UNUSABLE = 10
"""Pairs that can't be encoded, for each question that is wanted, after which no more are tried."""


def ask_of_skill_pictures(
    prompts: Sequence[tuple[Message, ...]],
    skill: Sequence[Example],
    number: int,
    encoder: ChatEncoder,
    *,
    asked: Iterable[Example],
    measured: Sequence[Example],
    seed: int,
) -> AnchorPrompts:
    """Return questions of general prompts, each about a picture that a skill is taught with.

    Args:
        prompts: of the anchor. Those that show one picture give their question, as often as they
            ask it.
        skill: rows that it is taught with. Those that show one picture give it, drawn by `seed`.
        number: of questions; a picture is asked another one only when all have one, and there may
            be no more than pictures times questions.
        encoder: the chat template.
        asked: rows of the skill, tested ones too, whose questions are none of these.
        measured: what scores are measured on: none of its pictures is taken.
        seed: of the draw.

    Raises:
        DataError: no row of the skill, or no prompt, shows one picture, or none can be used.
    """
    wanted = f"anchor.skill_pictures: {number}, questions about the skill's own pictures"
    pictures, questions = _pictures(skill, seed), _questions(prompts, asked, seed)
    if not pictures:
        raise DataError(
            asked=wanted,
            found="no row that the skill is taught with shows one picture",
            do="leave it out",
        )
    if not questions:
        raise DataError(
            asked=wanted,
            found=f"no prompt among the anchor's {len(prompts)} that shows one picture and asks "
            "something else than the skill",
            do="give anchor.prompts questions about pictures, or leave it out",
        )
    # In the order of the rows: those beside memory are slow to be asked for in another.
    places = sorted(pictures)
    same = {overlap.left for overlap in find_overlap(pick(skill, places), measured)}
    rows = zip(places, pick(skill, places), strict=True)
    left_out = {place for place, row in rows if row.id in same} if same else set[int]()
    free = [place for place in pictures if place not in left_out]
    found = AnchorPrompts([], [], [])
    unusable = 0
    for prompt in _pairs(skill, free, questions):
        if _is_usable(prompt, encoder):
            found.messages.append(prompt)
        else:
            unusable += 1
        if len(found.messages) == number or unusable > _MOST_UNUSABLE * number:
            break
    if not found.messages:
        raise DataError(
            asked=wanted,
            found=f"{len(pictures)} pictures, {len(same)} of them measured, and {unusable} pairs "
            "with a question that can't be encoded",
            do="raise max_length, or leave it out",
        )
    found.notes.append(
        f"The anchor asks {len(found.messages)} of its questions about the skill's own pictures, "
        f"where {number} were wanted; {len(same)} pictures are measured and were left out, and "
        f"{unusable} pairs can't be encoded (max_length)."
    )
    return found


def probes_of_skill_pictures(
    prompts: Sequence[tuple[Message, ...]],
    skill: Sequence[Example],
    number: int,
    encoder: ChatEncoder,
    *,
    asked: Iterable[Example],
    seed: int,
) -> AnchorPrompts:
    """Return up to so many such questions; none where no row or no prompt shows one picture.

    Args:
        prompts, encoder, asked, seed: as for `ask_of_skill_pictures`.
        skill: rows of the skill.
        number: of questions.
    """
    found = AnchorPrompts([], [], [])
    pictures = _pictures(skill, seed)
    if not pictures:
        return found
    tried = list(islice(_pairs(skill, pictures, _questions(prompts, asked, seed)), number))
    found.messages.extend(prompt for prompt in tried if _is_usable(prompt, encoder))
    if unusable := len(tried) - len(found.messages):
        found.notes.append(
            f"{unusable} of {len(tried)} questions about the skill's pictures, on which drift is "
            "measured, can't be encoded (max_length) and were left out."
        )
    return found


def shows_pictures(rows: Iterable[Example]) -> bool:
    """Whether one of the rows of a skill shows one picture."""
    return any(len(row.images) == 1 for row in rows)


def _is_usable(prompt: tuple[Message, ...], encoder: ChatEncoder) -> bool:
    try:
        encoder.encode_prompt(prompt)
    except RowError:
        return False
    return True


def _pictures(skill: Iterable[Example], seed: int) -> list[int]:
    """Return the place of a row of each picture, in an order drawn by the seed.

    Rows are beside memory, and may have their pictures in them: none is held.
    """
    first: dict[str, int] = {}
    for place, row in enumerate(skill):
        if len(row.images) == 1:
            first.setdefault(row.image_hashes[0], place)
    return [first[name] for name in sorted(first, key=lambda name: draw_key(seed, name))]


def _questions(
    prompts: Sequence[tuple[Message, ...]], asked: Iterable[Example], seed: int
) -> list[tuple[Message, ...]]:
    """Return the prompts that ask something new of one picture, in an order drawn by the seed."""
    known = {normalised(row.prompt) for row in asked}
    # A question that is asked of many pictures is drawn as often: forms keep their shares.
    drawn: dict[str, tuple[Message, ...]] = {}
    times: Counter[str] = Counter()
    for prompt in prompts:
        text = normalised(prompt)
        if text not in known and sum(len(message.images) for message in prompt) == 1:
            drawn[draw_key(seed, f"{times[text]} {text}")] = prompt
            times[text] += 1
    return [drawn[key] for key in sorted(drawn)]


def _pairs(
    skill: Sequence[Example], places: Sequence[int], questions: Sequence[tuple[Message, ...]]
) -> Iterator[tuple[Message, ...]]:
    """Yield every picture once with a question, then all once more with others, and so on."""
    asked = set()
    for turn in range(len(questions)):
        for number, place in enumerate(places):
            question = questions[(number + turn) % len(questions)]
            pair = place, normalised(question)
            if pair not in asked:
                asked.add(pair)
                picture = skill[place].images[0]
                yield tuple(_showing(message, picture) for message in question)


def _showing(message: Message, picture: Image) -> Message:
    """Return a message with another picture, where it has one."""
    content = tuple(picture if isinstance(part, Image) else part for part in message.content)
    return replace(message, content=content)
