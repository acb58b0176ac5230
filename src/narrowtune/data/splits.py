"""Which row goes where: seeded splits, overlap between sets, general rows mixed in.

Owns: the rule that rows sharing a group, a prompt or a picture stay together. Splits depend on the
seed and the rows' content, never on their order; draws of a number of rows on the seed and their
ids, which without a column of that name are the file's name and the row's number.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

from narrowtune.core.errors import DataError, UsageError
from narrowtune.data.examples import Example
from narrowtune.data.spilled import pick


@dataclass(frozen=True)
class Overlap:
    """The ids of two rows that hold the same `what`: "prompt" or "picture"."""

    left: str
    right: str
    what: str

    def __str__(self) -> str:
        """Name both rows."""
        return f"{self.left} and {self.right} (same {self.what})"


def draw_key(seed: int, name: str) -> str:
    """Return a sort key that shuffles names by `seed`, whatever order they come in."""
    return hashlib.sha256(f"{seed}\0{name}".encode("utf-8", "surrogatepass")).hexdigest()


def split_examples(
    examples: Sequence[Example], validation: float, test: float, seed: int
) -> dict[str, Sequence[Example]]:
    """Split rows into `train`, `validation` and `test`, each in the order given.

    Rows that share a group, a prompt's text (with its pictures) or a picture are never separated,
    so sizes are as close to the shares as that allows.

    Args:
        examples: rows.
        validation: share, 0 to 1.
        test: share, 0 to 1.
        seed: of the draw. The same rows in another order are split the same way.

    Raises:
        UsageError: the shares are negative or leave nothing to train on.
        DataError: a split with a share above 0, or train, would be empty.
    """
    if validation < 0 or test < 0 or validation + test >= 1:
        raise UsageError(
            asked=f"validation {validation} and test {test} as shares of the rows",
            found="shares that are negative or leave nothing to train on",
            do="choose shares from 0 that add up to less than 1",
        )
    targets = {
        name: max(1, round(share * len(examples))) if share else 0
        for name, share in (("test", test), ("validation", validation))
    }
    clusters = _clusters(examples)
    chosen: dict[int, str] = {}
    filled = dict.fromkeys(targets, 0)
    for key in sorted(clusters, key=lambda name: draw_key(seed, name)):
        members = clusters[key]
        split = "train"
        for name, target in targets.items():
            before = abs(target - filled[name])
            # Take a cluster only where that brings the split nearer to its share.
            if filled[name] < target and abs(filled[name] + len(members) - target) < before:
                split = name
                filled[name] += len(members)
                break
        chosen.update(dict.fromkeys(members, split))
    numbers: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for index in range(len(examples)):
        numbers[chosen[index]].append(index)
    empty = [name for name, rows in numbers.items() if not rows and targets.get(name, 1)]
    if empty:
        found = do = ""
        if _ask_the_same_in_other_frames(examples):
            found = "; and system turns by which rows that ask the same are not told apart"
            do = (
                "; where a system turn holds what a row is about, such as a document, write that "
                "into the question"
            )
        raise DataError(
            asked=f"{len(examples)} rows split with validation {validation} and test {test}",
            found=f"{len(clusters)} groups of rows that belong together (the same prompt, its "
            "pictures counted in, or a picture or a group in common), none left for "
            + " and ".join(empty)
            + found,
            do=f"give more rows (or finer groups), or change the shares{do}",
        )
    return {name: pick(examples, rows) for name, rows in numbers.items()}


def _ask_the_same_in_other_frames(examples: Iterable[Example]) -> bool:
    """Whether rows ask the same, each with a system turn of its own that does not count."""
    systems: dict[str, str] = {}
    return any(
        systems.setdefault(example.asked_hash, example.system_hash) != example.system_hash
        for example in examples
        if example.system_hash and not example.is_told_by_system
    )


def _keys(example: Example) -> list[str]:
    keys = [f"text:{example.text_hash}", *(f"image:{name}" for name in example.image_hashes)]
    return keys if example.group is None else [*keys, f"group:{example.group}"]


def _clusters(examples: Sequence[Example]) -> dict[str, list[int]]:
    """Indices of rows that must stay together, by a name that depends on their content alone."""
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while parent.setdefault(key, key) != key:
            parent[key] = key = parent[parent[key]]
        return key

    keys = [_keys(example) for example in examples]
    for row in keys:
        for key in row[1:]:
            left, right = sorted((root(row[0]), root(key)))
            parent[right] = left
    clusters: dict[str, list[int]] = {}
    for index, row in enumerate(keys):
        clusters.setdefault(root(row[0]), []).append(index)
    return clusters


def find_overlap(left: Iterable[Example], right: Iterable[Example]) -> list[Overlap]:
    """Return pairs with the same normalised prompt or the same picture, one per row of `left`.

    For rows with pictures the prompt counts together with its pictures: one question about two
    pictures is no overlap, two questions about one picture are. Of system turns see `Prompts`.
    """
    return find_overlaps(left, {"": right})[""]


def find_overlaps(
    left: Iterable[Example], others: Mapping[str, Iterable[Example]]
) -> dict[str, list[Overlap]]:
    """Return the overlap with each of several sets, as `find_overlap`; `left` is read once."""
    indices = {name: _Index(right) for name, right in others.items()}
    found: dict[str, list[Overlap]] = {name: [] for name in others}
    for example in left:
        for name, index in indices.items():
            overlap = index.find(example)
            if overlap is not None:
                found[name].append(overlap)
    return found


class Prompts:
    """The prompts of some rows, to find those of others among them.

    Two rows ask the same with whatever system turns; but where these tell one of them apart
    (`Example.is_told_by_system`), with the same one, or where the other has none.
    """

    def __init__(self, examples: Iterable[Example] = ()) -> None:
        # Ids of the first row each; most rows have no system turn, and stand in the first alone.
        self._bare: dict[str, str] = {}
        self._framed: dict[str, str] = {}
        self._told: dict[str, str] = {}
        self._exact: dict[tuple[str, str], str] = {}
        for example in examples:
            self.add(example)

    def add(self, example: Example) -> None:
        """Take a row in."""
        asked, system = example.asked_hash, example.system_hash
        if not system:
            self._bare.setdefault(asked, example.id)
            return
        (self._told if example.is_told_by_system else self._framed).setdefault(asked, example.id)
        self._exact.setdefault((asked, system), example.id)

    def find(self, example: Example) -> str | None:
        """Return the id of a row with the same prompt, or None."""
        asked, system = example.asked_hash, example.system_hash
        found = [self._bare.get(asked), self._exact.get((asked, system))]
        if not example.is_told_by_system:
            found.append(self._framed.get(asked))
        if not system:
            found.append(self._told.get(asked))
        return next((id for id in found if id is not None), None)


class _Index:
    """The prompts of rows, and the ids of the first that has a picture."""

    def __init__(self, examples: Iterable[Example]) -> None:
        self.prompts = Prompts()
        self.by_image: dict[str, str] = {}
        for example in examples:
            self.prompts.add(example)
            for name in example.image_hashes:
                self.by_image.setdefault(name, example.id)

    def find(self, example: Example) -> Overlap | None:
        same = self.prompts.find(example)
        if same is not None:
            return Overlap(example.id, same, "prompt")
        pictures = (self.by_image.get(name) for name in example.image_hashes)
        same = next((other for other in pictures if other is not None), None)
        return Overlap(example.id, same, "picture") if same is not None else None


def draw_examples(examples: Iterable[Example], count: int, seed: int) -> list[Example]:
    """Return `count` of the rows, drawn by `seed` and the rows' ids, in the order given.

    Of rows that are only just being read, no more than that many are held.
    """

    ranked = (
        (draw_key(seed, example.id), index, example) for index, example in enumerate(examples)
    )
    drawn = heapq.nsmallest(count, ranked, key=itemgetter(0, 1))
    return [example for _, _, example in sorted(drawn, key=itemgetter(1))]


def draw_general(
    general: Sequence[Example], num_skill: int, share: float, seed: int
) -> Sequence[Example]:
    """Return `share` times as many general rows as a skill has, drawn by `seed` and their ids.

    Raises:
        UsageError: `share` is not above 0.
        DataError: there are not that many general rows.
    """
    if share <= 0:
        raise UsageError(
            asked=f"general rows mixed in with a share of {share}",
            found="a share that is not above 0",
            do="give a share of the skill's rows, such as 0.1",
        )
    count = max(1, round(share * num_skill))
    if count > len(general):
        raise DataError(
            asked=f"{count} general rows mixed in ({share} of {num_skill} skill rows)",
            found=f"{len(general)} general rows",
            do=f"give more general rows, or a share of at most {len(general) / num_skill:.3f}",
        )
    ranked = ((draw_key(seed, example.id), number) for number, example in enumerate(general))
    return pick(general, sorted(number for _, number in heapq.nsmallest(count, ranked)))
