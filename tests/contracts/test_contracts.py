"""Promises of the whole: what is imported when, what is exported, what the documents say."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

import narrowtune
from narrowtune.core.config import load_config
from narrowtune.core.data_settings import DataSettings

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "narrowtune"
HEAVY = ("torch", "transformers", "accelerate", "datasets", "scipy", "matplotlib")


def _modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("module", ["narrowtune", "narrowtune.cli.app"])
def test_help_waits_for_no_heavy_library(module):
    assert not _modules_after(f"import {module}").intersection(HEAVY)


def test_help_answers_at_once():
    """The goal is 0.5 s on an unloaded machine; here with room for a busy one."""
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "narrowtune", "--help"], capture_output=True, check=True
        )
        best = min(best, time.perf_counter() - started)
    assert best < 1.5


def test_every_name_of_the_front_door_exists():
    for name in narrowtune.__all__:
        assert getattr(narrowtune, name) is not None
    assert set(narrowtune._ROOMS) | {"__version__"} == set(narrowtune.__all__)
    with pytest.raises(AttributeError, match="no attribute 'selct'"):
        narrowtune.selct  # noqa: B018


def test_every_room_says_what_it_owns_may_touch_and_never_does():
    rooms = [path for path in PACKAGE.rglob("__init__.py") if any(path.parent.glob("*.py"))]
    assert len(rooms) >= 11
    for path in rooms:
        text = path.read_text(encoding="utf-8")
        if path.parent.name == "lists":
            continue
        for word in ("Owns:", "May touch:", "Never:"):
            assert word in text, f"{path.relative_to(ROOT)} lacks {word!r}"


def test_files_stay_readable():
    long = {
        path.relative_to(ROOT).as_posix(): count
        for path in PACKAGE.rglob("*.py")
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert not long


def test_the_configuration_page_is_that_of_the_settings():
    spec = importlib.util.spec_from_file_location("page", ROOT / "scripts/write_configuration.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PATH.read_text(encoding="utf-8") == module.render()


def test_links_in_the_readme_lead_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_commands_in_the_readme_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^narrowtune (\w+(?: (?:apply|undo|merge|info))?)", text, re.M))
    assert {"plan", "teach", "delta apply", "delta undo", "delta merge"} <= named
    for command in named:
        done = subprocess.run(
            [sys.executable, "-m", "narrowtune", *command.split(), "--help"],
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, command


def test_examples_are_valid_settings():
    from narrowtune.core.config import load_config

    files = sorted((ROOT / "examples").glob("*.yaml"))
    assert files
    for path in files:
        load_config(path)


@pytest.mark.slow
def test_the_trl_example_runs_and_its_delta_is_exact(tiny, tmp_path):
    rows = [{"prompt": f"Say dog {i}.", "completion": " dog"} for i in range(16)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    done = subprocess.run(
        [
            *(sys.executable, ROOT / "examples/trl_narrow.py"),
            *("--model", tiny("llama", torch.bfloat16), "--data", data),
            *("--output", tmp_path / "skill.safetensors"),
            *("--max-steps", "4", "--learning-rate", "1e-3"),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "bit for bit: True" in done.stdout
    drifts = [float(x) for x in re.findall(r"KL\(base‖tuned\) ([\d.]+)", done.stdout)]
    assert len(drifts) == 4
    assert drifts[-1] > 0


def test_settings_in_the_documents_are_yaml():
    found = []
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = path.read_text(encoding="utf-8")
        blocks = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
        inline = re.findall(r"\b(?:columns|defaults|processor_kwargs): \{[^}`]*\}", text)
        found += [(path.name, each) for each in (*blocks, *inline)]
    assert len(found) >= 10
    for name, each in found:
        values = yaml.safe_load(each)
        assert isinstance(values, dict), (name, each)
        if values.keys() <= {"columns", "defaults"}:
            DataSettings.model_validate({"path": "rows.jsonl", **values})


def test_examples_are_runs():
    found = sorted((ROOT / "examples").glob("*.yaml"))
    assert len(found) >= 2
    for path in found:
        config = load_config(path)
        # What the demos write, by the names that they give it.
        assert Path(config.skill.path).parts[:2] in {("runs", "demo"), ("runs", "demo-text")}


@pytest.mark.parametrize("folder", ["benchmarks", "scripts", "examples"])
def test_what_stands_beside_the_package_imports_names_that_are_there(folder):
    missing = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith(
                "narrowtune"
            ):
                continue
            module = importlib.import_module(node.module)
            for name in node.names:
                parts = f"{node.module}.{name.name}"
                inside = hasattr(module, "__path__") and importlib.util.find_spec(parts)
                if not hasattr(module, name.name) and not inside:
                    missing.append(f"{path.relative_to(ROOT)}:{node.lineno}: {parts}")
    assert not missing
