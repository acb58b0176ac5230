"""Compare the order of arms in the quick preset of the miniature study with the whole one's.

    python scripts/preset_orders.py
    python scripts/preset_orders.py runs/miniature runs/miniature-quick

Reads both folders' summary.json. The rule is docs/decisions/0012's: the mean points lost at half
and at three quarters of the reference's best learning decide, over arms that reach the share with
every seed in both. Exit status 1 if the order differs at one of them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean
from typing import Any

PHASE = "chosen"
DECIDING = ("0.5", "0.75")
TOLD = ("0.9",)
CHAINS = "all skills in a row"
RESULTS = Path("docs/results")

Lost = dict[str, list[float | None]]
"""By arm, points lost with every seed; None where a seed does not reach the share."""


def main() -> None:
    """Parse the command line and print every order."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("whole", type=Path, nargs="?", default=RESULTS / "miniature")
    parser.add_argument("quick", type=Path, nargs="?", default=RESULTS / "miniature-quick")
    given = parser.parse_args()
    whole, quick = (
        json.loads((folder / "summary.json").read_text("utf-8"))
        for folder in (given.whole, given.quick)
    )
    same = {
        share: show(f"at {share} of the learning", at_share(whole, share), at_share(quick, share))
        for share in (*DECIDING, *TOLD)
    }
    show("mean over stages, skills in a row", in_chains(whole), in_chains(quick))
    differing = [share for share in DECIDING if not same[share]]
    if differing:
        raise SystemExit(f"Not the same ordering: it differs at {' and '.join(differing)}.")
    print(f"The same ordering, at {' and '.join(DECIDING)}, where it is decided.")


def show(what: str, whole: Lost, quick: Lost) -> bool:
    """Print what arms lose in both studies and return whether two or more stand in one order."""
    both = [arm for arm in quick if arm in whole]
    reached = [arm for arm in both if None not in [*whole[arm], *quick[arm]]]
    orders = [
        sorted(reached, key=lambda arm, lost=lost: mean(lost[arm])) for lost in (whole, quick)
    ]
    same = orders[0] == orders[1] and len(reached) > 1
    print(f"Points lost {what}: {len(reached)} arms in {'one order' if same else 'other orders'}")
    print(f"  {'':<24}{'whole':<36}quick")
    for arm in [*orders[0], *(arm for arm in both if arm not in reached)]:
        left = " (not compared: missed by a seed)" if arm not in reached else ""
        print(f"  {arm:<24}{told(whole[arm]):<36}{told(quick[arm])}{left}")
    print()
    return same


def mean(lost: list[float | None]) -> float:
    """Return the mean over the seeds that reached the share."""
    return fmean(value for value in lost if value is not None)


def told(lost: list[float | None]) -> str:
    """Return an arm's points: their mean, then every seed's."""
    seeds = ", ".join("–" if value is None else f"{value:.1f}" for value in lost)
    return f"{mean(lost):.1f} ({seeds})" if any(v is not None for v in lost) else seeds


def at_share(summary: Any, share: str) -> Lost:
    """Return what arms lost at a share of the reference's best learning."""
    return {entry["arm"]: entry["lost"][share] for entry in summary["matched"][PHASE]}


def in_chains(summary: Any) -> Lost:
    """Return what arms lost as the mean over the stages of the default order."""
    return {entry["arm"]: entry["lost"]["seeds"] for entry in summary["settings"][CHAINS]}


if __name__ == "__main__":
    main()
