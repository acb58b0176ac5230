"""Scores of a base model are computed once, and reused where nothing that matters differs.

Owns: the key of a score and the files of the cache: `scores/<two hex digits>/<key>.json`, each
with a checksum of its content. An entry that can't be trusted is computed anew, with a warning.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from narrowtune.core.results import TaskResult

logger = logging.getLogger(__name__)

FORMAT = 1
"""Of an entry. Part of the key, so that entries of another format are never read."""


def cache_folder() -> Path:
    """Return `$NARROWTUNE_CACHE`, or `~/.cache/narrowtune`."""
    return Path(os.environ.get("NARROWTUNE_CACHE") or Path.home() / ".cache" / "narrowtune")


class ScoreCache:
    """Results of tasks in a folder.

    Args:
        folder: of the cache; `cache_folder()` unless given. It is made when first written to.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = (folder or cache_folder()) / "scores"

    def load(self, key: Mapping[str, Any]) -> TaskResult | None:
        """Return the result stored under `key`, or None if there is none that can be trusted."""
        path = self._path(key)
        try:
            entry = json.loads(path.read_text(encoding="utf-8"))
            result = entry["result"]
            if entry["key"] != _plain(key) or entry["sha256"] != _sha256(result):
                raise ValueError("its checksum does not fit its content")
            return TaskResult.model_validate(result).model_copy(update={"from_cache": True})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
            logger.warning("The cached score %s is damaged and computed anew: %s", path, error)
            return None

    def save(self, key: Mapping[str, Any], result: TaskResult) -> None:
        """Store `result` with its items under `key`; a reader sees all of it or nothing."""
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = json.loads(result.model_dump_json())
        entry = {"key": _plain(key), "sha256": _sha256(content), "result": content}
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(entry, file, ensure_ascii=False)
            Path(temporary).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
            raise

    def _path(self, key: Mapping[str, Any]) -> Path:
        name = _sha256(_plain(key))
        return self.folder / name[:2] / f"{name}.json"


def _plain(key: Mapping[str, Any]) -> Any:
    """Return the key as JSON gives it back (tuples are lists there)."""
    return json.loads(json.dumps({"format": FORMAT, **key}))


def _sha256(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
