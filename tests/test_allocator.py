"""What is freed in one micro-batch is there for the next one."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

# Twenty times eight blocks of 16 MB, written and freed; prints the pages taken from the system.
_PROGRAM = """
import ctypes, resource, sys
from rl4lm.processes.allocator import keep_freed_memory

kept = keep_freed_memory() if sys.argv[1] == "keep" else False
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
def batch():
    blocks = [libc.malloc(16 << 20) for _ in range(8)]
    for block in blocks:
        ctypes.memset(block, 1, 16 << 20)
    for block in reversed(blocks):
        libc.free(block)
batch(), batch(), batch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    batch()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

only_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc's malloc")


def pages_taken(asked: str, **environment: str) -> tuple[bool, int]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, asked],
        env={**clean, **environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    kept, pages = done.stdout.split()
    return kept == "True", int(pages)


@only_glibc
def test_memory_that_was_freed_is_used_again_and_not_taken_anew():
    kept, pages = pages_taken("keep")
    _, pages_without = pages_taken("leave")
    assert kept
    assert pages_without > 20 * 1000  # the control: 20 times 128 MB are 655,360 pages of 4 KB
    assert pages < pages_without / 20


@only_glibc
def test_what_the_environment_says_of_memory_is_left_alone():
    kept, _ = pages_taken("keep", MALLOC_TRIM_THRESHOLD_="131072")
    assert not kept
