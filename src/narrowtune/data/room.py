"""How much may be held in memory of what can be made again."""

from __future__ import annotations


class Room:
    """Bytes that several things may hold together; once they are taken, others hold nothing.

    Args:
        num_bytes: of all.
    """

    def __init__(self, num_bytes: int) -> None:
        self._left = num_bytes

    def take(self, num_bytes: int) -> bool:
        """Take so many if they are there; return whether they were."""
        if num_bytes > self._left:
            return False
        self._left -= num_bytes
        return True
