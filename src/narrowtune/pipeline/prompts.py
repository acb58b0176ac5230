"""The anchor's and the drift probe's prompts: a file of the user's, or what ships with the package.

Owns: that shipped prompts are about pictures too where the model reads these, and that nothing that
is measured is among an anchor's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from narrowtune.core.config import AnchorSettings
from narrowtune.core.data_settings import DataSettings, PromptSettings
from narrowtune.core.errors import DataError
from narrowtune.core.results import DataSummary
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.collate import Encoded, check_pictures
from narrowtune.data.examples import Example, Message, RefusedRow
from narrowtune.data.splits import find_overlap
from narrowtune.pipeline.sources import Source

SHIPPED_TEXTS, SHIPPED_PICTURES = "general.jsonl", "pictures.jsonl"
SHIPPED_FREE, SHIPPED_FREE_PICTURES = "free.jsonl", "free_pictures.jsonl"

NUM_SHIPPED = 160
"""Prompts of an anchor without any of the user's. Few more hold no better (docs/anchor.md), and the
base's distributions along their answers are held in memory."""

ANCHOR_KEY, DRIFT_KEY = "anchor.prompts", "drift.prompts"
_FREE, _FREE_PICTURES = "free prompts", "free prompts with pictures"


@dataclass(frozen=True)
class AnchorPrompts:
    """What a run's anchor holds on to.

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
    """Return where an anchor's prompts are.

    Args:
        settings: of the anchor.
        pictures: whether the model reads pictures, so that shipped prompts have some.
    """
    return _files(settings, ANCHOR_KEY, (SHIPPED_TEXTS, SHIPPED_PICTURES), pictures)


def free_files(settings: PromptSettings, key: str, *, pictures: bool) -> list[DataSettings]:
    """Return where the drift probe's free prompts are; arguments as for `anchor_files`.

    Args:
        settings: of the probe.
        key: what records call them.
        pictures: whether the model reads pictures.
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


def free_sources(
    settings: PromptSettings, encoder: ChatEncoder, refused: list[RefusedRow], key: str
) -> dict[str, Source]:
    """Read the drift probe's free prompts, by what reports call them.

    Args:
        settings: of the probe.
        encoder: the chat template.
        refused: gets the rows that can't be used.
        key: the setting that names the file, for errors.

    Raises:
        DataError: the file can't be read.
    """
    files = free_files(settings, key, pictures=encoder.reads_pictures)
    named = dict(zip((_FREE, _FREE_PICTURES), files, strict=False))
    # Galleries show the first: those with pictures, where there are any.
    return {
        name: Source(named[name], refused, key=key, prompts_only=True) for name in reversed(named)
    }


def read_free_prompts(
    settings: PromptSettings, encoder: ChatEncoder, max_prompts: int, key: str
) -> list[tuple[str, tuple[Message, ...]]]:
    """Return (source, prompt) pairs: the first of a user's file, or as many of each shipped one.

    Args:
        settings: of the probe.
        encoder: the chat template.
        max_prompts: how many are wanted.
        key: the setting that names the file, for errors.

    Raises:
        DataError: the file can't be read, or one of these prompts can't be used.
    """
    sources = free_sources(settings, encoder, [], key)
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
    beside: Sequence[Encoded] = (),
) -> AnchorPrompts:
    """Read an anchor's prompts and leave out those that are measured.

    Of a user's file the first `max_prompts` are taken. Of those that ship as many are texts as are
    about pictures, spread evenly over their files.

    Args:
        settings: of the anchor.
        encoder: the chat template.
        refused: gets the rows that can't be used.
        measured: what a loss is measured on.
        beside: rows that prompts about pictures may meet in a batch.

    Raises:
        DataError: a prompt can't be used, or none is left.
    """
    files = anchor_files(settings, pictures=encoder.reads_pictures)
    sources = [Source(file, refused, key=ANCHOR_KEY, prompts_only=True) for file in files]
    notes: list[str] = []
    allowed: list[list[Example]] = []
    num_same = 0
    for source in sources:
        left, same = _unmeasured(source.settings.path, source.examples, measured)
        allowed.append(left)
        num_same += same
    if num_same:
        notes.append(f"{num_same} anchor prompts stand in a keep set and were left out.")
    if len(sources) > 1 and (why := _cannot_join(allowed[1], encoder, beside)):
        notes.append(f"The anchor's prompts about pictures were left out: {why}.")
        del sources[1], allowed[1]
    if settings.prompts is None:
        wanted = min(settings.max_prompts or NUM_SHIPPED, NUM_SHIPPED)
        shares = equal_shares(wanted, [len(left) for left in allowed])
        taken = [_spread(left, share) for left, share in zip(allowed, shares, strict=True)]
    else:
        taken = [left[: settings.max_prompts] for left in allowed]
    found = AnchorPrompts([], [], notes)
    for source, examples in zip(sources, taken, strict=True):
        found.messages.extend(source.encode_prompts(examples, encoder))
        found.summaries.append(source.summary("anchor", len(examples)))
    return found


def _unmeasured(
    path: str, prompts: Sequence[Example], measured: Sequence[Example]
) -> tuple[list[Example], int]:
    """Return prompts without those that are measured, and how many those are."""
    same = {item.left for item in find_overlap(prompts, measured)}
    allowed = [example for example in prompts if example.id not in same]
    if not allowed:
        raise DataError(
            asked=f"an anchor on the prompts of {path}",
            found=f"{len(same)} prompts, all of which stand in a keep set",
            do="give anchor.prompts a file of others",
        )
    return allowed, len(same)


def _cannot_join(
    prompts: Sequence[Example], encoder: ChatEncoder, beside: Sequence[Encoded]
) -> str | None:
    """Say why shipped pictures can't be in one batch with a run's own, if they can't be.

    Some image processors leave every picture its size, and then only pictures of one size go
    together; the user's are what matters.
    """
    pictured = next((row for row in beside if row.picture_digest), None)
    if pictured is None:
        return None
    try:
        check_pictures([pictured, encoder.encode_prompt(prompts[0].messages)])
    except DataError as error:
        return error.found
    return None


def _spread(examples: Sequence[Example], number: int) -> list[Example]:
    """Return `number` of the examples, evenly over all, so that every form is among them."""
    return [examples[place * len(examples) // number] for place in range(number)]


def equal_shares(total: int, sizes: Sequence[int]) -> list[int]:
    """Share `total` out evenly; what one of `sizes` can't take goes to the others."""
    shares = [0] * len(sizes)
    while total > 0 and (unfilled := [i for i, size in enumerate(sizes) if shares[i] < size]):
        for index in unfilled[:total]:
            shares[index] += 1
        total -= len(unfilled)
    return shares
