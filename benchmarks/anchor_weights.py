"""How hard should the anchor hold? Recipes × weights × rates on rows that no study reports.

    python benchmarks/anchor_weights.py [--workers 2] [--output-dir runs/anchor-weights]

The protocol's skill (reading clocks) on the reference model, 1,600 rows in 200 steps of 8, drawn
with a seed of their own; learning and loss are measured on the split `validation`, so that test
rows stay untouched by what is chosen here. Anchored arms hold 2 rows a step: a quarter more rows.
One seed. Results are lines of results.jsonl in the output folder, so a stopped run goes on;
`--table` only prints them.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

from narrowtune.core.anchor_settings import AnchorSettings
from narrowtune.core.config import DriftSettings, TrainingSettings
from narrowtune.core.data_settings import DataSettings, SkillSettings
from narrowtune.core.study_settings import ArmSettings, StudySettings
from narrowtune.miniature.reference.shipped import reference_folder
from narrowtune.miniature.registry import tasks_of
from narrowtune.miniature.rows import write_rows
from narrowtune.study.results import read_results
from narrowtune.study.workers import results_path, run_study
from narrowtune.study.world import GENERAL, write_general

SKILL, SEED = "clock", 5
NUM_TRAIN, NUM_SKILL, NUM_KEPT, NUM_PROMPTS = 1600, 200, 48, 256
ANCHOR_SEED, DRIFT_SEED = 105, 106

RATES = {
    "language_model": (3e-4, 5.5e-4, 1e-3, 3e-3),
    "sa_proj": (3e-4, 1e-3, 3e-3),
    "mlp_gate_up": (1e-3, 3e-3, 5.5e-3, 1e-2),
    "sa_proj+mlp_gate_up": (3e-4, 1e-3, 3e-3),
}
WEIGHTS = (0.0, 0.3, 1.0)
"""Of the KL term; 0 is without an anchor."""


def make_settings(output_dir: Path) -> StudySettings:
    """Return the study; its rows are written if they are not there."""
    world = output_dir / "world"
    train = write_rows(world, SKILL, "train", NUM_TRAIN, SEED)
    test = write_rows(world, SKILL, "validation", NUM_SKILL, SEED)
    keep: list[DataSettings] = [
        write_rows(world, task.name, "validation", NUM_KEPT, SEED) for task in tasks_of("held_out")
    ]
    anchor, drift = world / "anchor.jsonl", world / "drift.jsonl"
    write_general(anchor, GENERAL, NUM_PROMPTS, ANCHOR_SEED)
    write_general(drift, GENERAL[:1], 32, DRIFT_SEED)
    arms = [
        ArmSettings(
            recipe=recipe,
            name=f"{recipe} + anchor {weight:g}" if weight else recipe,
            learning_rates=list(rates),
            anchor=AnchorSettings(
                prompts=str(anchor), weight=weight, rows_per_step=2, earlier_skills=0
            )
            if weight
            else None,
        )
        for weight in WEIGHTS
        for recipe, rates in RATES.items()
    ]
    return StudySettings(
        model=str(reference_folder("qwen2_5_vl")),
        skills=[SkillSettings(**train.model_dump(), validation=0, test_path=test.path)],
        keep=keep,
        arms=arms,
        training=TrainingSettings(global_batch_size=8, per_device_train_batch_size=8),
        drift=DriftSettings(prompts=str(drift), max_prompts=32),
        output_dir=str(output_dir),
    )


def print_table(settings: StudySettings) -> None:
    """Print learning, mean loss of the kept tasks, and seconds, per arm and rate."""
    results = read_results(results_path(settings))
    base = next(result for result in results if result.stage == 0)
    rows: dict[str, dict[float, str]] = defaultdict(dict)
    for result in results:
        if result.stage == 0:
            continue
        learned = result.tasks[SKILL].mean
        lost = [
            before.mean - result.tasks[name].mean
            for name, before in base.tasks.items()
            if name != SKILL
        ]
        cell = f"{100 * learned:.0f} / {100 * sum(lost) / len(lost):.1f} ({result.seconds:.0f} s)"
        rows[result.chain.arm][result.chain.learning_rate] = cell
    for arm, cells in rows.items():
        print(f"{arm:40s}", "  ".join(f"{rate:g}: {cell}" for rate, cell in sorted(cells.items())))


def main() -> None:
    """Run what is missing, or print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output-dir", type=Path, default=Path("runs/anchor-weights"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    settings = make_settings(arguments.output_dir)
    if not arguments.table:
        run_study(
            settings,
            lambda result, left: print(f"{result.chain}; {left} left", flush=True),
            num_workers=arguments.workers,
        )
    print_table(settings)


if __name__ == "__main__":
    main()
