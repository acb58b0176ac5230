"""Blocks that are freed are found again by the next step, and go back when that is asked for."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from narrowtune.engine import heap

GLIBC = platform.libc_ver()[0] == "glibc"

# Blocks that stay between blocks that are freed: the shape in which a heap can't shrink by itself.
SCRIPT = """
import os
import resource
from narrowtune.engine.heap import keep_freed_blocks, return_freed_pages
assert keep_freed_blocks()
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
blocks = [bytearray(b"x") * 2**21 for _ in range(200)]
full = resident()
del blocks[::2]
held = resident()
before = faults()
again = [bytearray(b"x") * 2**21 for _ in range(100)]
new_pages = faults() - before
del again
return_freed_pages()
print((full - held) / 2**21, new_pages, (full - resident()) / 2**21)
"""


@pytest.mark.skipif(not GLIBC, reason="a setting of glibc")
def test_freed_blocks_are_used_again_and_go_back_when_asked_for():
    output = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    ).stdout
    returned_by_itself, new_pages, returned = map(float, output.split())
    assert returned_by_itself == pytest.approx(0, abs=5)
    # A hundred blocks of 512 pages, and next to none of them new.
    assert new_pages < 5000
    assert returned == pytest.approx(100, abs=10)


def test_without_glibc_nothing_is_done(monkeypatch):
    monkeypatch.setattr(heap.sys, "platform", "darwin")
    heap._function.cache_clear()
    try:
        assert not heap.keep_freed_blocks()
        heap.return_freed_pages()
    finally:
        heap._function.cache_clear()
