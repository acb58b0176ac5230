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
    further = {(job.arm, job.exponent, job.seed) for job in asked if job.stage == "further"}
    at_best = ((protocol.FURTHER, protocol.PULLED_AT), (protocol.ARMS[0], BEST))
    assert further == {(arm, rate, seed) for arm, rate in at_best for seed in (3, 4, 5)}
    runs |= {job: run(protocol, job) for job in asked}
    assert protocol.next_jobs(runs) == []


def scored(job):
    """Return a run that got one of four questions right, and forgot one of four; two a group."""
    items = {"group": ["a", "a", "b", "b"], "before": [0, 0, 0, 0], "after": [1, 0, 0, 0]}
    kept = {**items, "before": items["after"], "after": items["before"]}
    estimates = {name: {"value": 1.0 * job.rows * job.seed} for name in ("learning", "forgetting")}
    return {"skill": 0.5, "tasks": [], "verdict": estimates, "items": {"s": items, "k": kept}}


@pytest.mark.parametrize("known", [(3,), (3, 4)])
def test_a_table_over_seeds_has_those_that_it_is_told_against(protocol, monkeypatch, capsys, known):
    """A further seed of which the other is still to be trained takes no row away."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    table = importlib.import_module("recipes_table")
    monkeypatch.delitem(sys.modules, "recipes_table")
    arm, first = protocol.FURTHER, protocol.ARMS[0]
    asked = [protocol.job_of(first, BEST, 0)]
    asked += [protocol.job_of(arm, protocol.PULLED_AT, seed, "whole") for seed in protocol.SEEDS]
    asked += [protocol.job_of(arm, protocol.PULLED_AT, seed, "further") for seed in (3, 4)]
    asked += [protocol.job_of(first, BEST, seed, "result") for seed in protocol.SEEDS]
    asked += [protocol.job_of(first, BEST, seed, "further") for seed in known]
    monkeypatch.setattr(table, "best_exponent", lambda arm, runs: BEST)
    table.print_over_seeds({job: scored(job) for job in asked})
    [row] = [line for line in capsys.readouterr().out.splitlines() if str(arm) in line]
    _, _, learned, behind, lost, _ = row.split("|")
    number = len(protocol.SEEDS) + len(known)
    each = ", ".join(["25.0"] * number)
    assert (learned.count(each), lost.count(each)) == (1, 1)
    assert len(learned.partition("[")[2].split(",")) == number
    assert f"[{', '.join(f'{0.0 - 3 * seed:.1f}' for seed in range(number))}]" in behind
