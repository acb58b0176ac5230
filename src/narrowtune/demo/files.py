"""The demo's data as ordinary files, so that its runs are like anyone's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from narrowtune.core.data_settings import DataSettings, MetricName, SkillSettings
from narrowtune.core.errors import UsageError
from narrowtune.demo import counting, pronunciation
from narrowtune.demo.keep import KINDS, Row

DEMO_KINDS = ("capitals", "continents", "opposites", "plurals")
"""What the demo keeps; the benchmark keeps every kind."""


@dataclass(frozen=True)
class Skill:
    """A skill of the demo: where its rows come from and how they are scored.

    Attributes:
        generate: from a number of rows and a seed to rows.
        surplus: rows generated per row needed, since those that share a group with a test row
            can't be taught.
    """

    generate: Callable[[int, int], list[dict[str, Any]]]
    metric: MetricName
    max_new_tokens: int
    surplus: float


SKILLS: dict[str, Skill] = {
    "counting": Skill(counting.generate, "number", max_new_tokens=16, surplus=1.0),
    "pronunciation": Skill(pronunciation.generate, "edit_distance", max_new_tokens=48, surplus=1.5),
}


@dataclass(frozen=True)
class DemoData:
    """Files that were written, as settings that a run takes.

    Attributes:
        skill: rows to learn from, with the share for validation, and the test file.
        keep: one file per kind.
    """

    skill: SkillSettings
    keep: tuple[DataSettings, ...]


def write_demo_data(
    folder: Path,
    *,
    skill: str = "counting",
    num_train: int = 1280,
    num_validation: int = 160,
    num_test: int = 240,
    kinds: Sequence[str] = DEMO_KINDS,
    keep_items: int | None = None,
    seed: int = 0,
) -> DemoData:
    """Write skill.jsonl, skill_test.jsonl and keep/<kind>.jsonl; the seed decides every row.

    No row of skill.jsonl shares a group (a list of words, a stem) with one of skill_test.jsonl.

    Args:
        folder: created if it does not exist; files of these names are replaced.
        skill: a name in `SKILLS`.
        num_train: rows to learn from.
        num_validation: further rows in skill.jsonl, for choosing a checkpoint.
        num_test: rows in skill_test.jsonl.
        kinds: names in `KINDS`.
        keep_items: rows per kind, different entities first; all unless given.
        seed: of every draw.

    Raises:
        UsageError: there is no such skill or kind, or a kind has fewer items.
    """
    if skill not in SKILLS or not set(kinds) <= set(KINDS):
        raise UsageError(
            asked=f"demo data for {skill}, keeping {', '.join(kinds)}",
            found="a skill or a kind of that name does not exist",
            do=f"choose a skill of {', '.join(SKILLS)} and kinds of {', '.join(KINDS)}",
        )
    chosen = SKILLS[skill]
    num_learn = num_train + num_validation
    drawn = chosen.generate(num_test + round(num_learn * chosen.surplus), seed)
    test, rest = drawn[:num_test], drawn[num_test:]
    tested = {row["group"] for row in test}
    learn = [row for row in rest if row["group"] not in tested][:num_learn]
    if len(learn) < num_learn:
        raise UsageError(
            asked=f"{num_learn} rows of {skill} beside {num_test} test rows",
            found=f"{len(learn)} that share nothing with the test rows",
            do="ask for fewer rows",
        )
    return DemoData(
        skill=SkillSettings(
            path=_write(folder / "skill.jsonl", learn),
            test_path=_write(folder / "skill_test.jsonl", test),
            name=skill,
            metric=chosen.metric,
            max_new_tokens=chosen.max_new_tokens,
            validation=num_validation / num_learn,
            test=0.0,
        ),
        keep=tuple(_write_kind(folder / "keep", name, keep_items, seed) for name in kinds),
    )


def _write_kind(folder: Path, name: str, limit: int | None, seed: int) -> DataSettings:
    kind = KINDS[name]
    rows = _entities_first(kind.generate(seed))
    if limit is not None and limit > len(rows):
        raise UsageError(
            asked=f"{limit} items of {name}",
            found=f"{len(rows)} items",
            do=f"ask for at most {len(rows)} per kind",
        )
    return DataSettings(
        path=_write(folder / f"{name}.jsonl", rows[:limit]),
        name=name,
        metric=kind.metric,
        mode=kind.mode,
        max_new_tokens=kind.max_new_tokens,
    )


def _entities_first(rows: Sequence[Row]) -> list[Row]:
    """Put one row of every entity first, then a second one, and so on: few rows tell most."""
    seen: dict[str, int] = {}
    ranked: list[tuple[int, Row]] = []
    for row in rows:
        rank = seen.get(row["group"], 0)
        seen[row["group"]] = rank + 1
        ranked.append((rank, row))
    return [row for _, row in sorted(ranked, key=lambda pair: pair[0])]


def _write(path: Path, rows: Iterable[Row]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return str(path)
