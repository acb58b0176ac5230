"""Is a budget kept on untouched items, on real runs? And how often does the gate err?

The dial here goes the straight way (`dial.way: linear`); `dial_paths.py` has both.

    python benchmarks/budget_coverage.py --skills clock
    python benchmarks/budget_coverage.py --skills birds
    python benchmarks/budget_coverage.py --skills clock --seeds 1 2      # further trainings
    python benchmarks/budget_coverage.py --table
    python benchmarks/budget_coverage.py --table --drawn 400             # larger keep sets
    python benchmarks/budget_coverage.py --early                         # other ways to keep it

Measuring: the reference model is taught a skill (1,600 rows in 200 steps of 8) by each recipe at
the demo's rates, and scored on 240 items of each of eight kept tasks and 200 of the skill: at every
step α of the dial up to the first that loses 15 points, at α = 0.5 and 1, and at nine earlier
moments of training. All scores of an item are kept, in a file per run (docs/results/budget-
coverage); what is there is not measured again.

The table: of these, 96 items a task are drawn again and again as a user's keep sets, and the
product's own code turns the dial on them or judges a run by them. The truth is what the other 144
items a task say: they are never part of what decides. Early stopping takes the last moment of
training that the same rule passes on the same searched items: the walk is over steps and not over
α.

`--early` sets the dial beside a fixed α = 0.5 and beside early stopping in three ways, by the upper
bound of the loss on all drawn items: at the first moment that breaks the budget, at the last that
keeps it, and at the one that learned most of those that keep it. Where a walk was measured no
further, only the end of training is known after it.

Keep sets of more items than were scored (`--drawn`) are drawn with replacement, as if the 240 items
of a task were all kinds of items that there are, each in an item of its own; the truth is then what
all 240 say. The product's code knows nothing of that.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import TrainerCallback

from narrowtune.core.anchor_settings import AnchorSettings
from narrowtune.core.config import (
    DialSettings,
    ModelSettings,
    RunConfig,
    SkillSettings,
    TrainingSettings,
)
from narrowtune.core.data_settings import DataSettings, PromptSettings
from narrowtune.core.errors import UsageError
from narrowtune.core.results import ItemResult, Role, TaskResult
from narrowtune.data.examples import Example
from narrowtune.data.rows import read_rows
from narrowtune.engine.arithmetic import apply_arithmetic, measure_arithmetic
from narrowtune.engine.heap import keep_freed_blocks
from narrowtune.evaluate.evaluate import evaluate, summarise
from narrowtune.evaluate.statistics import PairedTask, mean_loss
from narrowtune.evaluate.tasks import Task, make_task
from narrowtune.evaluate.verdict import decide
from narrowtune.miniature.reference.shipped import reference_folder
from narrowtune.miniature.registry import tasks_of
from narrowtune.miniature.rows import write_rows
from narrowtune.models.blended import set_between
from narrowtune.models.select import resolve
from narrowtune.pipeline.dial import Halves, restrict, turn
from narrowtune.pipeline.inputs import load, make_encoder
from narrowtune.pipeline.prompts import read_free_prompts
from narrowtune.pipeline.stages import make_store, measure_tolerance, measuring
from narrowtune.study.world import GENERAL, write_general
from narrowtune.train.anchor import build_anchor
from narrowtune.train.fit import fit
from narrowtune.train.masters import copy_tensors

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "budget-coverage"
SEED, ANCHOR_SEED = 7, 107
NUM_TRAIN, NUM_SKILL, NUM_KEPT, NUM_PROMPTS = 1600, 200, 240, 256
DRAWN, DRAWS, EARLY_DRAWS, BUDGETS = 96, 200, 5, (1.0, 2.0, 5.0)
ENOUGH = 15.0
"""Points lost after which a walk is not measured further: no budget here allows a third of them."""

ARMS: dict[str, tuple[str, float, float]] = {
    "language_model": ("language_model", 1e-3, 0.0),
    "sa_proj": ("sa_proj", 1e-3, 0.0),
    "mlp_gate_up": ("mlp_gate_up", 3e-3, 0.0),
    "mlp_gate_up + anchor": ("mlp_gate_up", 3e-3, 0.3),
}
"""Recipe, learning rate, weight of the anchor."""

Tensors = dict[str, Tensor]

Scores = dict[str, list[float]]
"""Strict score of every item, by task."""


class Moments(TrainerCallback):
    """Copies the trained tensors every so many steps."""

    def __init__(self, model: torch.nn.Module, names: Sequence[str], every: int) -> None:
        self.model, self.names, self.every = model, names, every
        self.kept: dict[int, dict[str, Tensor]] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Copy, as a delta would be rounded."""
        if state.global_step % self.every == 0 and state.global_step < state.max_steps:
            self.kept[state.global_step] = copy_tensors(self.model, self.names, torch.bfloat16)


class Bench:
    """The model, its rows and its items."""

    def __init__(self, skill: str, folder: Path, num_kept: int = NUM_KEPT) -> None:
        train = write_rows(folder, skill, "train", NUM_TRAIN, SEED)
        own = write_rows(folder, skill, "validation", NUM_SKILL, SEED)
        asked: list[tuple[DataSettings, Role]] = [(own, "target")]
        asked += [
            (write_rows(folder, task.name, "validation", num_kept, SEED), "held_out")
            for task in tasks_of("held_out")
        ]
        prompts = folder / "anchor.jsonl"
        write_general(prompts, GENERAL, NUM_PROMPTS, ANCHOR_SEED)
        self.skill = SkillSettings(**train.model_dump())
        model = ModelSettings(model=str(reference_folder("qwen2_5_vl")))
        self.loaded = load(model)
        self.encoder = make_encoder(self.loaded, model, remembered_bytes=2**30)
        self.tasks = [make_task(s, read_rows(s).examples, role) for s, role in asked]
        self.rows = [self.encoder.encode(example) for example in read_rows(train).examples]
        own = PromptSettings(prompts=str(prompts))
        free = read_free_prompts(own, self.encoder, NUM_PROMPTS, "anchor")
        self.anchored = [prompt for _, prompt in free]
        self.arithmetic = measure_arithmetic(self.loaded.model)
        self.store = make_store(self.loaded, remember=None)
        with apply_arithmetic(self.arithmetic), measuring(self.loaded):
            self.tolerance = measure_tolerance(self.loaded, self.tasks, self.encoder)
        self.base = self.score()

    def score(self) -> Scores:
        """Score all items with the weights that are in the model."""
        with apply_arithmetic(self.arithmetic), measuring(self.loaded, self.store):
            found = [
                evaluate(self.loaded, t, self.encoder, batch_size=128, tolerance=self.tolerance)
                for t in self.tasks
            ]
        return {result.name: [round(item.strict, 4) for item in result.items] for result in found}

    def lost(self, scores: Scores) -> float:
        """Return the mean loss of the kept tasks, points."""
        kept = [task.name for task in self.tasks if task.role == "held_out"]
        return float(
            100 * np.mean([np.mean(self.base[name]) - np.mean(scores[name]) for name in kept])
        )

    @contextmanager
    def taught(self, arm: str, seed: int) -> Iterator[tuple[Tensors, Tensors, Moments]]:
        """Teach; give the base's and the tuned tensors, and those on the way. Ends at the base.

        Args:
            arm: one of `ARMS`.
            seed: of training, beside that of the rows: their order, and the anchor's.
        """
        recipe, rate, weight = ARMS[arm]
        model = self.loaded.model
        selection = resolve(model, recipe)
        base = copy_tensors(model, selection.names)
        anchor = None
        if weight:
            settings = AnchorSettings(weight=weight, rows_per_step=2)
            with apply_arithmetic(self.arithmetic), measuring(self.loaded, self.store):
                anchor = build_anchor(
                    self.loaded, self.encoder, self.anchored, settings, batch_size=128, seed=seed
                )
        moments = Moments(model, selection.names, NUM_TRAIN // 8 // 10)
        with tempfile.TemporaryDirectory() as output, apply_arithmetic(self.arithmetic):
            config = RunConfig(
                model="reference",
                recipe=recipe,
                skill=self.skill,
                training=TrainingSettings(
                    learning_rate=rate, global_batch_size=8, per_device_train_batch_size=8
                ),
                output_dir=output,
                seed=SEED + seed,
            )
            fit(
                self.loaded,
                selection,
                self.rows,
                config,
                arithmetic=self.arithmetic,
                anchor=anchor,
                callbacks=[moments],
                features=self.store,
            )
        try:
            yield base, copy_tensors(model, selection.names), moments
        finally:
            set_between(model, base, base, 0.0)

    def run(self, arm: str, seed: int) -> dict[str, Any]:
        """Teach, and score along both walks; arguments as for `taught`."""
        with self.taught(arm, seed) as (base, tuned, moments):
            return self._walks(base, tuned, moments)

    def _walks(self, base: Tensors, tuned: Tensors, moments: Moments) -> dict[str, Any]:
        model = self.loaded.model
        dial: dict[str, Scores] = {"0": self.base}
        for alpha in (0.5, 1.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9):
            set_between(model, base, tuned, alpha)
            dial[f"{alpha:g}"] = self.score()
            if alpha not in (0.5, 1.0) and self.lost(dial[f"{alpha:g}"]) > ENOUGH:
                break
        stages: dict[str, Scores] = {"0": self.base}
        for step, weights in moments.kept.items():
            set_between(model, base, weights, 1.0)
            stages[str(step)] = self.score()
            if self.lost(stages[str(step)]) > ENOUGH:
                break
        return {"dial": dial, "stages": stages}


def measure(skills: Sequence[str], arms: Sequence[str], seeds: Sequence[int]) -> None:
    """Measure what is missing."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    for skill in skills:
        wanted = [(arm, seed) for seed in seeds for arm in arms]
        missing = [(arm, seed) for arm, seed in wanted if not _path(skill, arm, seed).exists()]
        if not missing:
            continue
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(skill, Path(folder))
            for arm, seed in missing:
                found = bench.run(arm, seed)
                written = json.dumps(found, separators=(",", ":")) + "\n"
                _path(skill, arm, seed).write_text(written, encoding="utf-8")
                lost = {k: round(bench.lost(v), 1) for k, v in found["dial"].items()}
                print(skill, arm, seed, lost, flush=True)


def _path(skill: str, arm: str, seed: int) -> Path:
    again = f" seed {seed}" if seed else ""
    return RESULTS / f"{skill} {arm}{again}.json".replace(" ", "_").replace("+", "and")


class Draw:
    """One user's keep sets, of items drawn from a run's, and the truth about the others."""

    def __init__(self, skill: str, base: Scores, seed: int, drawn: int | None = None) -> None:
        generator = random.Random(seed)
        self.skill, self.drawn = skill, drawn
        self.chosen = {
            name: self._choose(generator, len(scores))
            if name != skill
            else list(range(len(scores)))
            for name, scores in base.items()
        }
        self.seed = seed
        self.tasks = [self._task(name, places) for name, places in self.chosen.items()]

    def _choose(self, generator: random.Random, there: int) -> list[int]:
        if self.drawn is None:
            return sorted(generator.sample(range(there), DRAWN))
        return generator.choices(range(there), k=self.drawn)

    def _task(self, name: str, places: Sequence[int]) -> Task:
        # Every item has a picture of its own; what is asked is not kept with the scores.
        marks = [
            str(place) if self.drawn is None else f"{place} {number}"
            for number, place in enumerate(places)
        ]
        examples = tuple(
            Example(id=mark, messages=(), answers=("",), group=f"{name} {mark}") for mark in marks
        )
        role: Role = "target" if name == self.skill else "held_out"
        return Task(name, role, "exact_match", "generate", 1, examples)

    def results(self, scores: Scores, tasks: Sequence[Task] | None = None) -> list[TaskResult]:
        """Return what an evaluation would have been."""
        made = []
        for task in tasks or self.tasks:
            items = [
                ItemResult(
                    id=example.id,
                    question="",
                    answer="",
                    reference=[""],
                    group=example.group,
                    strict=scores[task.name][int(example.id.split()[0])],
                    lenient=scores[task.name][int(example.id.split()[0])],
                    valid_format=True,
                )
                for example in task.examples
            ]
            made.append(summarise(task, items, 0.0))
        return made

    def upper_bound(self, base: Scores, scores: Scores) -> float:
        """Return the one-sided 95 % bound of the loss on the drawn items, points."""
        return mean_loss(
            [
                PairedTask(
                    name, "held_out", np.array(base[name])[places], np.array(scores[name])[places]
                )
                for name, places in self.chosen.items()
                if name != self.skill
            ]
        ).upper_bound

    def true_loss(self, base: Scores, scores: Scores) -> float:
        """Return the mean loss on the items that were not drawn, or on all, points."""
        losses = []
        for name, places in self.chosen.items():
            if name != self.skill:
                others = np.arange(len(base[name]))
                if self.drawn is None:
                    others = np.setdiff1d(others, places)
                losses.append(
                    np.mean(np.array(base[name])[others]) - np.mean(np.array(scores[name])[others])
                )
        return float(100 * np.mean(losses))

    def learned(self, base: Scores, scores: Scores) -> float:
        """Return what the skill gained, points."""
        return float(100 * (np.mean(scores[self.skill]) - np.mean(base[self.skill])))


def turned(draw: Draw, walk: dict[str, Scores], budget: float) -> tuple[str, bool] | None:
    """Walk as the dial does; return the last place that passes and whether it is confirmed.

    None where the product refuses: the items could not show such a budget to be kept.
    """
    places = sorted((place for place in walk if place != "0"), key=float)
    config = RunConfig(
        model="reference",
        skill=SkillSettings(path="skill.jsonl"),
        keep=[DataSettings(path="keep.jsonl")],
        dial=DialSettings(num_steps=10),
        budget=budget,
    )
    halves = Halves(draw.tasks, DialSettings(num_steps=10), draw.seed)
    try:
        halves.check(config)
    except UsageError:
        return None
    before = draw.results(walk["0"])
    # Where measuring ended, everything after has lost far more than any budget allows.
    by_step = [places[min(n, len(places) - 1)] for n in range(10)]

    def score(alpha: float, tasks: Sequence[Task]) -> list[TaskResult]:
        return draw.results(walk[by_step[round(10 * alpha) - 1]], tasks)

    found = turn(halves, before, score, config)
    number = round(10 * found.alpha)
    place = by_step[number - 1] if number else "0"
    after = draw.results(walk[place], halves.confirming)
    verdict = decide(restrict(before, halves.confirming), after, budget=budget)
    kept = verdict.forgetting is not None and verdict.forgetting.upper_bound <= budget
    return place, kept


def draws_and_budgets(drawn: int | None) -> tuple[int, tuple[float, ...]]:
    """Return how many keep sets are drawn, and for which budgets: larger sets take longer."""
    return (DRAWS, BUDGETS) if drawn is None else (DRAWS // 10, BUDGETS[:2])


def table(drawn: int | None = None) -> None:
    """Print both tables from what was measured; of larger keep sets fewer draws, the dial alone."""
    draws, budgets = draws_and_budgets(drawn)
    ways = ("dial", "early stopping")[: 2 if drawn is None else 1]
    totals: Counter[tuple[str, float, str]] = Counter()
    sums: dict[tuple[str, float], list[tuple[float, ...]]] = {}
    worst: dict[tuple[str, float], list[int]] = {}  # draws over the budget, by training
    for skill, arm, found in _runs():
        dial, stages = found["dial"], _moments(found)
        base = dial["0"]
        # The walks of the dial that are whole up to where they were ended.
        walk = _in_turn(dial)
        for budget in budgets:
            for way in ways:
                worst.setdefault((way, budget), []).append(0)
        for number in range(draws):
            draw = Draw(skill, base, number, drawn)
            for budget in budgets:
                for way, path in zip(ways, (walk, stages), strict=False):
                    made = turned(draw, path, budget)
                    if made is None:
                        totals[way, budget, "refused"] += 1
                        continue
                    place, kept = made
                    totals[way, budget, "runs"] += 1
                    totals[way, budget, "moved"] += place != "0"
                    totals[way, budget, "kept"] += kept and place != "0"
                    over = draw.true_loss(base, path[place]) > budget
                    totals[way, budget, "over"] += over and place != "0"
                    worst[way, budget][-1] += over and place != "0"
                    sums.setdefault((f"{way} {skill} {arm}", budget), []).append(
                        (draw.learned(base, path[place]), draw.true_loss(base, path[place]))
                    )
        half, whole = dial["0.5"], dial["1"]
        draw = Draw(skill, base, 0)
        print(
            f"{skill} {arm}: all of it learned {draw.learned(base, whole):.1f}, lost "
            f"{_loss(base, whole, skill):.1f}; half learned {draw.learned(base, half):.1f}, lost "
            f"{_loss(base, half, skill):.1f}"
        )
    print(
        "way, budget | refused | runs | moved | confirmed of moved | truly over, of all | "
        "trainings with any | most in one"
    )
    for way in ways:
        for budget in budgets:
            count = {what: totals[way, budget, what] for what in ("runs", "moved", "kept", "over")}
            moved = max(1, count["moved"])
            runs = max(1, count["runs"])
            print(
                f"{way} {budget:g} | {totals[way, budget, 'refused']} | {count['runs']} | "
                f"{count['moved'] / runs:.0%} | {count['kept'] / moved:.0%} | "
                f"{count['over'] / runs:.1%} | {sum(map(bool, worst[way, budget]))} of "
                f"{len(worst[way, budget])} | {max(worst[way, budget]) / draws:.1%}"
            )
    print("way, skill, arm, budget | learned (mean) | truly lost (mean)")
    for (name, budget), values in sums.items():
        learned, lost = np.mean(values, axis=0)
        print(f"{name}, {budget:g} | {learned:.1f} | {lost:.1f}")
    if drawn is None:
        gate()


def gate() -> None:
    """Print how often a verdict contradicts what all other items say, and how often it flips."""
    print(
        "gate, budget | runs | within the budget, truly over | over the budget, truly within | "
        "neither | both said of one run"
    )
    for budget in BUDGETS:
        found: Counter[str] = Counter()
        for skill, _, run in _runs():
            base = run["dial"]["0"]
            for place, scores in run["dial"].items():
                if place == "0":
                    continue
                said = set()
                for number in range(DRAWS // 4):
                    draw = Draw(skill, base, number)
                    verdict = decide(draw.results(base), draw.results(scores), budget=budget)
                    loss = verdict.forgetting
                    assert loss is not None
                    true = draw.true_loss(base, scores)
                    within, over = loss.upper_bound <= budget, loss.lower_bound > budget
                    found["runs"] += 1
                    found["miss"] += within and true > budget
                    found["alarm"] += over and true <= budget
                    found["neither"] += not within and not over
                    said |= {"within"} if within else {"over"} if over else set()
                found["models"] += 1
                found["both"] += len(said) == 2
        print(
            f"{budget:g} | {found['runs']} | {found['miss'] / found['runs']:.1%} | "
            f"{found['alarm'] / found['runs']:.1%} | {found['neither'] / found['runs']:.0%} | "
            f"{found['both']} of {found['models']}"
        )


def early() -> None:
    """Print what other ways to keep a budget learn and lose, each on the same drawn items."""
    runs = _runs()
    whole = sum(len(_moments(found)) == 11 for _, _, found in runs)
    print(f"{len(runs)} trainings, {whole} with all ten moments; {EARLY_DRAWS} draws each")
    halves = [_loss(found["dial"]["0"], found["dial"]["0.5"], skill) for skill, _, found in runs]
    for budget in BUDGETS:
        over = sum(loss > budget for loss in halves)
        print(f"α = 0.5 loses more than {budget:g} points of all items: {over} of {len(runs)}")
    found_by: dict[tuple[str, float], list[tuple[float, float, bool]]] = {}
    for skill, _, found in runs:
        stages = _moments(found)
        base = stages["0"]
        for number in range(EARLY_DRAWS):
            draw = Draw(skill, base, number)
            bounds = {m: draw.upper_bound(base, stages[m]) for m in stages if m != "0"}
            for budget in BUDGETS:
                chosen = {"α = 0.5": found["dial"]["0.5"]}
                made = turned(draw, _in_turn(found["dial"]), budget)
                if made is not None:
                    chosen["dial"] = found["dial"][made[0]]
                for way, moment in _stops(draw, stages, bounds, budget).items():
                    chosen[way] = stages[moment]
                for way, scores in chosen.items():
                    lost = draw.true_loss(base, scores)
                    row = (draw.learned(base, scores), lost, lost > budget)
                    found_by.setdefault((way, budget), []).append(row)
    print("| budget | way | learned | truly lost | truly over, % |\n|---|---|---|---|---|")
    for (way, budget), rows in sorted(found_by.items(), key=lambda pair: pair[0][1]):
        learned, lost, over = np.mean(rows, axis=0)
        print(f"| {budget:g} | {way} | {learned:.1f} | {lost:.1f} | {100 * over:.1f} |")


def _stops(
    draw: Draw, stages: dict[str, Scores], bounds: dict[str, float], budget: float
) -> dict[str, str]:
    """Return the moment of training that each way to stop early takes; "0" is the base."""
    moments = sorted(bounds, key=int)
    passing = [m for m in moments if bounds[m] <= budget]
    unbroken = list(itertools.takewhile(lambda m: bounds[m] <= budget, moments))
    return {
        "stops at the first break": unbroken[-1] if unbroken else "0",
        "last that keeps it": passing[-1] if passing else "0",
        "most learned of those": max(
            passing, key=lambda m: draw.learned(stages["0"], stages[m]), default="0"
        ),
    }


def _moments(found: dict[str, Any]) -> dict[str, Scores]:
    """Return the base, the moments of training that were measured, and its end."""
    return {**found["stages"], str(NUM_TRAIN // 8): found["dial"]["1"]}


def _in_turn(dial: dict[str, Scores]) -> dict[str, Scores]:
    """Return the dial's walk as far as it was measured without a gap."""
    walk = {"0": dial["0"]}
    for number in range(1, 11):
        place = f"{number / 10:g}"
        if place not in dial:
            break
        walk[place] = dial[place]
    return walk


def _loss(base: Scores, scores: Scores, skill: str) -> float:
    kept = [name for name in base if name != skill]
    return float(100 * np.mean([np.mean(base[n]) - np.mean(scores[n]) for n in kept]))


def _runs() -> list[tuple[str, str, dict[str, Any]]]:
    found = []
    for path in sorted(RESULTS.glob("*.json")):
        skill, _, arm = path.stem.partition("_")
        found.append((skill, arm, json.loads(path.read_text("utf-8"))))
    return found


def main(
    measure: Callable[[Sequence[str], Sequence[str], Sequence[int]], None],
    table: Callable[[int | None], None],
    about: str | None,
    arms: Sequence[str],
    seeds: Sequence[int],
    early: Callable[[], None] | None = None,
) -> None:
    """Measure, or print; `arms` and `seeds` are those that are meant unless others are given."""
    parser = argparse.ArgumentParser(description=(about or "").splitlines()[0])
    parser.add_argument("--skills", nargs="+", default=["clock", "birds"])
    parser.add_argument("--arms", nargs="+", default=list(arms), choices=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(seeds), help="of training")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true")
    if early is not None:
        parser.add_argument("--early", action="store_true", help="the dial beside other ways")
    parser.add_argument("--drawn", type=int, help="items of a task, for the table")
    given = parser.parse_args()
    if early is not None and given.early:
        early()
        return
    if given.table:
        table(given.drawn)
        return
    keep_freed_blocks()
    torch.set_num_threads(given.threads)
    measure(given.skills, given.arms, given.seeds)


if __name__ == "__main__":
    main(measure, table, __doc__, list(ARMS), [0], early)
