"""Recipes side by side on SmolLM2: frontiers of forgetting against learning.

    python benchmarks/recipes.py --data DIR            # writes the data, then runs what is missing
    python benchmarks/recipes.py --table               # only prints the tables from the results

The protocol, fixed before the first run, stands in recipes_protocol.py. Every run is one line of
runs.jsonl, so a stopped benchmark goes on where it was. Seconds and peak memory come from a pass of
their own in which nothing else runs (`--cost`).
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from recipes_protocol import (
    ARMS,
    DECIDING,
    EVERY_SEED,
    FURTHER,
    GRID,
    HELD,
    SEEDS,
    Arm,
    Job,
    job_of,
    next_jobs,
    read_runs,
)
from recipes_table import print_tables

from narrowtune.core.json_lines import append_json_line

RESULTS = Path(__file__).parent / "results" / "recipes"
NUM_TRAIN, NUM_VALIDATION, NUM_TEST = 640, 200, 300
ANCHOR_TOKENS = 12
NUM_SOME = 32
"""Items of each held-out kind where not all of them are asked."""


class Bench:
    """A model in memory, and everything that all runs share."""

    def __init__(self, data: Path, device: str, batch_size: int, threads: int | None) -> None:
        import torch
        import transformers

        from narrowtune.core.config import DataSettings, RunConfig
        from narrowtune.core.results import TaskResult
        from narrowtune.data.rows import read_rows
        from narrowtune.demo.weights import smollm2_folder
        from narrowtune.evaluate.tasks import make_task
        from narrowtune.models.load import load_model
        from narrowtune.pipeline.inputs import make_encoder

        transformers.logging.disable_progress_bar()
        self.batch_size = batch_size
        settings = json.loads((data / "settings.json").read_text())
        self.loaded = load_model(str(smollm2_folder()), device=device)
        self.base = {n: p.detach().clone() for n, p in self.loaded.model.named_parameters()}
        self.config = RunConfig.model_validate(
            {
                "model": "SmolLM2",
                "skill": {"path": "unused"},
                "eval_batch_size": batch_size,
                "training": {"global_batch_size": 16, "per_device_train_batch_size": 16},
            }
        )
        self.encoder = make_encoder(self.loaded, self.config)
        self.pools = [
            read_rows(DataSettings(path=str(data / f"train_{seed}.jsonl"))).examples
            for seed in EVERY_SEED
        ]
        skill = {key: settings["skill"][key] for key in ("metric", "max_new_tokens")}

        def task(path: Path, role: str, **fields: Any) -> Any:
            chosen = DataSettings(path=str(path), **fields)
            return make_task(chosen, read_rows(chosen).examples, role)  # type: ignore[arg-type]

        self.validation = task(data / "validation.jsonl", "target", name="validation", **skill)
        self.test = task(data / "test.jsonl", "target", name="counting", **skill)
        self.kept, self.some = (
            [
                task(
                    data / "keep" / f"{keep['name']}.jsonl", "held_out", **{**keep, "limit": limit}
                )
                for keep in settings["keep"]
            ]
            for limit in (None, NUM_SOME)
        )
        self.deciding = [
            whole if whole.name in DECIDING else some
            for whole, some in zip(self.kept, self.some, strict=True)
        ]
        self.arithmetic = self._arithmetic(data / "arithmetic.json", threads)
        self._anchor: Any = None
        self.torch = torch
        path = data / "base.json"
        if not path.exists():
            scores = self._score([self.validation, self.test, *self.kept])
            rows = {name: result.model_dump(mode="json") for name, result in scores.items()}
            path.write_text(json.dumps(rows), encoding="utf-8")
        base = json.loads(path.read_text(encoding="utf-8"))
        self.before = {name: TaskResult.model_validate(row) for name, row in base.items()}

    def _arithmetic(self, path: Path, threads: int | None) -> Any:
        """Return the arithmetic of the first start, so that every run has the same."""
        from narrowtune.engine.arithmetic import Arithmetic, measure_arithmetic

        if not path.exists():
            requested = "float32" if self.loaded.model.device.type == "cuda" else "auto"
            measured = measure_arithmetic(self.loaded.model, requested=requested)  # type: ignore[arg-type]
            path.write_text(measured.to_json(), encoding="utf-8")
        arithmetic = Arithmetic.from_json(path.read_text(encoding="utf-8"))
        return arithmetic.model_copy(update={"threads": threads} if threads else {})

    def _score(self, tasks: Sequence[Any]) -> dict[str, Any]:
        import torch

        from narrowtune.engine.arithmetic import apply_arithmetic
        from narrowtune.evaluate.evaluate import evaluate
        from narrowtune.pipeline.stages import measure_tolerance
        from narrowtune.train.masters import computing_in

        with apply_arithmetic(self.arithmetic), computing_in(self.loaded.model, torch.float32):
            tolerance = measure_tolerance(self.loaded, tasks, self.encoder)
            return {
                task.name: evaluate(
                    self.loaded,
                    task,
                    self.encoder,
                    batch_size=self.batch_size,
                    tolerance=tolerance,
                )
                for task in tasks
            }

    def anchor(self, arm: Arm) -> Any:
        """Return the base's answers to the prompts that ship, computed once."""
        from narrowtune.core.anchor_settings import AnchorSettings
        from narrowtune.pipeline.prompts import read_anchor_prompts
        from narrowtune.train.anchor import build_anchor
        from narrowtune.train.masters import computing_in

        if self._anchor is None:
            settings = AnchorSettings(max_new_tokens=ANCHOR_TOKENS)
            kept = [example for task in self.kept for example in task.examples]
            prompts = read_anchor_prompts(settings, self.encoder, [], kept)
            with computing_in(self.loaded.model, self.torch.float32):
                self._anchor = build_anchor(
                    self.loaded,
                    self.encoder,
                    prompts.messages,
                    settings,
                    batch_size=self.batch_size,
                    seed=0,
                )
        anchor = copy.copy(self._anchor)
        anchor.weight, anchor.projection = arm.weight, arm.projection
        anchor.rows_per_step = arm.rows
        return anchor

    def fit(self, job: Job, max_steps: int = -1) -> Any:
        """Train; the caller restores the base."""

        from narrowtune.engine.arithmetic import apply_arithmetic
        from narrowtune.models.select import resolve
        from narrowtune.train.fit import fit

        training = {
            "learning_rate": GRID[job.exponent],
            "max_steps": max_steps,
            "pull_to_base": job.pull,
        }
        rows = [self.encoder.encode(example) for example in self.pools[job.seed]]
        with tempfile.TemporaryDirectory() as folder, apply_arithmetic(self.arithmetic):
            config = self.config.model_copy(
                update={
                    "training": self.config.training.model_copy(update=training),
                    "seed": job.seed,
                    "recipe": job.recipe,
                    "output_dir": folder,
                }
            )
            anchor = self.anchor(job.arm) if job.weight else None
            return fit(
                self.loaded,
                resolve(self.loaded.model, job.recipe),
                rows,
                config,
                arithmetic=self.arithmetic,
                anchor=anchor,
            )

    def restore(self) -> None:
        """Put the base back, bit for bit."""
        with self.torch.no_grad():
            for name, parameter in self.loaded.model.named_parameters():
                parameter.data = parameter.data.to(self.base[name].dtype)
                parameter.copy_(self.base[name])

    def run(self, job: Job) -> dict[str, Any]:
        """Train, score, probe, restore; return the run's line."""
        from narrowtune.core.config import DriftSettings
        from narrowtune.core.provenance import hardware
        from narrowtune.engine.arithmetic import apply_arithmetic
        from narrowtune.evaluate.verdict import compare_results, decide
        from narrowtune.models.swap import WeightSwap
        from narrowtune.pipeline.prompts import read_free_prompts
        from narrowtune.probe.drift import measure_drift
        from narrowtune.train.masters import computing_in

        grid = job.stage == "grid"
        skill = self.validation if grid else self.test
        whole = job.stage in ("kept", "whole") or (job.stage == "result" and job.seed == 0)
        whole |= job.stage == "further" and job.arm == FURTHER
        kept = self.kept if whole else self.deciding if job.arm in HELD and grid else self.some
        fitted = self.fit(job)
        after = self._score([skill, *kept])
        drift = None
        if not grid:
            prompts = read_free_prompts(DriftSettings(), self.encoder, 50, "drift.prompts")
            share = 50 // len(self.kept) + 1
            prompts += [(t.name, e.prompt) for t in self.some for e in t.examples[:share]][:50]
            with (
                apply_arithmetic(self.arithmetic),
                computing_in(self.loaded.model, self.torch.float32),
            ):
                drift = measure_drift(
                    self.loaded,
                    WeightSwap(self.loaded.model, fitted.base),
                    prompts,
                    self.encoder,
                    max_new_tokens=32,
                    batch_size=self.batch_size,
                    skill_answers={e.answers[0] for e in self.pools[job.seed]},
                ).result.model_dump()
        self.restore()
        now = list(after.values())
        before = [restrict(self.before[result.name], result) for result in now]
        return {
            "job": list(job),
            "learning_rate": GRID[job.exponent],
            "skill": now[0].strict.mean,
            "verdict": decide(before, now, budget=5.0).model_dump(),
            "tasks": [change.model_dump() for change in compare_results(before, now)],
            "drift": drift,
            "training": fitted.summary.model_dump(),
            "device": hardware().get("accelerators") or hardware().get("cpu"),
            "compute_dtype": self.arithmetic.compute_dtype,
            "num_held_out": sum(result.num_items for result in now[1:]),
            "items": {
                result.name: {
                    "group": [item.group for item in result.items],
                    "before": [item.strict for item in earlier.items],
                    "after": [item.strict for item in result.items],
                }
                for earlier, result in zip(before, now, strict=True)
            },
        }

    def cost(self, arm: Arm, steps: int) -> dict[str, Any]:
        """Time some steps with nothing else running."""
        job = job_of(arm, 0, 0)
        if arm.weight:
            self.anchor(arm)
        summary = self.fit(job, max_steps=steps).summary
        self.restore()
        return {
            "arm": str(arm),
            "device": self.loaded.model.device.type,
            "steps": summary.num_steps,
            "seconds_per_step": summary.seconds / summary.num_steps,
            "peak_memory_bytes": summary.peak_memory_bytes,
            "compute_dtype": summary.compute_dtype,
            "load_average": os.getloadavg()[0],
        }


def restrict(result: Any, other: Any) -> Any:
    """Return `result` on the items of `other` alone."""
    from narrowtune.evaluate.statistics import mean_score

    ids = {item.id for item in other.items}
    items = [item for item in result.items if item.id in ids]
    groups = [item.group for item in items]
    changed = {
        "items": items,
        "num_items": len(items),
        "strict": mean_score([item.strict for item in items], groups),
        "lenient": mean_score([item.lenient for item in items], groups),
        "valid_format": sum(item.valid_format for item in items) / len(items),
    }
    return result.model_copy(update=changed)


def write_data(folder: Path) -> None:
    """Write every row that the benchmark uses; the same bytes on every machine."""
    from narrowtune.demo.files import write_demo_data
    from narrowtune.demo.keep import KINDS

    total = NUM_TRAIN * len(SEEDS)
    made = write_demo_data(
        folder,
        num_train=total,
        num_validation=NUM_VALIDATION,
        num_test=NUM_TEST,
        kinds=tuple(KINDS),
        seed=7,
    )
    rows = Path(made.skill.path).read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "validation.jsonl").write_text("".join(rows[:NUM_VALIDATION]), encoding="utf-8")
    for seed in SEEDS:
        start = NUM_VALIDATION + seed * NUM_TRAIN
        part = rows[start : start + NUM_TRAIN]
        (folder / f"train_{seed}.jsonl").write_text("".join(part), encoding="utf-8")
    Path(str(made.skill.test_path)).rename(folder / "test.jsonl")
    _write_further_rows(folder, rows)
    settings = {
        "skill": made.skill.model_dump(mode="json"),
        "keep": [
            {
                key: value
                for key, value in keep.model_dump(mode="json").items()
                if key in ("name", "metric", "mode", "max_new_tokens")
            }
            for keep in made.keep
        ],
    }
    (folder / "settings.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")


def _write_further_rows(folder: Path, known: Sequence[str]) -> None:
    """Write rows for the seeds that came later, none of which asks what an earlier row asks.

    Drawn anew: a larger first draw would have other rows throughout.
    """
    from narrowtune.demo.files import write_demo_data

    lines = [*known, *(folder / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    groups = {json.loads(line)["group"] for line in lines}
    further = EVERY_SEED[len(SEEDS) :]
    with tempfile.TemporaryDirectory() as other:
        wanted = 2 * NUM_TRAIN * len(further)
        made = write_demo_data(Path(other), num_train=wanted, num_validation=0, num_test=1, seed=8)
        drawn = Path(made.skill.path).read_text(encoding="utf-8").splitlines(keepends=True)
    rows = [line for line in drawn if json.loads(line)["group"] not in groups]
    for place, seed in enumerate(further):
        part = rows[place * NUM_TRAIN : (place + 1) * NUM_TRAIN]
        assert len(part) == NUM_TRAIN, "fewer rows than seeds need"
        (folder / f"train_{seed}.jsonl").write_text("".join(part), encoding="utf-8")


_BENCH: Bench | None = None


def _start(*args: Any) -> None:
    global _BENCH
    from narrowtune.engine.heap import keep_freed_blocks

    # Between runs of different recipes the heap of a worker otherwise grew to 10 GB.
    keep_freed_blocks()
    _BENCH = Bench(*args)


def _run(job: Job) -> dict[str, Any]:
    assert _BENCH is not None
    return _BENCH.run(job)


def _cost(arm: Arm, steps: int) -> dict[str, Any]:
    assert _BENCH is not None
    return _BENCH.cost(arm, steps)


def _cost_alone(args: argparse.Namespace, arm: Arm) -> dict[str, Any]:
    """Time an arm in a process of its own: what another left in memory would count as its peak."""
    bench_args = (args.data, args.device, args.batch_size, None)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, _start, bench_args) as pool:
        return pool.submit(_cost, arm, args.cost).result()


def run_all(args: argparse.Namespace) -> None:
    """Run what the protocol still asks for, as many runs at once as there are workers."""
    path = args.results / "runs.jsonl"
    started = time.monotonic()
    # The base's answers once, before there are workers to wait for them.
    Bench(args.data, args.device, args.batch_size, None)
    threads = max(1, (os.cpu_count() or 1) // args.workers)
    bench_args = (args.data, args.device, args.batch_size, threads)
    with ProcessPoolExecutor(
        args.workers, multiprocessing.get_context("spawn"), _start, bench_args
    ) as pool:
        while jobs := next_jobs(read_runs(path)):
            names = ", ".join(f"{job.arm} {GRID[job.exponent]:g} s{job.seed}" for job in jobs)
            print(f"{len(jobs)} runs: {names}", flush=True)
            for done in as_completed([pool.submit(_run, job) for job in jobs]):
                run = done.result()
                append_json_line(path, json.dumps(run))
                print(describe(run), f"{time.monotonic() - started:.0f} s", flush=True)
                if args.max_seconds and time.monotonic() - started > args.max_seconds:
                    print("time is up; run it again to go on")
                    pool.shutdown(wait=False, cancel_futures=True)
                    return
    print("complete")


def describe(run: dict[str, Any]) -> str:
    """Return a run in one line."""
    verdict, drift = run["verdict"], run["drift"]
    kl = f"KL {drift['kl_base_tuned']:.3f}" if drift else ""
    arm = Job(*run["job"]).arm
    learning, forgetting = (verdict[key]["value"] for key in ("learning", "forgetting"))
    return (
        f"{run['job'][4]:6} {arm!s:26} {run['learning_rate']:7g} s{run['job'][3]} "
        f"skill {run['skill']:6.1%} learning {learning:5.1f} "
        f"forgetting {forgetting:5.1f} {kl} {verdict['outcome']}"
    )


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("runs/recipes-data"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=64, help="of evaluation")
    parser.add_argument("--max-seconds", type=float, help="stop after the run that reaches this")
    parser.add_argument("--cost", type=int, metavar="STEPS", help="time so many steps of every arm")
    parser.add_argument("--write-data", action="store_true", help="write the data and stop")
    parser.add_argument("--table", action="store_true", help="print the tables and stop")
    args = parser.parse_args()
    if args.table:
        print_tables(args.results)
        return
    if not (args.data / "settings.json").exists():
        write_data(args.data)
    if args.write_data:
        return
    if args.cost:
        rows = [_cost_alone(args, arm) for arm in ARMS]
        out = args.results / f"cost_{rows[0]['device']}.json"
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
        print(out.read_text())
        return
    run_all(args)


if __name__ == "__main__":
    main()
