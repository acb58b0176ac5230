"""The benchmark of one GPU runs to its table on a CPU, in a tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_speed.py"
ARMS = ("narrowtune sa_proj", "TRL + peft LoRA, checkpointed")


def run(output: Path, *flags: str) -> str:
    command = [sys.executable, str(SCRIPT), "--tiny", "--output", str(output), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_it_plans_and_goes_on_with_measuring(tmp_path):
    pytest.importorskip("trl")
    pytest.importorskip("peft")
    output = tmp_path / "found.json"
    chosen = ("--kinds", "questions", "--arms", *ARMS)
    run(output, "--plan-only", *chosen)
    planned = json.loads(output.read_text("utf-8"))
    assert set(planned["plans"]) == {f"{arm}|questions" for arm in ARMS}
    assert not planned["arms"]

    table = run(output, *chosen)
    values = json.loads(output.read_text("utf-8"))
    assert values["plans"] == planned["plans"], "what is there is not found again"
    found = values["arms"]
    assert set(found) == set(planned["plans"])
    for case, measured in found.items():
        assert len(measured["seconds"]) == 8
        assert measured["peak_bytes"] > 0
        assert measured["num_trainable"] == planned["plans"][case]["num_trainable"]
    assert all(arm in table for arm in ARMS)
