"""The gallery: how answers to free prompts change, arm by arm and skill by skill.

Owns: which prompts are shown, their pictures in the study's folder, and the pages gallery.html and
gallery.md, which are made from the results alone.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from narrowtune.core.run_folder import write_text
from narrowtune.data.examples import Message
from narrowtune.data.images import open_image
from narrowtune.evaluate.tasks import question_of
from narrowtune.report.gallery import Picture, thumbnail
from narrowtune.report.render import render_html, render_markdown
from narrowtune.study.results import ChainKey, Shown, StageResult, by_chain

NUM_SHOWN = 12
"""Prompts in the gallery: the first of those that drift is measured on."""

PICTURES = "gallery"
"""Folder of their pictures."""


@dataclass(frozen=True)
class Row:
    """A chain's answers to one prompt: after each skill, None where its stage has none."""

    chain: ChainKey
    answers: tuple[str | None, ...]


@dataclass(frozen=True)
class Table:
    """The chains of one order.

    Attributes:
        order: its name.
        skills: in the order in which they are taught.
        rows: by arm, rate and seed.
    """

    order: str
    skills: tuple[str, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Entry:
    """One prompt.

    Attributes:
        prompt: its text.
        file: of its picture, below the study's folder.
        picture: a small copy for the page.
        base: the base's answer.
        tables: one per order.
    """

    prompt: str
    file: str | None
    picture: Picture | None
    base: str
    tables: tuple[Table, ...]


def keep_shown(prompts: Iterable[Sequence[Message]], folder: Path) -> list[tuple[str, str | None]]:
    """Return the text and the picture's file of the first prompts; write pictures not there yet.

    Args:
        prompts: of which the first `NUM_SHOWN` are shown.
        folder: of the study.
    """
    return [
        (question_of(messages), _keep_picture(messages, folder / PICTURES))
        for messages in list(prompts)[:NUM_SHOWN]
    ]


def write_gallery(results: Sequence[StageResult], folder: Path) -> list[Path]:
    """Write gallery.html and gallery.md, and return their paths; none without answers to show.

    Args:
        results: of the study.
        folder: of the study, with the pictures.
    """
    entries = make_gallery(results, folder)
    if not entries:
        return []
    pages = {
        folder / "gallery.html": render_html("answers.html.j2", {"entries": entries}),
        folder / "gallery.md": render_markdown("answers.md.j2", {"entries": entries}),
    }
    for path, text in pages.items():
        write_text(path, text)
    return list(pages)


def make_gallery(results: Sequence[StageResult], folder: Path) -> list[Entry]:
    """Return every prompt that was shown, in order, with all answers to it."""
    chains = by_chain(results)
    prompts: dict[tuple[str, str | None], Shown] = {}
    for result in results:
        for shown in result.shown or ():
            prompts.setdefault((shown.prompt, shown.picture), shown)
    return [
        Entry(
            prompt=shown.prompt,
            file=None if shown.picture is None else f"{PICTURES}/{shown.picture}",
            picture=None if shown.picture is None else thumbnail(folder / PICTURES, shown.picture),
            base=shown.base,
            tables=tuple(_tables(chains, key)),
        )
        for key, shown in prompts.items()
    ]


def _tables(
    chains: Mapping[ChainKey, list[StageResult]], prompt: tuple[str, str | None]
) -> Iterable[Table]:
    for order in dict.fromkeys(key.order for key in chains):
        own = {key: stages for key, stages in chains.items() if key.order == order}
        # The chain that has come furthest knows the most of the order's skills.
        skills = tuple(stage.skill for stage in max(own.values(), key=len))
        keys = sorted(own, key=lambda key: (key.arm, key.learning_rate, key.seed))
        rows = tuple(Row(key, _answers(own[key], prompt, len(skills))) for key in keys)
        yield Table(order, skills, rows)


def _answers(
    stages: Sequence[StageResult], prompt: tuple[str, str | None], count: int
) -> tuple[str | None, ...]:
    found: list[str | None] = [None] * count
    for stage in stages:
        for shown in stage.shown or ():
            if (shown.prompt, shown.picture) == prompt:
                found[stage.stage - 1] = shown.tuned
    return tuple(found)


def _keep_picture(messages: Sequence[Message], folder: Path) -> str | None:
    """Write the prompt's first picture under a name made of its content, and return that."""
    images = [image for message in messages for image in message.images]
    if not images:
        return None
    buffer = io.BytesIO()
    open_image(images[0]).save(buffer, "PNG")
    data = buffer.getvalue()
    path = folder / f"{hashlib.sha256(data).hexdigest()[:16]}.png"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        # Workers write the same pictures at once, and one that is cut short would stay.
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        part.write_bytes(data)
        part.replace(path)
    return path.name
