"""Several deltas of one base become one, or one becomes weaker: the usual rules for merging models.

Each delta stands for the difference of its tuned weights and the base's, in fp32; the rules are
those of `peft.utils.merge_utils`. What comes out is rounded to the base's dtype and is an ordinary
delta of the same base.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from narrowtune.core.errors import DeltaError, UsageError
from narrowtune.core.extras import require
from narrowtune.data.digest import tensor_sha256
from narrowtune.delta.base import Base
from narrowtune.delta.bits import all_finite, xor
from narrowtune.delta.store import Delta, Metadata
from narrowtune.models.blended import between
from narrowtune.models.fingerprint import combine_hashes

Rule = Literal["linear", "ties", "dare_linear", "dare_ties"]
"""`linear`: weighted sum (task arithmetic, arXiv 2212.04089). `ties`: trim, elect signs, average
what agrees (arXiv 2306.01708). `dare_*`: drop at random and rescale first (arXiv 2311.03099)."""

RULES: tuple[Rule, ...] = get_args(Rule)


def parse_rule(name: str) -> Rule:
    """Return the rule of that name.

    Raises:
        UsageError: there is none.
    """
    for rule in RULES:
        if rule == name:
            return rule
    raise UsageError(
        asked=f"--rule {name}", found="no rule of that name", do=f"choose one of {', '.join(RULES)}"
    )


@dataclass(frozen=True)
class Blending:
    """How deltas are blended.

    Attributes:
        rule: one of `RULES`.
        weights: of the deltas, in their order; 1 for each unless given.
        density: share of a difference's elements that is kept before merging, 0 (excluded) to 1;
            by size for `ties`, by chance for `dare_*`. `linear` keeps all, the others need one.
        seed: of that chance.
    """

    rule: Rule = "linear"
    weights: tuple[float, ...] = ()
    density: float | None = None
    seed: int = 0


def blend(folder: str | Path, deltas: Sequence[Delta], how: Blending) -> Delta:
    """Return one delta of the base in `folder` that stands for all of `deltas`.

    A tensor that one delta leaves alone counts as a difference of zero there. Memory: the result,
    and the differences of one tensor at a time.

    Args:
        folder: the base of every delta.
        deltas: at least one; a single one with a weight α is base + α (tuned − base), as WiSE-FT.
        how: rule, weights, density.

    Raises:
        UsageError: the weights or the density make no sense; peft, which merges several, is not
            installed.
        DeltaError: a delta does not fit the folder, or the result would not be finite.
    """
    asked = f"blend {len(deltas)} deltas on {folder} by {how.rule}"
    weights = _check(deltas, how, asked)
    alone = len(deltas) == 1 and how.rule == "linear"
    merge = None if alone else _merging(how, weights, asked)
    base = Base(folder, deltas, asked)
    bits, changed = {}, {}
    for number, (name, record) in enumerate(base.records.items()):
        before = base.read(name)
        if merge is None:
            # As a dial does it: exact at 0 and 1.
            after = between(before, base.tuned(deltas[0], name), weights[0])
        else:
            merged = merge([base.difference(delta, name) for delta in deltas], number)
            after = (before.to(merged.dtype) + merged).to(before.dtype)
        if not all_finite(after):
            raise DeltaError(
                asked=asked, found=f"{name} would hold infinity", do="give smaller weights"
            )
        bits[name] = xor(after, before)
        changed[name] = record.model_copy(update={"tuned_sha256": tensor_sha256(after)})
    first = deltas[0].metadata
    frozen = {name: digest for name, digest in first.frozen.items() if name not in changed}
    metadata = Metadata(
        recipe=" & ".join(dict.fromkeys(delta.metadata.recipe for delta in deltas)),
        family=first.family,
        base_fingerprint=first.base_fingerprint,
        tuned_fingerprint=combine_hashes(
            {**frozen, **{name: record.tuned_sha256 for name, record in changed.items()}}
        ),
        notes=[_note(deltas, how, weights), *(n for d in deltas for n in d.metadata.notes)],
        tensors=changed,
        frozen=frozen,
    )
    return Delta(metadata, bits)


def _check(deltas: Sequence[Delta], how: Blending, asked: str) -> tuple[float, ...]:
    """Return the weights, or refuse what can't be meant."""
    if not deltas:
        raise UsageError(asked=asked, found="no delta", do="name at least one")
    weights = how.weights or (1.0,) * len(deltas)
    if len(weights) != len(deltas):
        raise UsageError(
            asked=asked,
            found=f"{len(weights)} weights for {len(deltas)} deltas",
            do="give --weight once for each delta, in their order, or not at all",
        )
    if how.rule == "linear" and how.density is not None:
        raise UsageError(
            asked=asked, found="a density, and a rule that keeps everything", do="leave it out"
        )
    if how.rule != "linear" and (how.density is None or not 0 < how.density < 1):
        raise UsageError(
            asked=asked,
            found="no density" if how.density is None else f"a density of {how.density:g}",
            do="give --density, the share of each delta's elements that is kept: more than 0 and "
            "less than 1, such as 0.2",
        )
    bases = dict.fromkeys(delta.metadata.base_fingerprint for delta in deltas)
    if len(bases) > 1:
        raise DeltaError(
            asked=asked,
            found=f"deltas of {len(bases)} different bases ({', '.join(b[:12] for b in bases)})",
            do="blend deltas that were taught to the same base, each on its own; `narrowtune delta "
            "info` shows a delta's base",
        )
    return weights


def _merging(
    how: Blending, weights: tuple[float, ...], asked: str
) -> Callable[[list[Tensor], int], Tensor]:
    """Return what makes one difference of several; the number makes its chance its own."""
    require("lora", "peft", asked=asked)
    from peft.utils import merge_utils

    factors = torch.tensor(weights, dtype=torch.float64)
    if how.rule == "linear":
        return lambda parts, _: merge_utils.task_arithmetic(parts, factors.to(parts[0].dtype))
    rule = getattr(merge_utils, how.rule)

    def merge(differences: list[Tensor], number: int) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(how.seed * 1_000_003 + number)
            kind = differences[0].dtype
            merged: Tensor = rule(differences, factors.to(kind), how.density)
        return merged

    return merge


def _note(deltas: Sequence[Delta], how: Blending, weights: tuple[float, ...]) -> str:
    parts = ", ".join(
        f"{weight:g} × {delta.metadata.recipe} ({delta.metadata.tuned_fingerprint[:12]})"
        for weight, delta in zip(weights, deltas, strict=True)
    )
    kept = "" if how.density is None else f", density {how.density:g}"
    chance = f", seed {how.seed}" if how.rule.startswith("dare") else ""
    return f"blended by {how.rule}{kept}{chance}: {parts}"
