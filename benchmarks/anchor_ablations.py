"""What of the anchor matters: its prompts, how many, how often, how long; and what else would do.

    python benchmarks/anchor_ablations.py [--workers 2] [--skill birds]
    python benchmarks/anchor_ablations.py --table

`mlp_gate_up` on the reference model, 1,600 rows of a skill in 200 steps of 8, at two rates: one at
which it loses a little without an anchor and one at which it loses much. One thing at a time
differs from the anchor as it is by default but for two rows a step: 256 prompts of four kinds, the
first 12 tokens of the base's answers, weight 1, KL over all 1,544 words of the vocabulary. The
prompts that ship with the package are tried too: the texts alone, and half of them with pictures,
as a model with eyes gets them. Beside it what else holds a model: labelled replay of as many rows
(a quarter more, so 250 steps), LwF on the skill's own rows, WiSE-FT, a lower rate. Two seeds. Rows
are those of the split `validation`, drawn with a seed of their own, so that no row that a study
reports decides anything here. Results are lines of results.jsonl, so a stopped run goes on.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from narrowtune.core.config import DriftSettings, TrainingSettings
from narrowtune.core.data_settings import DataSettings, SkillSettings
from narrowtune.core.study_settings import ArmSettings, StudySettings
from narrowtune.miniature.reference.shipped import reference_folder
from narrowtune.miniature.registry import tasks_of
from narrowtune.miniature.rows import write_rows
from narrowtune.pipeline.prompts import SHIPPED_TEXTS, shipped_prompts
from narrowtune.study.correlations import correlate, points_in
from narrowtune.study.results import read_results
from narrowtune.study.tables import Point
from narrowtune.study.workers import run_study
from narrowtune.study.world import GENERAL, write_general

SKILLS = ("clock", "birds")
SEED, ANCHOR_SEED, DRIFT_SEED, REPLAY_SEED = 5, 105, 106, 107
NUM_TRAIN, NUM_SKILL, NUM_KEPT, NUM_PROMPTS, NUM_REPLAYED = 3200, 200, 48, 256, 400
RATES = (3e-3, 5.5e-3)
SEEDS = (0, 1)

PROMPTS = {
    "general": GENERAL,
    "captions": GENERAL[:1],
    "letters": (*GENERAL, "choices", "tallies"),
    "pages": ("pages",),
}
"""Tasks that prompts are drawn from: the four of the study; one of them; those and two that ask for
an option's letter and for a number; one that is like nothing that is kept."""

HOW = {"rows_per_step": 2, "earlier_skills": 0}
"""Of every anchor; no skill is taught before another."""


def arms(world: Path) -> Iterator[ArmSettings]:
    """Yield the anchor as it is by default, and everything that differs from it in one thing."""

    def anchor(name: str, prompts: str = "general", **changes: Any) -> ArmSettings:
        path = str(world / f"prompts-{prompts}.jsonl")
        return arm(name, anchor={"prompts": path, **HOW, **changes})

    yield arm("nothing")
    yield anchor("anchor")
    for number in (16, 64):
        yield anchor(f"{number} prompts", max_prompts=number)
    for rows in (1, 4):
        yield anchor(f"{rows} rows a step", rows_per_step=rows)
    for tokens in (1, 3, 32):
        yield anchor(f"{tokens} tokens", max_new_tokens=tokens)
    for weight in (0.3, 4.0):
        yield anchor(f"weight {weight:g}", weight=weight)
    for words in (1, 16, 256):
        yield anchor(f"top {words}", top_k=words)
    for prompts in ("captions", "letters", "pages"):
        yield anchor(f"prompts: {prompts}", prompts)
    texts = str(shipped_prompts(SHIPPED_TEXTS))
    yield arm("prompts: texts that ship", anchor={"prompts": texts, **HOW})
    yield arm("prompts: those that ship", anchor=dict(HOW))
    yield arm("replay", mix=[{"path": str(world / "replay.jsonl"), "share": 0.25}])
    for weight in (0.1, 1.0):
        yield arm(f"LwF {weight:g}", distillation={"weight": weight})
    yield arm("WiSE-FT 0.5", wise_ft=0.5)
    yield arm("a third of the rate", rates=[rate / 3 for rate in RATES])


def arm(name: str, *, rates: list[float] | None = None, **changes: Any) -> ArmSettings:
    """Return `mlp_gate_up` with something added."""
    values = {"recipe": "mlp_gate_up", "name": name, "learning_rates": rates or list(RATES)}
    return ArmSettings.model_validate({**values, **changes})


def make_settings(output_dir: Path, skill: str) -> StudySettings:
    """Write a skill's rows, the same each time, and return its study."""
    world = output_dir / "world"
    train = write_rows(world, skill, "train", NUM_TRAIN, SEED)
    test = write_rows(world, skill, "validation", NUM_SKILL, SEED)
    keep: list[DataSettings] = [
        write_rows(world, task.name, "validation", NUM_KEPT, SEED) for task in tasks_of("held_out")
    ]
    for name, tasks in PROMPTS.items():
        write_general(world / f"prompts-{name}.jsonl", tasks, NUM_PROMPTS, ANCHOR_SEED)
    write_general(world / "drift.jsonl", GENERAL[:1], 32, DRIFT_SEED)
    write_general(world / "replay.jsonl", GENERAL, NUM_REPLAYED, REPLAY_SEED, labelled=True)
    return StudySettings(
        model=str(reference_folder("qwen2_5_vl")),
        skills=[SkillSettings(**train.model_dump(), validation=0, test_path=test.path)],
        keep=keep,
        arms=list(arms(world)),
        seeds=list(SEEDS),
        num_samples=NUM_TRAIN // 2,
        training=TrainingSettings(global_batch_size=8, per_device_train_batch_size=8),
        drift=DriftSettings(prompts=str(world / "drift.jsonl"), max_prompts=32),
        output_dir=str(output_dir),
    )


def print_table(folder: Path) -> None:
    """Print what each arm learned and lost at each rate, mean of the seeds, and its seconds."""
    results = read_results(folder / "results.jsonl")
    seconds = {result.chain: result.seconds for result in results}
    points: dict[str, dict[float, list[Point]]] = defaultdict(lambda: defaultdict(list))
    for point in points_in([results]):
        points[point.chain.arm][point.chain.learning_rate].append(point)
    print(f"{folder.name}: learned / lost in points (each seed's), × the seconds of nothing's")
    for name, rates in points.items():
        cells = []
        for place, (rate, found) in enumerate(sorted(rates.items())):
            each = ", ".join(f"{p.learning:.0f}/{p.forgetting:.1f}" for p in found)
            plain = sorted(points["nothing"].items())[place][1]
            ratio = fmean(seconds[p.chain] for p in found) / fmean(seconds[p.chain] for p in plain)
            learned = fmean(p.learning for p in found)
            lost = fmean(p.forgetting for p in found)
            cells.append(f"{rate:g}: {learned:.1f} / {lost:.1f} ({each}) × {ratio:.2f}")
        print(f"{name:22s}", "   ".join(cells))
    every = [p for rates in points.values() for found in rates.values() for p in found]
    print(correlate(every, "KL"))


def main() -> None:
    """Run what is missing, or print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output-dir", type=Path, default=Path("runs/anchor-ablations"))
    parser.add_argument("--skill", choices=SKILLS, action="append", help="both unless given")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    for skill in given.skill or SKILLS:
        folder = given.output_dir / skill
        if not given.table:
            run_study(
                make_settings(folder, skill),
                lambda result, left: print(f"{result.chain}; {left} left", flush=True),
                num_workers=given.workers,
            )
        print_table(folder)


if __name__ == "__main__":
    main()
