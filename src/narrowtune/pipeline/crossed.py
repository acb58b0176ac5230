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
from narrowtune.data.splits import draw_key, find_overlap
from narrowtune.pipeline.prompts import AnchorPrompts


def ask_of_skill_pictures(
    prompts: Sequence[tuple[Message, ...]],
    skill: Iterable[Example],
    number: int,
    encoder: ChatEncoder,
    *,
    measured: Sequence[Example],
    seed: int,
) -> AnchorPrompts:
    """Return questions of general prompts, each about a picture that a skill is taught with.

    Args:
        prompts: of the anchor. Those that show one picture give their question, unless the skill
            asks the same.
        skill: rows that it is taught with. Those that show one picture give it, drawn by `seed`.
        number: of questions; a picture is asked another one only when all have one, and there may
            be no more than pictures times questions.
        encoder: the chat template.
        measured: what scores are measured on: none of its pictures is taken.
        seed: of the draw.

    Raises:
        DataError: no row of the skill, or no prompt, shows one picture, or none can be used.
    """
    pictures, questions = _pictures_and_questions(prompts, skill, seed)
    asked = f"anchor.skill_pictures: {number}, questions about the skill's own pictures"
    if not pictures:
        raise DataError(
            asked=asked,
            found="no row that the skill is taught with shows one picture",
            do="leave it out",
        )
    if not questions:
        raise DataError(
            asked=asked,
            found=f"no prompt among the anchor's {len(prompts)} that shows one picture and asks "
            "something else than the skill",
            do="give anchor.prompts questions about pictures, or leave it out",
        )
    measured_pictures = {item.left for item in find_overlap(pictures, measured)}
    free = [each for each in pictures if each.id not in measured_pictures]
    found = AnchorPrompts([], [], [])
    unusable = 0
    for prompt in _pairs(free, questions):
        if not _is_usable(prompt, encoder):
            unusable += 1
            continue
        found.messages.append(prompt)
        if len(found.messages) == number:
            break
    if not found.messages:
        raise DataError(
            asked=asked,
            found=f"{len(pictures)} pictures, {len(measured_pictures)} of them measured, and "
            f"{unusable} pairs with a question that can't be encoded",
            do="raise max_length, or leave it out",
        )
    found.notes.append(
        f"The anchor asks {len(found.messages)} of its questions about the skill's own pictures, "
        f"where {number} were wanted; {len(measured_pictures)} pictures are measured and were left "
        f"out, and {unusable} pairs can't be encoded (max_length)."
    )
    return found


def probes_of_skill_pictures(
    prompts: Sequence[tuple[Message, ...]],
    skill: Iterable[Example],
    number: int,
    encoder: ChatEncoder,
    *,
    seed: int,
) -> list[tuple[Message, ...]]:
    """Return up to so many such questions; none where no row or no prompt shows one picture.

    Args:
        prompts, encoder, seed: as for `ask_of_skill_pictures`.
        skill: rows of the skill.
        number: of questions.
    """
    pairs = _pairs(*_pictures_and_questions(prompts, skill, seed))
    return [prompt for prompt in islice(pairs, number) if _is_usable(prompt, encoder)]


def _is_usable(prompt: tuple[Message, ...], encoder: ChatEncoder) -> bool:
    try:
        encoder.encode_prompt(prompt)
    except RowError:
        return False
    return True


def _pictures_and_questions(
    prompts: Sequence[tuple[Message, ...]], skill: Iterable[Example], seed: int
) -> tuple[list[Example], list[tuple[Message, ...]]]:
    """Return a row of each picture, and prompts that the skill does not ask, in drawn orders."""
    first: dict[str, Example] = {}
    taught = set()
    for row in skill:
        taught.add(normalised(row.prompt))
        if len(row.images) == 1:
            first.setdefault(row.image_hashes[0], row)
    pictures = [first[name] for name in sorted(first, key=lambda name: draw_key(seed, name))]
    # A question that is asked of many pictures is drawn as often: forms keep their shares.
    drawn: dict[str, tuple[Message, ...]] = {}
    times: Counter[str] = Counter()
    for prompt in prompts:
        text = normalised(prompt)
        if text not in taught and _shows_one(prompt):
            drawn[draw_key(seed, f"{times[text]} {text}")] = prompt
            times[text] += 1
    return pictures, [drawn[key] for key in sorted(drawn)]


def _pairs(
    pictures: Sequence[Example], questions: Sequence[tuple[Message, ...]]
) -> Iterator[tuple[Message, ...]]:
    """Yield every picture once with a question, then all once more with others, and so on."""
    asked = set()
    for turn in range(len(questions)):
        for place, row in enumerate(pictures):
            question = questions[(place + turn) % len(questions)]
            pair = row.image_hashes, normalised(question)
            if pair in asked:
                continue
            asked.add(pair)
            yield tuple(_showing(message, row.images[0]) for message in question)


def _shows_one(prompt: Sequence[Message]) -> bool:
    return sum(len(message.images) for message in prompt) == 1


def _showing(message: Message, picture: Image) -> Message:
    """Return a message with another picture, where it has one."""
    content = tuple(picture if isinstance(part, Image) else part for part in message.content)
    return replace(message, content=content)
