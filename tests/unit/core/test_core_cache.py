"""One cache for everything that can be made again."""

from __future__ import annotations

from pathlib import Path

from narrowtune.core.cache import cache_folder


def test_the_folder_is_the_environments_or_the_users(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("NARROWTUNE_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NARROWTUNE_CACHE", "~/there")
    assert cache_folder() == tmp_path / "there"
    monkeypatch.delenv("NARROWTUNE_CACHE")
    assert cache_folder() == tmp_path / ".cache" / "narrowtune"
