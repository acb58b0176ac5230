"""Freed memory goes back to the system: a run's later stages don't pay for its earlier ones.

glibc raises the size from which a block gets pages of its own, up to 32 MiB, whenever such a block
is freed. Tensors of a few MiB then come from the heap, and what is freed between blocks that stay
is neither reused nor returned: a process that trains and evaluates in turn grew to three times
what it held. A fixed limit stops that; new pages cost a few percent of a training step.
"""

from __future__ import annotations

import ctypes
import sys

_M_MMAP_THRESHOLD = -3  # malloc.h
_BLOCK_BYTES = 2**20


def return_freed_blocks() -> bool:
    """From now on, give blocks of a MiB and more back to the system when they are freed.

    For the whole process, so it is for programs to call and not for libraries.

    Returns:
        Whether the C library has this setting: glibc does, others are left as they are.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(ctypes.c_int(_M_MMAP_THRESHOLD), ctypes.c_int(_BLOCK_BYTES)))
