"""How often does the whole gate err? `decide` itself, on tasks whose true effects are known.

    python benchmarks/gate_coverage.py --draws 500      # what is measured already is kept
    python benchmarks/gate_coverage.py --table

Draws a skill and four held-out tasks of right and wrong answers with known true learning and loss
(`statistics_coverage.draw`; 4 points of items change in both directions besides), and asks
`narrowtune.evaluate.verdict.decide` with two sets of settings: a budget of 2 points alone, and the
same with a budget of 5 for the worst task and a learning of more than 10. A verdict is wrong if it
ships what is truly over a budget or has not truly learned enough (a miss), or says over budget of
what truly is within (a false alarm).
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from statistics_coverage import Cell, draw

from narrowtune.core.results import ItemResult, TaskResult
from narrowtune.evaluate.clusters import Floats
from narrowtune.evaluate.statistics import PairedTask, mean_score
from narrowtune.evaluate.verdict import decide

RESULTS = Path(__file__).parent / "results" / "gate_coverage.json"
NUM_TASKS, CHURN = 4, 4.0
BUDGET, BUDGET_TASK, MIN_LEARNING = 2.0, 5.0, 10.0
ITEMS = (50, 100, 400)
GATES = ("budget", "all three")
OUTCOMES = ("ship", "over_budget", "not_enough_evidence")

EFFECTS: tuple[tuple[str, float, float], ...] = (
    ("alone", 0.0, 30.0),
    ("alone", 1.0, 30.0),
    ("alone", 2.0, 30.0),
    ("alone", 2.2, 30.0),
    ("alone", 4.0, 30.0),
    ("alone", 0.0, 0.0),
    ("alone", 0.0, 10.0),
    ("one task", 1.0, 30.0),
    ("one task", 1.5, 30.0),
    ("shared", 1.0, 30.0),
    ("shared", 2.2, 30.0),
)
"""Where the loss is (`statistics_coverage.Cell.kind`), true mean loss, true learning, points."""


WHERE = {"alone": "", "one task": ", all in one task", "shared": ", about the same pictures"}


class Setting(NamedTuple):
    """What is true; loss (mean over the held-out tasks) and learning in points."""

    items: int
    kind: str
    loss: float
    learning: float

    @property
    def worst(self) -> float:
        """True loss of the worst task."""
        return self.loss * (NUM_TASKS if self.kind == "one task" else 1)

    def wrong(self, gate: str) -> tuple[str, ...]:
        """Return the outcomes that would be wrong."""
        over = self.loss > BUDGET or (gate != "budget" and self.worst > BUDGET_TASK)
        learned = self.learning > (0 if gate == "budget" else MIN_LEARNING)
        wrong = ("ship",) if over or not learned else ()
        return wrong if over else (*wrong, "over_budget")


def results(pairs: Sequence[PairedTask], which: str) -> list[TaskResult]:
    """Return the evaluation that has these scores, `before` or `after`."""
    return [_result(pair, getattr(pair, which)) for pair in pairs]


@functools.cache  # making an item anew would take longer than the gate
def _item(number: int, score: float, group: str | None) -> ItemResult:
    return ItemResult(
        id=str(number),
        question="",
        answer="",
        reference=[""],
        strict=score,
        lenient=score,
        valid_format=True,
        group=group,
    )


def _result(pair: PairedTask, scores: Floats) -> TaskResult:
    groups = pair.groups or (None,) * len(scores)
    items = [
        _item(number, score, group)
        for number, (score, group) in enumerate(zip(scores.tolist(), groups, strict=True))
    ]
    mean = mean_score(scores)
    return TaskResult.model_construct(
        name=pair.name,
        role=pair.role,
        metric="exact_match",
        num_items=len(items),
        num_groups=len(items),
        num_ties=0,
        strict=mean,
        lenient=mean,
        valid_format=1.0,
        seconds=0.0,
        items=items,
    )


def drawn(setting: Setting, rng: np.random.Generator) -> list[PairedTask]:
    """Draw a skill and held-out tasks; unchanged held-out items are right, so all can lose."""
    cell = Cell(setting.items, NUM_TASKS, setting.loss, CHURN, setting.kind)
    kept = []
    for pair in draw(cell, rng):
        right = (pair.before == pair.after).astype(float)
        before, after = np.maximum(pair.before, right), np.maximum(pair.after, right)
        kept.append(PairedTask(pair.name, "held_out", before, after, pair.groups))
    skill = draw(Cell(setting.items, 1, setting.learning, CHURN, "alone"), rng)[0]
    return [PairedTask("skill", "target", skill.after, skill.before), *kept]


def measure(setting: Setting, draws: int) -> dict[str, dict[str, int]]:
    """Count the outcomes of both gates over the same draws."""
    rng = np.random.default_rng([draws, zlib.crc32(repr(setting).encode())])
    found: dict[str, Counter[str]] = {gate: Counter() for gate in GATES}
    for _ in range(draws):
        pairs = drawn(setting, rng)
        before, after = results(pairs, "before"), results(pairs, "after")
        found["budget"][decide(before, after, budget=BUDGET).outcome] += 1
        verdict = decide(
            before, after, budget=BUDGET, budget_task=BUDGET_TASK, min_learning=MIN_LEARNING
        )
        found["all three"][verdict.outcome] += 1
    return {gate: {o: counts[o] for o in OUTCOMES} for gate, counts in found.items()}


def read() -> dict[Setting, dict[str, dict[str, int]]]:
    """Return what is measured."""
    if not RESULTS.exists():
        return {}
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))
    return {Setting(*row["setting"]): row["counts"] for row in rows}


def simulate(draws: int) -> None:
    """Measure what is missing; written after every setting."""
    done = read()
    for items in ITEMS:
        for effects in EFFECTS:
            setting = Setting(items, *effects)
            if setting in done:
                continue
            done[setting] = measure(setting, draws)
            rows = [json.dumps({"setting": s, "counts": counts}) for s, counts in done.items()]
            RESULTS.write_text("[\n" + ",\n".join(rows) + "\n]\n", encoding="utf-8")


def table() -> None:
    """Print per cent of draws by outcome; wrong ones are bold, with their standard error."""
    print(
        "| true loss | true learning | items a task | budget alone | all three |\n"
        + "|---" * 5
        + "|"
    )
    for setting, counts in sorted(read().items(), key=lambda pair: _place(pair[0])):
        cells = [
            " / ".join(_share(counts[gate], o, o in setting.wrong(gate)) for o in OUTCOMES)
            for gate in GATES
        ]
        loss = f"{setting.loss:g}{WHERE[setting.kind]}"
        print(f"| {loss} | {setting.learning:g} | {setting.items} | {cells[0]} | {cells[1]} |")


def _place(setting: Setting) -> tuple[int, int]:
    return EFFECTS.index(setting[1:]), setting.items


def _share(counts: dict[str, int], outcome: str, wrong: bool) -> str:
    total = sum(counts.values())
    share = counts[outcome] / total
    shown = f"{100 * share:.1f}"
    # Where none was seen, what would be seen once.
    error = math.sqrt(max(share * (1 - share), 1 / total) / total)
    return f"**{shown} ± {100 * error:.1f}**" if wrong else shown


def main() -> None:
    """Simulate what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--table", action="store_true", help="only print what is measured")
    given = parser.parse_args()
    if not given.table:
        simulate(given.draws)
    table()


if __name__ == "__main__":
    main()
