"""Which row goes where: seeded splits, overlap between sets, general rows mixed in.

Owns: the rule that rows sharing a group, a prompt or a picture stay together, and draws that
depend on the seed and the rows' content, never on their order.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from narrowtune.core.errors import DataError, UsageError
from narrowtune.data.examples import Example


@dataclass(frozen=True)
class Overlap:
    """Two rows that hold the same `what`: "prompt" or "picture"."""

    left: Example
    right: Example
    what: str

    def __str__(self) -> str:
        """Name both rows."""
        return f"{self.left.id} and {self.right.id} (same {self.what})"


def draw_key(seed: int, name: str) -> str:
    """Return a sort key that shuffles names by `seed`, whatever order they come in."""
    return hashlib.sha256(f"{seed}\0{name}".encode("utf-8", "surrogatepass")).hexdigest()


def split_examples(
    examples: Sequence[Example], validation: float, test: float, seed: int
) -> dict[str, list[Example]]:
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
    splits: dict[str, list[Example]] = {"train": [], "validation": [], "test": []}
    for index, example in enumerate(examples):
        splits[chosen[index]].append(example)
    empty = [name for name, rows in splits.items() if not rows and targets.get(name, 1)]
    if empty:
        raise DataError(
            asked=f"{len(examples)} rows split with validation {validation} and test {test}",
            found=f"{len(clusters)} groups of rows that belong together, none left for "
            + " and ".join(empty),
            do="give more rows (or finer groups), or change the shares",
        )
    return splits


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
    pictures is no overlap, two questions about one picture are.
    """
    by_text: dict[str, Example] = {}
    by_image: dict[str, Example] = {}
    for example in right:
        by_text.setdefault(example.text_hash, example)
        for name in example.image_hashes:
            by_image.setdefault(name, example)
    found = []
    for example in left:
        if example.text_hash in by_text:
            found.append(Overlap(example, by_text[example.text_hash], "prompt"))
            continue
        same = next((by_image[name] for name in example.image_hashes if name in by_image), None)
        if same is not None:
            found.append(Overlap(example, same, "picture"))
    return found


def draw_examples(examples: Iterable[Example], count: int, seed: int) -> list[Example]:
    """Return `count` of the rows, drawn by `seed` and the rows' ids, in the order given.

    Of rows that are only just being read, no more than that many are held.
    """

    def rank(numbered: tuple[int, Example]) -> tuple[str, int]:
        index, example = numbered
        return draw_key(seed, example.id), index

    drawn = dict(heapq.nsmallest(count, enumerate(examples), key=rank))
    return [drawn[index] for index in sorted(drawn)]


def mix_examples(
    skill: Sequence[Example], general: Sequence[Example], share: float, seed: int
) -> list[Example]:
    """Return the skill's rows followed by `share` times as many general rows, drawn by `seed`.

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
    count = max(1, round(share * len(skill)))
    if count > len(general):
        raise DataError(
            asked=f"{count} general rows mixed in ({share} of {len(skill)} skill rows)",
            found=f"{len(general)} general rows",
            do=f"give more general rows, or a share of at most {len(general) / len(skill):.3f}",
        )
    return [*skill, *draw_examples(general, count, seed)]
