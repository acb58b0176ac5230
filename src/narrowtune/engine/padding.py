"""Rows padded on the right: whether they need a mask, and what rows cost with one and without.

In causal attention no token sees what stands behind it, so padding on the right is seen by padding
alone, and a mask only says what causality says already. On a GPU attention without one is several
times as quick: forward and backward of 8 rows of 834 tokens, 28 heads of 128, 0.55 ms and 1.28 on
an H200; of one line of 2,936 tokens 0.59 and 1.69 (docs/performance.md).

Shapes: B rows of T tokens, padding included.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from narrowtune.engine.pictures import PICTURE_INPUTS, PICTURE_KINDS

TEXT = {"input_ids", "attention_mask"}

_KNOWN = {*TEXT, *PICTURE_INPUTS, "mm_token_type_ids"}
_LINEAR_WIDTH, _ON_CUDA = 6.0, 2.0
"""A layer's products with weights cost a token about as much as attending to this many times the
hidden size in tokens. By operations that is some 12 h² weights against 2 h per token attended to;
on a GPU attention with a mask takes three times as long for each as large products do."""
_UNMASKED, _UNMASKED_ON_CUDA = 1 / 2, 1 / 3
"""What a token attended to costs without a mask: half of them are skipped, and by a quicker
kernel on a GPU."""


def attends(config: Any) -> bool:
    """Whether every layer of a language model attends, so that a mask decides what it sees.

    Layers with a state see whatever stands before them in a row.
    """
    kinds = getattr(config, "layer_types", None) or ()
    return all(kind in ("full_attention", "sliding_attention") for kind in kinds)


def attends_causally(config: Any) -> bool:
    """Whether, moreover, no layer of it sees what comes later."""
    both_ways = getattr(config, "use_bidirectional_attention", None)
    return attends(config) and not both_ways and getattr(config, "is_causal", True) is not False


def relative_cost(config: Any, rows: int, length: int, *, masked: bool, kind: str) -> float:
    """Return what so many rows of such a length cost on a kind of device, relative to others."""
    hidden = int(config.get_text_config().hidden_size)
    width, unmasked = _LINEAR_WIDTH, _UNMASKED
    if kind == "cuda":
        width, unmasked = _ON_CUDA, _UNMASKED_ON_CUDA
    return rows * length * (width * hidden + length * (1 if masked else unmasked))


def is_masked(config: Any, inputs: Mapping[str, Any], kind: str, *, bare: bool) -> bool:
    """Whether rows as they are go through attention with a mask, on a kind of device.

    Args:
        config: of the model.
        inputs: a batch's.
        kind: of the device.
        bare: whether `without_mask` is asked.
    """
    if PICTURE_KINDS in inputs:
        return True
    window = getattr(config.get_text_config(), "sliding_window", None)
    if window is not None and inputs["input_ids"].shape[1] > window:
        return True
    padded = not bool(inputs["attention_mask"].all())
    return padded and not (bare and _needs_no_mask(config, inputs, kind))


def without_mask(model: Any, inputs: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return a batch's inputs without their mask, where that is exact and quicker; else as given.

    Args:
        model: the unwrapped model that will see them.
        inputs: `input_ids`, `attention_mask` [B, T], and others.
        kind: of the device on which it will.
    """
    if not _needs_no_mask(model.config, inputs, kind):
        return inputs
    # Padding moves no position of a token before it, in one axis or in three.
    return {name: value for name, value in inputs.items() if name != "attention_mask"}


def _needs_no_mask(config: Any, inputs: Mapping[str, Any], kind: str) -> bool:
    if kind != "cuda" or not set(inputs) <= _KNOWN or not set(inputs) >= TEXT:
        return False
    if config._attn_implementation != "sdpa" or not attends_causally(config.get_text_config()):
        return False
    return is_padded_right(inputs["attention_mask"])


def is_padded_right(mask: Tensor) -> bool:
    """Whether no token of any row [B, T] stands behind padding."""
    valid = mask.bool()
    return not bool((valid[:, 1:] & ~valid[:, :-1]).any())
