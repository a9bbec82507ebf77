"""What the C library does with memory that is freed: keep it for the next micro-batch.

glibc gives memory back to the system as soon as 64 MB or so lie idle, and takes it again for the
next tensors, page by page. A step of a small model is thousands of such pages, which threads take
one after another: up to a sixth of a step on two cores.
"""

from __future__ import annotations

import ctypes
import os
import platform

_KEPT_BYTES = 512 << 20  # idle memory that stays with the process
_LARGE_BYTES = 32 << 20  # blocks of this size and more are given back one by one; glibc's most
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of <malloc.h>


def keep_freed_memory() -> bool:
    """Let this process keep up to 512 MB that it has freed; the most it holds at once is the same.

    Returns:
        Whether it took effect: not where the C library is another one than glibc, or where the
        environment says how memory is to be dealt with.
    """
    said = any(name.startswith("MALLOC_") for name in os.environ)
    if said or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Naming one threshold ends glibc's own adjustment of both, so that both are named.
    return bool(
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES) and mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
    )
