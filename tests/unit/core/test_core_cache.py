"""One cache for everything that can be made again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from narrowtune.core.cache import BoundedFolder, cache_folder
from narrowtune.core.errors import UsageError


def test_the_folder_is_the_environments_or_the_users(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("NARROWTUNE_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NARROWTUNE_CACHE", "~/there")
    assert cache_folder() == tmp_path / "there"
    monkeypatch.delenv("NARROWTUNE_CACHE")
    assert cache_folder() == tmp_path / ".cache" / "narrowtune"


def test_what_is_no_file_counts_for_nothing(tmp_path: Path):
    (tmp_path / "ab" / "folder").mkdir(parents=True)
    old = tmp_path / "ab" / "old"
    old.write_bytes(bytes(100))
    os.utime(old, (0, 0))
    assert BoundedFolder(tmp_path, 150).has_room(100)
    assert not old.exists()
    assert not BoundedFolder(tmp_path, 50).has_room(100)


def test_a_user_without_a_home_is_told_to_name_a_folder(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("NARROWTUNE_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(UsageError, match="set NARROWTUNE_CACHE"):
        cache_folder()
