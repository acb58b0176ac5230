"""Cached scores: found under the same key, and never trusted when damaged."""

from __future__ import annotations

import json
import logging
import os
import stat
from pathlib import Path

import pytest

from narrowtune.core.results import ItemResult, Score, TaskResult
from narrowtune.evaluate.cache import ScoreCache

KEY = {"model": "abc", "task": "def", "stop": [1, 2]}


def result() -> TaskResult:
    item = ItemResult(
        id="a", question="?", answer="Zürich", reference=["x"], strict=0.1 + 0.2, lenient=1.0,
        valid_format=True,
    )  # fmt: skip
    return TaskResult(
        name="t",
        role="held_out",
        metric="exact_match",
        num_items=1,
        num_groups=1,
        num_ties=0,
        strict=Score(mean=0.1 + 0.2, stderr=0.5),
        lenient=Score(mean=1.0, stderr=0.5),
        valid_format=1.0,
        seconds=1.5,
        items=[item],
    )


@pytest.fixture
def cache(tmp_path: Path) -> ScoreCache:
    return ScoreCache(tmp_path)


def stored(cache: ScoreCache) -> Path:
    [path] = cache.folder.rglob("*.json")
    return path


def test_what_was_stored_is_found_and_says_that_it_is_cached(cache: ScoreCache):
    assert cache.load(KEY) is None
    cache.save(KEY, result())
    found = cache.load(KEY)
    assert found.from_cache
    assert found.model_copy(update={"from_cache": False}) == result()


@pytest.mark.parametrize(
    "other", [{**KEY, "model": "abd"}, {**KEY, "stop": [1]}, {**KEY, "more": 1}]
)
def test_another_key_finds_nothing(cache: ScoreCache, other):
    cache.save(KEY, result())
    assert cache.load(other) is None


def test_tuples_and_lists_in_a_key_are_the_same(cache: ScoreCache):
    cache.save({**KEY, "stop": (1, 2)}, result())
    assert cache.load(KEY) is not None


def _change_score(path: Path) -> None:
    entry = json.loads(path.read_text())
    entry["result"]["strict"]["mean"] = 1.0
    path.write_text(json.dumps(entry))


def _change_key(path: Path) -> None:
    entry = json.loads(path.read_text())
    entry["key"]["model"] = "other"
    path.write_text(json.dumps(entry))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def _binary(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00")


def _other_shape(path: Path) -> None:
    path.write_text("[1, 2]")


@pytest.mark.parametrize("damage", [_change_score, _change_key, _cut, _binary, _other_shape])
def test_a_damaged_entry_is_not_trusted_and_said_so(cache: ScoreCache, caplog, damage):
    cache.save(KEY, result())
    damage(stored(cache))
    with caplog.at_level(logging.WARNING):
        assert cache.load(KEY) is None
    assert str(stored(cache)) in caplog.text
    cache.save(KEY, result())
    assert cache.load(KEY) is not None


def test_a_write_that_fails_leaves_the_entry_before_and_no_rest(
    cache: ScoreCache, monkeypatch, caplog
):
    cache.save(KEY, result())
    before = stored(cache).read_bytes()

    def fail(descriptor):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", fail)
    cache.save(KEY, result())
    assert "no space" in caplog.text
    assert stored(cache).read_bytes() == before
    assert [p.suffix for p in cache.folder.rglob("*") if p.is_file()] == [".json"]


def test_the_folder_is_the_environments_and_its_home_sign_is_expanded(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NARROWTUNE_CACHE", "~/here")
    assert ScoreCache().folder == tmp_path / "here" / "scores"


def test_a_cache_that_can_not_be_written_costs_no_score(tmp_path: Path, caplog):
    (tmp_path / "scores").touch()
    full = ScoreCache(tmp_path)
    full.save(KEY, result())
    assert "not kept" in caplog.text
    assert full.load(KEY) is None


def test_answers_in_the_cache_are_the_users_alone(tmp_path):
    cache = ScoreCache(tmp_path / "new")
    cache.save(KEY, result())
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700


def test_a_cache_is_bounded_and_what_was_used_longest_ago_goes_first(tmp_path: Path, caplog):
    earlier = ScoreCache(tmp_path)
    keys = [{**KEY, "number": number} for number in range(6)]
    for number, key in enumerate(keys[:4]):
        earlier.save(key, result())
        newest = max(earlier.folder.rglob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        os.utime(newest, (number, number))
        size = newest.stat().st_size
    assert earlier.load(keys[0]) is not None  # used just now
    cache = ScoreCache(tmp_path, max_bytes=round(4.5 * size))
    cache.save(keys[4], result())
    assert [cache.load(key) is not None for key in keys[:5]] == [True, False, True, True, True]
    assert not caplog.text

    full = ScoreCache(tmp_path, max_bytes=size // 2)
    full.save(keys[5], result())
    assert full.load(keys[5]) is None
    assert "grow beyond" in caplog.text
