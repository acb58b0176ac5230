"""The anchor's and the drift probe's prompts: a file of the user's, or what ships with the package.

Owns: that shipped prompts are about pictures too where the model reads these, and that nothing that
is measured is among an anchor's.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import chain, islice
from pathlib import Path

from narrowtune.core.anchor_settings import AnchorSettings
from narrowtune.core.data_settings import DataSettings, PromptSettings
from narrowtune.core.errors import DataError
from narrowtune.core.results import DataSummary
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.collate import Encoded, check_pictures
from narrowtune.data.examples import Example, Message, RefusedRow, RowError
from narrowtune.data.splits import find_overlap
from narrowtune.engine.batches import spread
from narrowtune.pipeline.sources import Source

logger = logging.getLogger(__name__)

SHIPPED_TEXTS, SHIPPED_PICTURES = "general.jsonl", "pictures.jsonl"
SHIPPED_FREE, SHIPPED_FREE_PICTURES = "free.jsonl", "free_pictures.jsonl"

NUM_SHIPPED = 160
"""Prompts of an anchor without any of the user's. Few more hold no better (docs/anchor.md), and the
base's distributions along their answers are held in memory."""

ANCHOR_KEY, DRIFT_KEY = "anchor.prompts", "drift.prompts"
_FREE, _FREE_PICTURES = "free prompts", "free prompts with pictures"


@dataclass(frozen=True)
class AnchorPrompts:
    """What a run's anchor holds on to, or its drift probe asks.

    Attributes:
        messages: of every prompt.
        summaries: of the files, for the record.
        notes: for the record.
    """

    messages: list[tuple[Message, ...]]
    summaries: list[DataSummary]
    notes: list[str]


def shipped_prompts(name: str) -> Path:
    """Return the path of a prompt file that ships with the package."""
    return Path(str(resources.files("narrowtune.data") / "prompts" / name))


def anchor_files(settings: AnchorSettings, *, pictures: bool) -> list[DataSettings]:
    """Return where an anchor's prompts are, texts first.

    Args:
        settings: of the anchor.
        pictures: whether the model reads pictures, so that shipped prompts have some.
    """
    return _files(settings, ANCHOR_KEY, (SHIPPED_TEXTS, SHIPPED_PICTURES), pictures)


def free_files(settings: PromptSettings, key: str, *, pictures: bool) -> list[DataSettings]:
    """Return where the drift probe's free prompts are, texts first.

    Args:
        settings: of the probe.
        key: what records call them.
        pictures: as for `anchor_files`.
    """
    return _files(settings, key, (SHIPPED_FREE, SHIPPED_FREE_PICTURES), pictures)


def _files(
    settings: PromptSettings, key: str, shipped: tuple[str, str], pictures: bool
) -> list[DataSettings]:
    texts, pictured = map(shipped_prompts, shipped)
    files = [settings.rows(texts, key)]
    if settings.prompts is None and pictures:
        files.append(DataSettings(path=str(pictured), name=f"{key} (pictures)"))
    return files


def _read(
    files: Sequence[DataSettings],
    key: str,
    encoder: ChatEncoder,
    refused: list[RefusedRow],
    beside: Iterable[Encoded],
) -> tuple[list[Source], list[str]]:
    """Read prompt files; shipped pictures that this run can't use are left out with a note."""
    sources = [Source(file, refused, key=key, prompts_only=True) for file in files]
    notes = []
    if len(sources) > 1 and (why := unusable_pictures(sources[1].examples, encoder, beside)):
        notes.append(f"Prompts about pictures that ship ({key}) were left out: {why}.")
        del sources[1]
    return sources, notes


def unusable_pictures(
    prompts: Iterable[Example], encoder: ChatEncoder, beside: Iterable[Encoded]
) -> str | None:
    """Say why prompts about pictures can't be used, if they can't be.

    They may be longer than `max_length`; and some image processors leave every picture its size, so
    that only pictures of one size go together. The user's are what matters.
    """
    try:
        # One at a time: some processors make tens of megabytes of a picture.
        encoded = (encoder.encode_prompt(prompt.prompt) for prompt in prompts)
        pictured = (row for row in beside if row.picture_digest)
        check_pictures(chain(islice(pictured, 1), encoded))
    except RowError as error:
        return error.reason
    except DataError as error:
        return error.found
    return None


def free_sources(
    settings: PromptSettings,
    encoder: ChatEncoder,
    refused: list[RefusedRow],
    key: str,
    beside: Iterable[Encoded] = (),
) -> tuple[dict[str, Source], list[str]]:
    """Read the drift probe's free prompts, by what reports call them; and notes for the record.

    Args:
        settings: of the probe.
        encoder: the chat template.
        refused: gets the rows that can't be used.
        key: the setting that names the file, for errors.
        beside: prompts that free ones may meet in a batch.

    Raises:
        DataError: the file can't be read.
    """
    files = free_files(settings, key, pictures=encoder.reads_pictures)
    sources, notes = _read(files, key, encoder, refused, beside)
    named = dict(zip((_FREE, _FREE_PICTURES), sources, strict=False))
    # Galleries show the first: those with pictures, where there are any.
    return {name: named[name] for name in reversed(named)}, notes


def read_free_prompts(
    settings: PromptSettings, encoder: ChatEncoder, max_prompts: int, key: str
) -> list[tuple[str, tuple[Message, ...]]]:
    """Return (source, prompt) pairs: the first of a user's file, or as many of each shipped one.

    Args:
        settings: of the probe.
        encoder: the chat template.
        max_prompts: how many are wanted; what one file has too few of, the other gives.
        key: the setting that names the file, for errors.

    Raises:
        DataError: the file can't be read, or one of these prompts can't be used.
    """
    sources, notes = free_sources(settings, encoder, [], key)
    for note in notes:
        logger.warning(note)
    shares = equal_shares(max_prompts, [len(source.examples) for source in sources.values()])
    return [
        (name, prompt)
        for (name, source), share in zip(sources.items(), shares, strict=True)
        for prompt in source.encode_prompts(source.examples[:share], encoder)
    ]


def read_anchor_prompts(
    settings: AnchorSettings,
    encoder: ChatEncoder,
    refused: list[RefusedRow],
    measured: Sequence[Example],
    beside: Iterable[Encoded] = (),
) -> AnchorPrompts:
    """Read an anchor's prompts and leave out those that are measured.

    Of a user's file the first `max_prompts` are taken. Of those that ship as many are texts as are
    about pictures: texts spread evenly over their file, and the first pictures, whose forms come in
    turn.

    Args:
        settings: of the anchor.
        encoder: the chat template.
        refused: gets the rows that can't be used.
        measured: what scores and losses are measured on.
        beside: rows that prompts about pictures may meet in a batch.

    Raises:
        DataError: a prompt can't be used, or none is left.
    """
    files = anchor_files(settings, pictures=encoder.reads_pictures)
    sources, notes = _read(files, ANCHOR_KEY, encoder, refused, beside)
    same = [{item.left for item in find_overlap(s.examples, measured)} for s in sources]
    allowed = [
        [example for example in source.examples if example.id not in left_out]
        for source, left_out in zip(sources, same, strict=True)
    ]
    num_same = sum(map(len, same))
    if not any(allowed):
        raise DataError(
            asked=f"an anchor on the prompts of {files[0].path}",
            found=f"{num_same} prompts, all of which are measured: kept, tested or validated on",
            do="give anchor.prompts a file of others",
        )
    if num_same:
        notes.append(
            f"{num_same} anchor prompts are measured (kept, tested or validated on) "
            "and were left out."
        )
    if settings.prompts is None:
        texts, *pictured = allowed
        wanted = settings.max_prompts or NUM_SHIPPED
        share, *rest = equal_shares(wanted, [len(left) for left in allowed])
        taken = [[texts[place] for place in spread(len(texts), share)]]
        taken += [left[:number] for left, number in zip(pictured, rest, strict=True)]
    else:
        taken = [left[: settings.max_prompts] for left in allowed]
    found = AnchorPrompts([], [], notes)
    for source, examples in zip(sources, taken, strict=True):
        found.messages.extend(source.encode_prompts(examples, encoder))
        found.summaries.append(source.summary("anchor", len(examples)))
    return found


def equal_shares(total: int, sizes: Sequence[int]) -> list[int]:
    """Share `total` out evenly; what one of `sizes` can't take goes to the others."""
    shares = [0] * len(sizes)
    while total > 0 and (unfilled := [i for i, size in enumerate(sizes) if shares[i] < size]):
        for index in unfilled[:total]:
            shares[index] += 1
        total -= len(unfilled)
    return shares
