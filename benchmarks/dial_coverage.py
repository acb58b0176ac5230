"""How often is a dialled run confirmed, and how often is its true loss over the budget?

    python benchmarks/dial_coverage.py --runs 200

Made-up models: each keep item has a threshold, and is lost once the true loss at α is above it, so
that loss rises with α as `most` × α^1.5 and both parts are independent draws. The dial itself, its
parts and the verdict's bound are the product's. Prints, per setting: the share of runs that moved
at all, of these the share whose budget the other part confirms, the share of all runs whose true
loss at the α taken is over the budget, and the mean α beside the largest that would be right.
"""

from __future__ import annotations

import argparse

import numpy as np

from narrowtune.core.config import RunConfig
from narrowtune.core.results import ItemResult, TaskResult
from narrowtune.data.examples import Example, Message, Text
from narrowtune.evaluate.evaluate import summarise
from narrowtune.evaluate.statistics import mean_loss
from narrowtune.evaluate.tasks import Task
from narrowtune.evaluate.verdict import pair_results
from narrowtune.pipeline.dial import Halves, restrict, turn

NUM_TASKS = 4
POWER = 1.5
SETTINGS = (
    (400, 2.0, 6.0),
    (400, 5.0, 20.0),
    (1000, 1.0, 6.0),
    (1000, 2.0, 6.0),
    (1000, 5.0, 60.0),
)
"""Items of a task, budget, and the true loss at α = 1, both in points."""


def make_tasks(num_items: int) -> list[Task]:
    """Keep sets whose items say nothing."""
    prompt = (Message("user", (Text("?"),)),)
    return [
        Task(
            f"task {t}",
            "held_out",
            "exact_match",
            "generate",
            1,
            tuple(Example(id=str(k), messages=prompt, answers=("x",)) for k in range(num_items)),
        )
        for t in range(NUM_TASKS)
    ]


def main() -> None:
    """Simulate every setting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=200)
    given = parser.parse_args()
    print("items a task, budget, most | moved | confirmed | over | mean α | right α")
    for num_items, budget, most in SETTINGS:
        tasks = make_tasks(num_items)
        moved = confirmed = over = 0
        taken = []
        for seed in range(given.runs):
            generator = np.random.default_rng(seed)
            thresholds = {task.name: generator.random(num_items) for task in tasks}

            def score(
                alpha: float,
                asked: list[Task],
                thresholds: dict[str, np.ndarray] = thresholds,
                most: float = most,
            ) -> list[TaskResult]:
                lost = most / 100 * alpha**POWER
                found = []
                for task in asked:
                    items = [
                        ItemResult(
                            id=example.id,
                            question="",
                            answer="",
                            reference=["x"],
                            strict=float(thresholds[task.name][int(example.id)] >= lost),
                            lenient=1.0,
                            valid_format=True,
                        )
                        for example in task.examples
                    ]
                    found.append(summarise(task, items, 0.0))
                return found

            config = RunConfig.model_validate(
                {
                    "model": "m",
                    "skill": {"path": "a.jsonl"},
                    "keep": [{"path": "b.jsonl"}],
                    "budget": budget,
                    "dial": True,
                    "seed": seed,
                }
            )
            halves = Halves(tasks, config.dial, seed)
            before = score(0.0, tasks)
            dial = turn(halves, before, score, config)
            taken.append(dial.alpha)
            over += most * dial.alpha**POWER > budget
            if dial.alpha:
                moved += 1
                after = score(dial.alpha, halves.confirming)
                pairs = pair_results(restrict(before, halves.confirming), after)
                confirmed += mean_loss(pairs).upper_bound <= budget
        right = min(1.0, (budget / most) ** (1 / POWER))
        share = confirmed / moved if moved else float("nan")
        print(
            f"{num_items}, {budget:g}, {most:g} | {moved / given.runs:.0%} | {share:.0%} | "
            f"{over / given.runs:.1%} | {np.mean(taken):.2f} | {right:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
