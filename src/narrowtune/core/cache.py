"""Where narrowtune keeps what it can make again.

That is scores of base models, their answers to an anchor's prompts, features of pictures, and
converted models.

Owns: the place, and how a folder of many small files is held below a size.
"""

from __future__ import annotations

import os
import stat
import time
from contextlib import suppress
from pathlib import Path

from narrowtune.core.errors import UsageError


def cache_folder() -> Path:
    """Return `$NARROWTUNE_CACHE`, its `~` expanded, or `~/.cache/narrowtune`.

    Raises:
        UsageError: this user has no home.
    """
    named = os.environ.get("NARROWTUNE_CACHE")
    try:
        return Path(named).expanduser() if named else Path.home() / ".cache" / "narrowtune"
    except RuntimeError as error:
        raise UsageError(
            asked=f"the cache folder {named or '~/.cache/narrowtune'}",
            found=str(error),
            do="set NARROWTUNE_CACHE to a folder",
        ) from None


_COUNTED_AGAIN = 1 / 20
"""Share of a folder's limit after which its files are counted again: others write there too."""


class BoundedFolder:
    """A folder of files in subfolders, `*/*`, that is not to grow beyond a size.

    Any number of processes may use the same.

    Args:
        path: of the folder, which need not be there.
        max_bytes: of its files. Beyond it, files that were used last before this object was made
            are deleted, the oldest first; what has been used since stays.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path, self.max_bytes = path, max_bytes
        self._started = time.time()
        self._known = self._uncounted = 0

    def used(self, file: Path) -> None:
        """Note that a file was used now."""
        with suppress(OSError):  # another user's file, or deleted by another process
            os.utime(file)

    def has_room(self, size: int) -> bool:
        """Whether a file of `size` bytes may be added; deletes old ones if it takes that.

        Raises:
            OSError: the folder can't be read, or an old file not be deleted.
        """
        step = _COUNTED_AGAIN * self.max_bytes
        if self._known == 0 or self._uncounted > step:
            files = sorted(self._files())
            total = sum(held for _, held, _ in files)
            for last, held, path in files:
                if total + max(step, size) <= self.max_bytes or last >= self._started:
                    break
                path.unlink(missing_ok=True)
                total -= held
            self._known, self._uncounted = total, 0
        self._uncounted += size
        return self._known + self._uncounted <= self.max_bytes

    def _files(self) -> list[tuple[float, int, Path]]:
        """Return when each file was used last, its size and its path; unfinished ones too."""
        found = []
        for path in self.path.glob("*/*"):
            try:
                status = path.stat()
            except FileNotFoundError:  # deleted by another process
                continue
            if stat.S_ISREG(status.st_mode):
                found.append((status.st_mtime, status.st_size, path))
        return found
