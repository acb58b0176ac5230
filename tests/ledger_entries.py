"""Entries of a ledger without a run behind them."""

from __future__ import annotations

from narrowtune.core.data_settings import SkillSettings
from narrowtune.core.ledger import Entry, TaskScore


def score(mean: float, role: str = "held_out", items: str = "same") -> TaskScore:
    return TaskScore(role=role, mean=mean, stderr=0.0, num_items=10, items=items)


def stage(name, before, after, base="", without=()):
    hashes = dict.fromkeys(("sha256", "tuned_fingerprint", "rows_sha256"), "0" * 64)
    return Entry(
        number=1,
        run=name,
        name=name,
        recipe="sa_proj",
        created="",
        delta="",
        skill=SkillSettings(path=f"{name}.jsonl"),
        seed=0,
        base_fingerprint=base,
        without=list(without),
        before={k: v if isinstance(v, TaskScore) else score(v) for k, v in before.items()},
        after={k: v if isinstance(v, TaskScore) else score(v) for k, v in after.items()},
        **hashes,
    )
