"""Drift that is measured while a run trains.

Owns: what measures it, and the sentence that says what was found.
"""

from __future__ import annotations

from narrowtune.pipeline.run import Run
from narrowtune.report.text import percent, small
from narrowtune.train.anchor import Anchor
from narrowtune.train.drift_callback import DriftCallback


def watch_drift(run: Run, anchor: Anchor | None) -> DriftCallback | None:
    """Return what measures drift while the run trains, if it is asked for."""
    drift, prompts = run.config.drift, run.inputs.drift_prompts
    if not drift.every:
        return None
    return DriftCallback(
        [messages for _, messages in prompts],
        every=drift.every,
        budget=drift.budget,
        action=drift.action,
        anchor=anchor,
        max_new_tokens=drift.max_new_tokens,
        batch_size=run.config.eval_batch_size,
        encoder=run.encoder,
    )


def what_drift_was(watched: DriftCallback) -> str:
    """Say what measuring took, and what was found last."""
    text = (
        f"Drift was measured {len(watched.readings)} times while training, "
        f"{watched.seconds:.1f} s with the base's answers"
    )
    if watched.readings:
        step, last = watched.readings[-1]
        text += f"; at step {step} KL {small(last.kl)}"
        if last.number_bias is not None and last.base_number_bias is not None:
            base, bias = percent(last.base_number_bias), percent(last.number_bias)
            text += f", number-token bias {bias} (the base's {base})"
        if last.format_valid is not None:
            text += f", {percent(last.format_valid)} of the answers begin in the base's form"
    return text + "."
