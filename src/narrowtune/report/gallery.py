"""The gallery: items whose answer changed, in a fair choice, with small pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Literal

from PIL import Image, UnidentifiedImageError

from narrowtune.core.results import ItemResult
from narrowtune.report.folder import Pair

Kind = Literal["worse", "better", "same"]

KINDS: dict[Kind, str] = {
    "worse": "got worse",
    "better": "got better",
    "same": "changed, same score",
}
LIMIT = 300
"""Items shown in the page. All changed items are in report.json."""

THUMBNAIL = 220
MAX_PIXELS = 40_000_000
"""A picture with more pixels is not decoded."""


@dataclass(frozen=True)
class Picture:
    """A thumbnail as a data URI, or the reason why there is none."""

    uri: str | None
    problem: str


@dataclass(frozen=True)
class Entry:
    """One changed item."""

    task: str
    kind: Kind
    before: ItemResult
    after: ItemResult
    picture: Picture | None


@dataclass(frozen=True)
class Gallery:
    """Changed items: those shown, and how many there are by kind and task.

    Attributes:
        shown: at most `LIMIT`, worse first, then by task and item.
        changed: every changed item, in the same order, without pictures.
    """

    shown: list[Entry]
    changed: list[Entry]
    num_items: int

    @property
    def counts(self) -> dict[Kind, int]:
        """How many changed items of each kind there are."""
        return {kind: sum(entry.kind == kind for entry in self.changed) for kind in KINDS}

    @property
    def tasks(self) -> list[str]:
        """Tasks with a changed item."""
        return list(dict.fromkeys(entry.task for entry in self.changed))


def kind_of(before: ItemResult, after: ItemResult) -> Kind:
    """How the strict score of one item moved."""
    if after.strict < before.strict:
        return "worse"
    return "better" if after.strict > before.strict else "same"


def build_gallery(
    pairs: Sequence[Pair], roots: Mapping[str, Path] | None = None, limit: int = LIMIT
) -> Gallery:
    """Collect the items whose answer or score changed.

    Args:
        pairs: all items, before and after.
        roots: by task, the folder that its items' picture paths lie under.
        limit: how many to show; drawn in turn from every task and kind, so that one large task
            does not crowd out the others.
    """
    changed = [
        Entry(pair.task, kind_of(pair.before, pair.after), pair.before, pair.after, None)
        for pair in pairs
        if pair.before.answer != pair.after.answer or pair.before.strict != pair.after.strict
    ]
    order = {kind: place for place, kind in enumerate(KINDS)}
    changed.sort(key=lambda entry: order[entry.kind])  # stable: tasks and items keep their order
    chosen = {id(entry) for entry in _in_turn(changed)[:limit]}
    pictures: dict[tuple[str, str], Picture] = {}
    shown = [
        _with_picture(entry, roots or {}, pictures) for entry in changed if id(entry) in chosen
    ]
    return Gallery(shown, changed, len(pairs))


def _in_turn(entries: Sequence[Entry]) -> list[Entry]:
    piles: dict[tuple[str, Kind], list[Entry]] = {}
    for entry in entries:
        piles.setdefault((entry.task, entry.kind), []).append(entry)
    rounds = zip_longest(*piles.values())
    return [entry for turn in rounds for entry in turn if entry is not None]


def _with_picture(
    entry: Entry, roots: Mapping[str, Path], known: dict[tuple[str, str], Picture]
) -> Entry:
    name = entry.before.image
    if name is None:
        return entry
    key = (entry.task, name)
    if key not in known:
        root = roots.get(entry.task)
        known[key] = (
            Picture(None, "no picture folder is known") if root is None else thumbnail(root, name)
        )
    return Entry(entry.task, entry.kind, entry.before, entry.after, known[key])


def thumbnail(root: Path, name: str) -> Picture:
    """A small copy of the picture `name` under `root`; a picture outside of it is not opened."""
    file = (root / name).resolve()
    if not file.is_relative_to(root.resolve()):
        return Picture(None, "the picture lies outside the data's folder")
    if not file.is_file():
        return Picture(None, "the picture is no longer there")
    try:
        with Image.open(file) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                return Picture(None, f"more than {MAX_PIXELS:,} pixels")
            # Lets JPEG decode at a fraction of its size.
            picture.draft("RGB", (2 * THUMBNAIL, 2 * THUMBNAIL))
            small = picture.convert("RGB")
            small.thumbnail((THUMBNAIL, THUMBNAIL))
    except (OSError, UnidentifiedImageError, ValueError, Image.DecompressionBombError):
        return Picture(None, "the picture can't be read")
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=72)
    text = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Picture(f"data:image/jpeg;base64,{text}", "")
