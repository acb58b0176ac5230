"""A quantiser without a library, to test all but how well a library quantises."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from narrowtune.engine import quantised as engine
from narrowtune.engine.quantised import QuantisedTensor
from narrowtune.train import quantised


def quantise_by_hand(monkeypatch: pytest.MonkeyPatch) -> str:
    """Let int8 be done without torchao: eight bits, one scale for a matrix."""
    monkeypatch.setattr(engine, "_int8", _int8)
    monkeypatch.setitem(sys.modules, "torchao", ModuleType("torchao"))
    monkeypatch.setattr(quantised, "metadata", SimpleNamespace(version=lambda _: "0"))
    return "int8"


def _int8(weight: torch.Tensor) -> QuantisedTensor:
    scale = weight.abs().max().float() / 127
    codes = (weight.float() / scale).round().to(torch.int8)
    return QuantisedTensor(
        {"codes": codes, "scale": scale}, lambda: (codes.float() * scale).to(weight.dtype)
    )
