"""Memory of a training step that stays with the process from one step to the next.

On Linux the C library takes every large piece of memory from the kernel and hands it back when it is freed. A step on
a CPU frees all its feature maps and asks for the same again, and each time the kernel clears the pages one by one: up
to a seventh of a step. `benchmarks/kept_memory.py` measures it.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# from glibc's malloc.h: the parameter, what it is for a training, and afterwards. glibc raises two of them by itself as
# large pieces come and go, and stops that once one was set; so they are left where it would have raised them to.
MMAP_MAX = -4, 0, 65_536  # pieces that may be taken from the kernel one by one
MMAP_THRESHOLD = -3, 32 * 2**20, 32 * 2**20  # bytes from which a piece is taken so
TRIM_THRESHOLD = -1, 2**31 - 1, 64 * 2**20  # free bytes at the end of the heap from which they are handed back
TOP_PAD = -2, 64 * 2**20, 0  # bytes that the heap grows by beyond what was asked for
PARAMETERS = MMAP_MAX, MMAP_THRESHOLD, TRIM_THRESHOLD, TOP_PAD
SET_BY_USER = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")


@contextmanager
def keep_freed_memory(device: torch.device) -> Iterator[None]:
    """Keep freed memory while the body runs, where that helps: on a CPU, under glibc. Elsewhere nothing is done.

    It holds for the whole process. Afterwards what is free has been handed back, and large pieces are again the
    kernel's. Nothing is done, either, where the user has set these things in the environment (`SET_BY_USER`, or
    `glibc.malloc` in `GLIBC_TUNABLES`).
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
