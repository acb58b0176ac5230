"""Which runs recipes.py makes: the arms, their rates, and what is asked for next.

The protocol, fixed before the first run:
- arms: language_model, mlp, mlp_gate_up, sa_proj; and the last two with the anchor (weight 4, four
  rows a step, the first 12 tokens of the base's answers to the prompts that ship); added on
  2026-11-28: language_model, mlp_gate_up and sa_proj with weight 1, which was known by then to be
  better than 4 for mlp_gate_up on these validation questions and kinds (docs/LOG.md, 2026-11-27);
- the same 640 counting questions per seed, in the same order, batch 16, 40 steps, cosine, one
  epoch: equal work for every arm;
- the grid, seed 0: learning rates half a decade apart, from 3e-5, 1e-4, 3e-4; extended until no
  arm's best rate (accuracy on 200 validation questions) is at the edge of its grid, the same number
  of trials for every arm. Learning is validation accuracy, forgetting is over 32 items of each of
  seven held-out kinds (224; in the very first run 48 of each; with weight 1 all 608 of the three
  deciding kinds);
- the result, at each arm's best rate: seed 0 on 300 test questions and all held-out items (3,144,
  none of them used for a choice), seeds 1 and 2 on the same questions and 32 items of each kind;
  KL(base‖tuned) and number-token bias on 100 prompts;
- added with weight 1: each anchored arm also at one rate that keeps what is kept. From the lowest
  rate up, until one loses more than 1 point on all 608 items of capitals, continents and elements,
  the one that learns most on validation questions. Three seeds, 300 test questions; loss is
  reported on the four other kinds (2,536 items), which decided nothing about the rate;
- added on 2026-11-29: mlp_gate_up and sa_proj with weight 1 and projection 10, which did better in
  single runs on these validation questions and 32 items of each kind (docs/LOG.md);
- added on 2026-11-30: sa_proj with weight 1 and projection 10, which learned most for least, on all
  held-out items with seeds 1 and 2 as well, at the same rate ("whole");
- added on 2026-11-30: mlp_gate_up and sa_proj with weight 1, projection 10 and weights pulled back
  to the base's by 2 e-folds, at 3e-3 and on all held-out items, three seeds ("whole"). Both were
  chosen in single runs on these validation questions and 736 held-out items (docs/LOG.md), so they
  have no grid;
- added later on 2026-11-30: sa_proj, the same with one row of the anchor a step in place of four,
  which did better in one run on the same ("whole"); and, once its three seeds were known, three
  more of it and of language_model at its best rate, on rows of their own, so that differences have
  intervals that say something ("further");
- left out on 2026-11-30, after the grids: the projected arms at a rate that keeps what is kept. At
  1e-4 both lose 10 points of the deciding kinds, so the rule takes 3e-5, the lowest rate, at which
  they learn 9 and 11 % of the validation questions; but at the best ones, 3e-3 and 1e-3, they learn
  50 and 47 and lose -0.4 and 2.9 points. So these six runs would show what the rule is worth and
  not the arms. None was made.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from narrowtune.core.json_lines import read_json_lines

GRID = {-2: 3e-6, -1: 1e-5, 0: 3e-5, 1: 1e-4, 2: 3e-4, 3: 1e-3, 4: 3e-3, 5: 1e-2}
"""Learning rates by exponent, half a decade apart."""

FIRST = (0, 1, 2)
MOST_TRIALS = 7
SEEDS = (0, 1, 2)
EVERY_SEED = (*SEEDS, 3, 4, 5)
MOST_LOST, DECIDING = 1.0, ("capitals", "continents", "elements")


class Arm(NamedTuple):
    """A recipe with the anchor at a weight, 0 is none, its steps' projection, and a pull back.

    `rows` are those of the anchor in a step.
    """

    recipe: str
    weight: float = 0.0
    projection: float = 0.0
    pull: float = 0.0
    rows: int = 4

    def __str__(self) -> str:
        """Return its name in tables."""
        held = f" + anchor {self.weight:g}" if self.weight else ""
        projected = f", projection {self.projection:g}" if self.projection else ""
        pulled = f", pull {self.pull:g}" if self.pull else ""
        return self.recipe + held + projected + pulled + (", one row" if self.rows == 1 else "")


ARMS = (
    Arm("language_model"),
    Arm("mlp"),
    Arm("mlp_gate_up"),
    Arm("sa_proj"),
    Arm("mlp_gate_up", 4.0),
    Arm("sa_proj", 4.0),
    Arm("language_model", 1.0),
    Arm("mlp_gate_up", 1.0),
    Arm("sa_proj", 1.0),
    Arm("mlp_gate_up", 1.0, 10.0),
    Arm("sa_proj", 1.0, 10.0),
)
HELD = tuple(arm for arm in ARMS if arm.weight == 1.0)
"""Those whose grid is scored on all items of the deciding kinds."""

KEPT = tuple(arm for arm in HELD if not arm.projection)
"""Those that are also run at a rate that keeps what is kept."""


WHOLE = (Arm("sa_proj", 1.0, 10.0),)
"""Those that every seed of is scored on all held-out items."""

PULLED = (
    Arm("mlp_gate_up", 1.0, 10.0, 2.0),
    Arm("sa_proj", 1.0, 10.0, 2.0),
    Arm("sa_proj", 1.0, 10.0, 2.0, 1),
)
PULLED_AT = 4
"""Those that are, and have no grid; and the exponent of their rate."""

FURTHER = PULLED[-1]
"""The one that further seeds are trained of, and language_model beside it."""


class Job(NamedTuple):
    """One run."""

    recipe: str
    weight: float
    exponent: int
    seed: int
    stage: str = "grid"
    projection: float = 0.0
    pull: float = 0.0
    rows: int = 4

    @property
    def arm(self) -> Arm:
        """The arm that this is a run of."""
        return Arm(self.recipe, self.weight, self.projection, self.pull, self.rows)


def job_of(arm: Arm, exponent: int, seed: int, stage: str = "grid") -> Job:
    """Return a run of an arm."""
    return Job(arm.recipe, arm.weight, exponent, seed, stage, arm.projection, arm.pull, arm.rows)


def read_runs(path: Path) -> dict[Job, dict[str, Any]]:
    """Return the finished runs; a last line cut short by a kill is left out."""
    runs = {}
    for _, run in read_json_lines(path, f"the runs in {path}"):
        if isinstance(run["job"][1], bool):
            raise SystemExit(f"{path} is of an older recipes.py: true stands for weight 4")
        runs[Job(*run["job"])] = run
    return runs


def best_exponent(arm: Arm, runs: dict[Job, dict[str, Any]]) -> int | None:
    """Return the rate with the best validation score of the skill; the lower of equals."""
    scored = {
        job.exponent: run["skill"]
        for job, run in runs.items()
        if job.arm == arm and job.stage == "grid"
    }
    return max(sorted(scored), key=lambda k: scored[k]) if scored else None


def holding_exponent(arm: Arm, runs: dict[Job, dict[str, Any]]) -> int | None:
    """Return the rate that learns most below the first that loses of the deciding kinds.

    The lower of equals; None unless one keeps them.
    """
    grid = sorted(
        (job.exponent, run["skill"], lost(run, DECIDING))
        for job, run in runs.items()
        if job.arm == arm and job.stage == "grid"
    )
    keeping = list(takewhile(lambda trial: trial[2] <= MOST_LOST, grid))
    return max(keeping, key=lambda trial: (trial[1], -trial[0]))[0] if keeping else None


def lost(run: dict[str, Any], kinds: Sequence[str]) -> float:
    """Return the mean loss of a run on some kinds, points."""
    changes = [task["change"]["value"] for task in run["tasks"] if task["name"] in kinds]
    return -sum(changes) / len(changes)


def next_jobs(runs: dict[Job, dict[str, Any]]) -> list[Job]:
    """Return the runs that the protocol asks for next, given those that are there."""
    tried = {
        arm: sorted(job.exponent for job in runs if job.arm == arm and job.stage == "grid")
        for arm in ARMS
    }
    first = [job_of(arm, k, 0) for arm in ARMS for k in FIRST if k not in tried[arm]]
    if first:
        return first
    wanted: dict[Arm, int] = {}
    for arm in ARMS:
        best = best_exponent(arm, runs)
        low, high = tried[arm][0], tried[arm][-1]
        if best == high and high + 1 in GRID and len(tried[arm]) < MOST_TRIALS:
            wanted[arm] = high + 1
        elif best == low and low - 1 in GRID and len(tried[arm]) < MOST_TRIALS:
            wanted[arm] = low - 1
    most = max(len(tried[arm]) + (arm in wanted) for arm in ARMS)
    for arm in ARMS:
        # Equal numbers of trials: an arm that is done gets one more on the side it is nearer to.
        if arm not in wanted and len(tried[arm]) < most:
            best = best_exponent(arm, runs)
            low, high = tried[arm][0], tried[arm][-1]
            up = best is not None and high - best <= best - low and high + 1 in GRID
            wanted[arm] = high + 1 if up else low - 1
    jobs = [job_of(arm, k, 0) for arm, k in wanted.items() if k in GRID]
    if jobs:
        return jobs
    chosen = [(arm, best_exponent(arm, runs), "result") for arm in ARMS]
    chosen += [(arm, best_exponent(arm, runs), "whole") for arm in WHOLE]
    chosen += [(arm, holding_exponent(arm, runs), "kept") for arm in KEPT]
    jobs = [
        job
        for wanted_stage in ("result", "whole", "kept")
        for seed in SEEDS
        if seed or wanted_stage != "whole"  # the result of seed 0 is on all of them
        for arm, exponent, stage in chosen
        if stage == wanted_stage
        if exponent is not None and (job := job_of(arm, exponent, seed, stage)) not in runs
    ]
    pulled = [job_of(arm, PULLED_AT, seed, "whole") for arm in PULLED for seed in SEEDS]
    for arm, exponent in ((FURTHER, PULLED_AT), (ARMS[0], best_exponent(ARMS[0], runs))):
        further = EVERY_SEED[len(SEEDS) :] if exponent is not None else ()
        pulled += [job_of(arm, exponent, seed, "further") for seed in further]
    return [job for job in pulled if job not in runs] + jobs
