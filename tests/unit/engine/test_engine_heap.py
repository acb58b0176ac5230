from __future__ import annotations

import platform
import subprocess
import sys

import pytest

GLIBC = platform.libc_ver()[0] == "glibc"

# Blocks that stay between blocks that are freed: the shape in which a heap can't shrink. The first
# loop is what makes glibc raise its own limit.
SCRIPT = """
import os
from narrowtune.engine.heap import return_freed_blocks
if {called}:
    assert return_freed_blocks()
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
for _ in range(3):
    bytearray(b"x") * (28 * 2**20)
blocks = [bytearray(b"x") * 2**21 for _ in range(200)]
before = resident()
del blocks[::2]
print((before - resident()) / 2**21)
"""


@pytest.mark.skipif(not GLIBC, reason="a setting of glibc")
def test_freed_blocks_go_back_to_the_system():
    returned = {}
    for called in (False, True):
        script = SCRIPT.format(called=called)
        output = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        ).stdout
        returned[called] = float(output)
    assert returned[False] < 20
    assert returned[True] == pytest.approx(100, abs=10)
