"""Freed memory is used again within a stage, and goes back to the system after it.

glibc raises the size from which a block gets pages of its own whenever such a block is freed, and
gives the top of its heap back when that is large: a step's tensors of some MiB then come partly
from new pages, which the system has to zero in every step, and what is freed between blocks that
stay is never returned. A program sets both limits once, so that a step finds the pages of the step
before; after a stage, pages that hold nothing are returned.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from typing import Any

_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1  # malloc.h
_BLOCK_BYTES = 2**25
"""The largest that glibc takes."""
_TOP_BYTES = 2**31 - 1


def keep_freed_blocks() -> bool:
    """From now on, hold what is freed for the next step, until `return_freed_pages`.

    For the whole process, so it is for programs to call and not for libraries.

    Returns:
        Whether the C library has these settings: glibc does, others are left as they are.
    """
    mallopt = _function("mallopt")
    if mallopt is None:
        return False
    blocks = mallopt(ctypes.c_int(_M_MMAP_THRESHOLD), ctypes.c_int(_BLOCK_BYTES))
    top = mallopt(ctypes.c_int(_M_TRIM_THRESHOLD), ctypes.c_int(_TOP_BYTES))
    return bool(blocks and top)


def return_freed_pages() -> None:
    """Give pages that hold nothing back to the system; nothing is done without glibc."""
    malloc_trim = _function("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(ctypes.c_size_t(0))


@functools.cache
def _function(name: str) -> Any:
    """Return a function of the C library; None where there is none."""
    if sys.platform != "linux":
        return None
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError):
        return None
