"""What scoring would take, from one batch of each task."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch

from narrowtune.core.config import RunConfig
from narrowtune.engine.generate import generate_greedy
from narrowtune.engine.options import option_logprobs
from narrowtune.models.load import LoadedModel
from narrowtune.train.masters import computing_in
from narrowtune.train.workload import TaskLoad

_ENOUGH_SECONDS = 10.0  # of measuring


def evaluation_seconds(
    loaded: LoadedModel, config: RunConfig, tasks: Sequence[TaskLoad], on_cpu: bool
) -> float | None:
    """Answer one batch of each task, and multiply; None where nothing is scored.

    Once this has taken a while, the tasks that are left are taken to need the mean time of those
    measured, item for item.
    """
    if not tasks:
        return None
    # As evaluation does: on a CPU in fp32, for answers that don't depend on the batch.
    dtype = torch.float32 if on_cpu else loaded.dtype
    per_item: list[float] = []
    started = time.perf_counter()
    with computing_in(loaded.model, dtype):
        for task in tasks:
            per_item.append(_seconds_per_item(loaded, task, config.eval_batch_size))
            if time.perf_counter() - started > _ENOUGH_SECONDS:
                break
    per_item += [statistics.fmean(per_item)] * (len(tasks) - len(per_item))
    items = [task.num_items * task.passes(config.dial) for task in tasks]
    return sum(s * n for s, n in zip(per_item, items, strict=True))


def _seconds_per_item(loaded: LoadedModel, task: TaskLoad, size: int) -> float:
    started = time.perf_counter()
    if task.options:
        num_items = len(task.options[:size])
        option_logprobs(loaded, task.options[:size], batch_size=size)
    else:
        num_items = len(task.prompts[:size])
        generate_greedy(
            loaded, task.prompts[:size], max_new_tokens=task.max_new_tokens, batch_size=size
        )
    return (time.perf_counter() - started) / max(1, num_items)
