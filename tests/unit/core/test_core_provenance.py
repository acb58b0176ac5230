from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys

import pytest

from narrowtune.core import provenance
from narrowtune.core.errors import UsageError
from narrowtune.version import __version__


def test_versions_name_the_software():
    found = provenance.versions()
    assert found["narrowtune"] == __version__
    assert found["python"] == platform.python_version()
    assert found["torch"]
    assert found["transformers"].startswith("5.")


def test_versions_leave_out_what_is_not_installed(monkeypatch):
    monkeypatch.setattr(provenance, "DISTRIBUTIONS", ("torch", "no-such-distribution-here"))
    assert set(provenance.versions()) == {"narrowtune", "python", "torch"}


def test_core_imports_no_ml_library():
    code = (
        "import sys, narrowtune.core.provenance as p, narrowtune.core.config, "
        "narrowtune.core.results; p.versions(); p.hardware(); "
        "print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_hardware_is_json_and_names_nobody():
    found = provenance.hardware()
    text = json.dumps(found)
    assert found["memory_bytes"] > 1 << 28
    assert 1 <= found["cores"] <= 4096
    assert platform.node() not in found.values()
    assert "/" not in text.replace(found["cpu"], "")


def test_the_cpu_is_read_from_the_first_entry(monkeypatch):
    text = "model name : Chip A\nflags : avx2 fpu amx_bf16\n\nmodel name : Chip B\nflags : fpu\n"
    monkeypatch.setattr(provenance.Path, "read_text", lambda *_, **__: text)
    assert provenance._cpu() == ("Chip A", ["avx2", "amx_bf16"])


def test_accelerators_as_nvidia_smi_lists_them(monkeypatch):
    text = "NVIDIA H100 80GB HBM3, 81559, 570.1\nNVIDIA GB10, [N/A], 580.2\nsome warning\n"
    monkeypatch.setattr(provenance, "_output", lambda *_: text)
    assert provenance._accelerators() == [
        {"name": "NVIDIA H100 80GB HBM3", "memory_bytes": 81559 << 20, "driver": "570.1"},
        {"name": "NVIDIA GB10", "memory_bytes": None, "driver": "580.2"},
    ]
    monkeypatch.setattr(provenance, "_output", lambda *_: None)
    assert provenance._accelerators() == []


def test_a_command_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(provenance, "_COMMAND_SECONDS", 0.2)
    assert provenance._output(sys.executable, "-c", "import time; time.sleep(20)") is None
    assert provenance._output(sys.executable, "-c", "print(1)") in {"1\n", None}
    assert provenance._output("no-such-command-here") is None


def git(folder, *arguments) -> str:
    identity = ("-c", "user.name=n", "-c", "user.email=e@example.org")
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_git_state(tmp_path):
    assert provenance.git_state(tmp_path) is None
    git(tmp_path, "init", "-q")
    assert provenance.git_state(tmp_path) is None  # no commit yet
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-q", "-m", "one")
    commit = git(tmp_path, "rev-parse", "HEAD").strip()
    assert provenance.git_state(tmp_path) == {"commit": commit, "dirty": False}
    (tmp_path / "a").write_text("2")
    assert provenance.git_state(tmp_path) == {"commit": commit, "dirty": True}


def test_git_state_without_a_folder(tmp_path):
    assert provenance.git_state(tmp_path / "none") is None


@pytest.mark.parametrize("size", [0, 5, (1 << 20) + 3])
def test_sha256_file(tmp_path, size):
    content = bytes(i % 251 for i in range(size))
    path = tmp_path / "f"
    path.write_bytes(content)
    assert provenance.sha256_file(path) == hashlib.sha256(content).hexdigest()


def test_sha256_of_no_file(tmp_path):
    with pytest.raises(UsageError, match="hash of"):
        provenance.sha256_file(tmp_path / "none")
    with pytest.raises(UsageError):
        provenance.sha256_file(tmp_path)
