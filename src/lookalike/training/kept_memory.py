"""Memory of a training step that stays with the process from one step to the next.

On Linux the C library takes every large piece of memory from the kernel and hands it back when it is freed. A step on
a CPU frees all its feature maps and asks for the same again, and each time the kernel clears the pages one by one: up
to a seventh of a step. `benchmarks/kept_memory.py` measures it.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# from glibc's malloc.h: the parameter, what it is for a training, and glibc's default
MMAP_MAX = -4, 0, 65_536  # pieces that may be taken from the kernel one by one
TRIM_THRESHOLD = -1, 2**31 - 1, 128 * 1024  # free bytes at the end of the heap from which they are handed back
TOP_PAD = -2, 64 * 2**20, 0  # bytes that the heap grows by beyond what was asked for


@contextmanager
def kept_memory(device: torch.device) -> Iterator[None]:
    """Keep freed memory while the body runs, where that helps: on a CPU, under glibc. Elsewhere nothing is done.

    It holds for the whole process. Afterwards glibc's default settings are in force, but that it no longer adapts them
    by itself, and what is free has been handed back.
    """
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    for parameter, kept, _ in (MMAP_MAX, TRIM_THRESHOLD, TOP_PAD):
        libc.mallopt(parameter, kept)
    try:
        yield
    finally:
        for parameter, _, default in (MMAP_MAX, TRIM_THRESHOLD, TOP_PAD):
            libc.mallopt(parameter, default)
        libc.malloc_trim(0)
