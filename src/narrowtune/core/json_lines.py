"""Files that grow by a line of JSON at a time, and that a kill may stop in the middle of one.

Owns: what ends a line, which is "\\n" alone, and what becomes of one that was cut short.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from narrowtune.core.errors import UsageError


def read_json_lines(
    path: Path,
    asked: str,
    *,
    without: str = "what the line stood for is made again where it is missing",
) -> Iterator[tuple[int, Any]]:
    """Yield the number, from 1, and the value of each line that is not blank.

    A last line that a kill cut short, so that it has no end, is left out.

    Args:
        path: of the file; one that is not there has no lines.
        asked: what it is wanted for, for errors.
        without: what it means that a line is taken out, for errors.

    Raises:
        UsageError: another line is not JSON.
    """
    # Not str.splitlines(): texts may hold other marks that it cuts at, such as U+2028. And a
    # kill may cut between the bytes of a letter, so each line is decoded by itself.
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                return
            raise UsageError(
                asked=asked,
                found=f"line {number} of {path} is not JSON: {error}",
                do=f"take that line out of the file, or put back a copy of it; {without}",
            ) from None
        yield number, value


def append_json_line(path: Path, line: str) -> None:
    """Add a line, in place of one that a kill cut short; the folder is made.

    Args:
        path: of the file, which nobody else writes now.
        line: JSON without an end of line.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        size = file.seek(0, 2)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                _close_last_line(path)
        file.write(line.encode() + b"\n")


def _close_last_line(path: Path) -> None:
    """End a last line that is whole but for its end; take one away that is not."""
    content = path.read_bytes()
    start = content.rfind(b"\n") + 1
    with path.open("r+b") as file:
        try:
            json.loads(content[start:])
        except ValueError:
            file.truncate(start)
        else:
            file.seek(0, 2)
            file.write(b"\n")
