"""benchmarks/recipes_protocol.py: which runs are asked for once the grids are done."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "recipes_protocol.py"
BEST = 3
"""Exponent of the best rate."""


@pytest.fixture
def protocol(monkeypatch):
    spec = importlib.util.spec_from_file_location("recipes_protocol", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # for the annotations of its tuples
    spec.loader.exec_module(module)
    return module


def run(protocol, job):
    """Return a run of which the lowest rate alone keeps what is kept."""
    loss = 0.0 if job.exponent == 0 else 10.0
    tasks = [{"name": name, "change": {"value": -loss}} for name in protocol.DECIDING]
    return {"skill": 1.0 - 0.1 * abs(job.exponent - BEST), "tasks": tasks}


def test_done_grids_are_followed_by_results_and_then_by_nothing(protocol):
    grid = [protocol.job_of(arm, k, 0) for arm in protocol.ARMS for k in range(6)]
    runs = {job: run(protocol, job) for job in grid}
    asked = protocol.next_jobs(runs)
    assert len(set(asked)) == len(asked)
    results = [job for job in asked if job.stage == "result"]
    assert {job.arm for job in results} == set(protocol.ARMS)
    assert {job.exponent for job in results} == {BEST}
    kept = [job for job in asked if job.stage == "kept"]
    assert {job.exponent for job in kept} == {0}
    plain = {protocol.Arm(name, 1.0) for name in ("language_model", "mlp_gate_up", "sa_proj")}
    assert {job.arm for job in kept} == plain, "of little use where steps are projected"
    runs |= {job: run(protocol, job) for job in asked}
    assert protocol.next_jobs(runs) == []
