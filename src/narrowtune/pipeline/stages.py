"""Stages that commands share: the plan of a run, and its drift."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from narrowtune.core.config import RunConfig
from narrowtune.core.results import DriftResult
from narrowtune.data.chat import ChatEncoder
from narrowtune.models.load import LoadedModel
from narrowtune.models.swap import WeightSwap
from narrowtune.pipeline.inputs import Inputs
from narrowtune.probe.drift import measure_drift
from narrowtune.train.masters import computing_in


def measuring_dtype(loaded: LoadedModel) -> torch.dtype:
    """Return the dtype in which answers are computed.

    On a CPU that is fp32, which holds bf16 weights exactly: bf16 kernels leave so much noise there
    that many close decisions would have to be taken again alone.
    """
    return torch.float32 if loaded.model.device.type == "cpu" else loaded.dtype


def measure_run_drift(
    loaded: LoadedModel,
    base: Mapping[str, Tensor],
    inputs: Inputs,
    encoder: ChatEncoder,
    config: RunConfig,
) -> DriftResult:
    """Compare the tuned model in `loaded` with `base` on the run's drift prompts."""
    with computing_in(loaded.model, measuring_dtype(loaded)):
        return measure_drift(
            loaded,
            WeightSwap(loaded.model, base),
            inputs.drift_prompts,
            encoder,
            max_new_tokens=config.drift.max_new_tokens,
            batch_size=config.eval_batch_size,
            skill_answers={example.answers[0] for example in inputs.train},
        )
