"""Keep the memory of a training step for the next one.

On Linux the C library takes large blocks from the kernel and returns them when they are freed. A training step on a CPU
frees all its feature maps and allocates the same again, and each time the kernel clears the pages: up to a seventh of a
step. `benchmarks/kept_memory.py` measures it.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# From glibc's malloc.h: the parameter, its value while training, and afterwards. glibc adjusts two of them itself until
# one is set; the values afterwards are those that it would have reached.
MMAP_MAX = -4, 0, 65_536  # blocks that may be mapped from the kernel
MMAP_THRESHOLD = -3, 32 * 2**20, 32 * 2**20  # bytes from which a block is mapped
TRIM_THRESHOLD = -1, 2**31 - 1, 64 * 2**20  # free bytes at the top of the heap from which they are returned
TOP_PAD = -2, 64 * 2**20, 0  # bytes that the heap grows by beyond the request
PARAMETERS = MMAP_MAX, MMAP_THRESHOLD, TRIM_THRESHOLD, TOP_PAD
SET_BY_USER = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")


@contextmanager
def keep_freed_memory(device: torch.device) -> Iterator[None]:
    """Keep freed memory in the process inside the context: on a CPU under glibc only, elsewhere do nothing.

    Applies to the whole process; afterwards free memory is returned to the kernel. The user's own settings, in
    `SET_BY_USER` or `glibc.malloc` of `GLIBC_TUNABLES`, are left alone.
    """
    by_user = any(name in os.environ for name in SET_BY_USER) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc" or by_user:
        yield
        return
    libc = ctypes.CDLL(None)
    for parameter, kept, _ in PARAMETERS:
        libc.mallopt(parameter, kept)
    try:
        yield
    finally:
        for parameter, _, afterwards in PARAMETERS:
            libc.mallopt(parameter, afterwards)
        libc.malloc_trim(0)
