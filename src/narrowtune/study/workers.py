"""Several chains of a study at once, each in a process of its own.

Owns: the processes and the one file that they write to. Small models use one core well and two
badly, so that as many processes as cores are quicker there than threads are.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing.synchronize import Lock
from pathlib import Path
from typing import NamedTuple

from narrowtune.core.study_settings import StudySettings
from narrowtune.engine.heap import keep_freed_blocks
from narrowtune.models.fingerprint import fingerprint
from narrowtune.pipeline.inputs import load
from narrowtune.study.chains import Chain, all_chains, open_chains
from narrowtune.study.identity import check_metrics, hold_to
from narrowtune.study.results import BASE, StageResult, append_result, by_chain, read_results
from narrowtune.study.run import Study, known_arithmetic, remember_arithmetic

Report = Callable[[StageResult, int], None]
"""Is given each result and how many stages are still to come."""


class _Worker(NamedTuple):
    study: Study
    path: Path
    lock: Lock


_WORKER: _Worker | None = None


RESULTS = "results.jsonl"
"""A line for every stage, in the study's folder."""


def results_path(settings: StudySettings) -> Path:
    """Return where a study's results are."""
    return Path(settings.output_dir) / RESULTS


def run_study(settings: StudySettings, report: Report, *, num_workers: int = 1) -> None:
    """Run what is missing of a study.

    Args:
        settings: what was asked for. A study may be given more arms, rates, orders or seeds later;
            what was run stays.
        report: is told of every stage.
        num_workers: chains at a time.

    Raises:
        UsageError: results are there that were made with something else.
        NarrowtuneError: of the first chain that fails; results of others stay.
    """
    path = results_path(settings)
    results = read_results(path)
    # Whoever scores the base reads and encodes every row; who goes on later does it again.
    if whole := _base_is_whole(settings, results):
        hold_to(settings, fingerprint(load(settings).model), begun=True)
    else:
        study = Study(settings, arithmetic=known_arithmetic(Path(settings.output_dir)))
        hold_to(settings, fingerprint(study.loaded.model), begun=bool(results))
        remember_arithmetic(Path(settings.output_dir), study.arithmetic)
        base = study.score_base()
        append_result(path, base)
        del study
        results = [*(result for result in results if result.chain.arm != BASE), base]
        report(base, _num_open(open_chains(list(all_chains(settings)), results), results))
    chains = open_chains(list(all_chains(settings)), results)
    if not chains:
        return
    known = by_chain(results)
    threads = max(1, (os.cpu_count() or 1) // num_workers)
    spawn = multiprocessing.get_context("spawn")
    given = (settings, path, threads, spawn.Lock(), not whole)
    with ProcessPoolExecutor(min(num_workers, len(chains)), spawn, _start, given) as pool:
        futures = [pool.submit(_run, chain, len(known.get(chain.key, ()))) for chain in chains]
        try:
            for future in as_completed(futures):
                for result in future.result():
                    results.append(result)
                    report(result, _num_open(chains, results))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _base_is_whole(settings: StudySettings, results: Sequence[StageResult]) -> bool:
    """Whether the base has every score asked for; skills and `constrained` may be new."""
    base = next((result for result in results if result.chain.arm == BASE), None)
    return (
        base is not None
        and all(skill.label in base.tasks for skill in settings.skills)
        and (base.constrained is not None or not settings.constrained)
    )


def _num_open(chains: Sequence[Chain], results: Sequence[StageResult]) -> int:
    # A stage that had to be run again is there twice.
    known = {(result.chain, result.stage) for result in results}
    return sum(
        (chain.key, stage) not in known
        for chain in chains
        for stage in range(1, len(chain.skills) + 1)
    )


def _start(settings: StudySettings, path: Path, threads: int, lock: Lock, checked: bool) -> None:
    global _WORKER
    keep_freed_blocks()
    arithmetic = known_arithmetic(Path(settings.output_dir))
    if arithmetic is not None:
        arithmetic = arithmetic.model_copy(update={"threads": threads})
    study = Study(settings, arithmetic=arithmetic, threads=threads, checked=checked)
    _WORKER = _Worker(study, path, lock)


def _run(chain: Chain, num_done: int) -> list[StageResult]:
    assert _WORKER is not None
    worker, found = _WORKER, []
    check_metrics(worker.study.settings)

    def report(result: StageResult) -> None:
        with worker.lock:
            append_result(worker.path, result)
        found.append(result)

    worker.study.run(chain, num_done, report)
    return found
