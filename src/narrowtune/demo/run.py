"""The demo: one skill, taught plainly and with the anchor, on a real model.

The same rows, the same order, the same number of steps; then the same questions before and after,
and what the two runs broke, side by side.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from narrowtune.core.config import RunConfig
from narrowtune.core.errors import UsageError
from narrowtune.core.numbers import moved
from narrowtune.core.results import RunRecord
from narrowtune.core.run_folder import COMPARISON
from narrowtune.demo.files import DemoData, write_demo_data
from narrowtune.demo.weights import NOTE, smollm2_folder
from narrowtune.pipeline.teach import teach
from narrowtune.report.comparison import build_comparison
from narrowtune.report.terminal import summary_lines

BUDGET = 5.0
RECIPE = "mlp_gate_up"

_MARKER = ".narrowtune-demo"
_COMPARED = {Path(name).parts[0] for name in COMPARISON}
_NAMES = {"data", "plain", "anchored", *_COMPARED, _MARKER}


@dataclass(frozen=True)
class Size:
    """How much work the demo does."""

    num_train: int
    num_test: int
    keep_items: int
    drift_prompts: int


FULL = Size(num_train=640, num_test=120, keep_items=100, drift_prompts=40)
QUICK = Size(num_train=64, num_test=16, keep_items=12, drift_prompts=10)


def run_demo(folder: Path, *, seed: int, quick: bool, console: Console) -> list[RunRecord]:
    """Teach counting twice, print both verdicts, and write a comparison.

    An earlier demo in `folder` is replaced.

    Args:
        folder: gets data/, plain/, anchored/ and comparison.html.
        seed: of the data and the runs.
        quick: a tenth of the work, to see the flow.
        console: where to say what happens.

    Raises:
        UsageError: the folder holds something that is not a demo's.
    """
    size = QUICK if quick else FULL
    _clear(folder)
    console.print(f"[bold]narrowtune demo[/]: teach counting, keep the rest. {NOTE}")
    model = smollm2_folder()
    data = write_demo_data(
        folder / "data",
        num_train=size.num_train,
        num_validation=0,
        num_test=size.num_test,
        keep_items=size.keep_items,
        seed=seed,
    )
    records = []
    for name, anchored in (("plain", False), ("anchored", True)):
        console.rule(f"counting, {RECIPE}, {name}")
        config = _config(model, data, folder / name, anchored, size, seed)
        if records:
            # One arithmetic for both: the comparison is fair, and the base's scores are known.
            (folder / name).mkdir()
            shutil.copy(folder / records[0].name / "arithmetic.json", folder / name)
        record = teach(config, console=console)
        assert record is not None, "the demo runs in one process"
        for line in summary_lines(record):
            console.print(line)
        records.append(record)
    path = build_comparison([folder / "plain", folder / "anchored"], folder)
    console.rule("what each broke")
    for record in records:
        console.print(_sentence(record))
    console.print(f"Side by side: {path}", markup=False, soft_wrap=True)
    for name in ("plain", "anchored"):
        report = folder / name / "report.html"
        console.print(f"Report: {report}", markup=False, soft_wrap=True)
    return records


def _config(
    model: Path, data: DemoData, folder: Path, anchored: bool, size: Size, seed: int
) -> RunConfig:
    return RunConfig.model_validate(
        {
            "model": str(model),
            "recipe": RECIPE,
            "skill": data.skill.model_dump(),
            "keep": [keep.model_dump() for keep in data.keep],
            "anchor": anchored or None,
            "drift": {"max_prompts": size.drift_prompts, "max_new_tokens": 16},
            "training": {"learning_rate": 1e-4, "global_batch_size": 16},
            "budget": BUDGET,
            "eval_batch_size": 64,
            "output_dir": str(folder),
            "seed": seed,
        }
    )


def _sentence(record: RunRecord) -> str:
    verdict, drift = record.verdict, record.drift
    assert verdict is not None
    assert drift is not None
    assert verdict.learning is not None
    assert verdict.forgetting is not None
    numbers = next(group for group in drift.token_groups if group.name == "numbers")
    lost = ", ".join(
        f"{task.name} {100 * task.before.mean:.0f} → {100 * task.after.mean:.0f} %"
        for task in record.tasks
        if task.role == "held_out"
    )
    return (
        f"[bold]{record.name}[/]: the skill {moved(-verdict.learning.value)}, the held-out "
        f"tasks {moved(verdict.forgetting.value)} on average ({lost}); number tokens' "
        f"mass on prompts that ask for no number {numbers.base_mass:.3f} → "
        f"{numbers.tuned_mass:.3f}; "
        f"[bold]{verdict.outcome.replace('_', ' ')}[/] at a budget of {verdict.budget:g} points"
    )


def _clear(folder: Path) -> None:
    """Remove an earlier demo; a folder that holds anything beside it is left alone.

    Raises:
        UsageError: there is something that no demo wrote.
    """
    marker = folder / _MARKER
    there = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    others = [name for name in there if name not in _NAMES]
    if others or (there and not marker.exists()):
        named = ", ".join((others or there)[:3])
        raise UsageError(
            asked=f"a demo in {folder}",
            found=f"what no demo wrote there: {named}",
            do="choose another --output-dir, or move that away",
        )
    for path in [folder / name for name in there]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    marker.touch()
