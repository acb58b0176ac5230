"""Scores of a base model are computed once, and reused where nothing that matters differs.

Owns: the key of a score and the files of the cache: `scores/<two hex digits>/<key>.json`, each
with a checksum of its content. An entry that can't be trusted is computed anew, with a warning.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from narrowtune.core.cache import BoundedFolder, cache_folder
from narrowtune.core.results import TaskResult
from narrowtune.core.run_folder import write_text

logger = logging.getLogger(__name__)

FORMAT = 2
"""Of an entry. Part of the key, so that entries of another format are never read; and raised where
the same arithmetic comes to round otherwise, as on a GPU with decision 0038."""

MAX_BYTES = 2 * 2**30
"""Of entries, unless told otherwise."""


class ScoreCache:
    """Results of tasks in a folder.

    Args:
        folder: of the cache; `cache_folder()` unless given. It is made when first written to.
        max_bytes: of all entries. Beyond it those that were used last before this cache was made
            are deleted, the oldest first; a score that still has no room is not kept.
    """

    def __init__(self, folder: Path | None = None, max_bytes: int = MAX_BYTES) -> None:
        self.folder = (folder or cache_folder()) / "scores"
        self._bounded = BoundedFolder(self.folder, max_bytes)

    def load(self, key: Mapping[str, Any]) -> TaskResult | None:
        """Return the result stored under `key`, or None if there is none that can be trusted."""
        path = self._path(key)
        try:
            entry = json.loads(path.read_text(encoding="utf-8"))
            result = entry["result"]
            if entry["key"] != _plain(key) or entry["sha256"] != _sha256(result):
                raise ValueError("its checksum does not fit its content")
            found = TaskResult.model_validate(result).model_copy(update={"from_cache": True})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
            logger.warning("The cached score %s is damaged and computed anew: %s", path, error)
            return None
        self._bounded.used(path)
        return found

    def save(self, key: Mapping[str, Any], result: TaskResult) -> None:
        """Store `result` with its items under `key`; a reader sees all of it or nothing.

        A folder that can't be written, or has no room, is a warning: the score is known, and
        computed again another time.
        """
        content = json.loads(result.model_dump_json())
        entry = {"key": _plain(key), "sha256": _sha256(content), "result": content}
        try:
            # Answers to a user's own questions are nobody else's.
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            text = json.dumps(entry, ensure_ascii=False)
            if not self._bounded.has_room(len(text.encode())):
                raise OSError(f"it would grow beyond {self._bounded.max_bytes / 2**20:.0f} MiB")
            write_text(self._path(key), text)
        except OSError as error:
            logger.warning("The score is not kept in %s: %s", self.folder, error)

    def _path(self, key: Mapping[str, Any]) -> Path:
        name = _sha256(_plain(key))
        return self.folder / name[:2] / f"{name}.json"


def _plain(key: Mapping[str, Any]) -> Any:
    """Return the key as JSON gives it back (tuples are lists there)."""
    return json.loads(json.dumps({"format": FORMAT, **key}))


def _sha256(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
