"""The gallery: items whose answer changed, in a fair choice, with small pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Literal

from narrowtune.core.config import SkillSettings, load_config
from narrowtune.core.results import ItemResult
from narrowtune.data.examples import Image, RowError
from narrowtune.data.images import open_image
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
"""Longest side of a picture in the page, pixels."""


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
            Picture(None, f"no folder is known for picture {name!r}")
            if root is None
            else thumbnail(root, name)
        )
    return Entry(entry.task, entry.kind, entry.before, entry.after, known[key])


def thumbnail(root: Path, name: str) -> Picture:
    """A small copy of the picture `name` under `root`, or the reason why there is none."""
    try:
        small = open_image(Image(path=Path(name)), root)
    except RowError as error:
        return Picture(None, error.reason)
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=72)
    text = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Picture(f"data:image/jpeg;base64,{text}", "")


def picture_roots(resolved: Path) -> dict[str, Path]:
    """By task, the folder of its pictures as the run's resolved.yaml has it; none without one."""
    if not resolved.exists():
        return {}
    config = load_config(resolved)
    roots = {}
    for settings in (config.skill, *config.keep):
        own = settings.path
        if isinstance(settings, SkillSettings) and settings.test_path is not None:
            own = settings.test_path
        folder = Path(own) if Path(own).is_dir() else Path(own).parent
        roots[settings.label] = folder if settings.image_root is None else Path(settings.image_root)
    return roots
