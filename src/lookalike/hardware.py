"""The machine: processor cores, devices, and how threads wait and stop. Importing this module does not load PyTorch."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lookalike.errors import InputError

if TYPE_CHECKING:
    import torch

# How long an idle OpenMP thread spins before it sleeps. GNU's OpenMP (PyTorch's on Linux) counts rounds, by default
# 300,000 (up to 20 ms); LLVM's and Intel's count milliseconds, by default 200.
SHORT_WAITS = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "1"}
SET_BY_USER = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_short_waits(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Make OpenMP's idle threads sleep early, in this process and its children.

    By default, idle threads spin. If another program needs a core, the thread that all others wait for has to share its
    own, and training becomes several times slower. OpenMP reads the environment once, when PyTorch is loaded, so call
    this before. `benchmarks/shared_machine.py` measures the effect.

    Returns:
        Whether the variables were set; they are not if the user has set any of `SET_BY_USER`.
    """
    if any(name in environment for name in SET_BY_USER):
        return False
    environment.update(SHORT_WAITS)
    return True


@contextmanager
def short_waits() -> Iterator[None]:
    """Call `set_short_waits` for the libraries that the block loads, then restore the environment.

    Does nothing if PyTorch is loaded already.
    """
    was_set = "torch" not in sys.modules and set_short_waits()
    try:
        yield
    finally:
        if was_set:
            for name in SHORT_WAITS:
                os.environ.pop(name, None)


@contextmanager
def stoppable_threads(count: int) -> Iterator[tuple[ThreadPoolExecutor, threading.Event]]:
    """Yield a thread pool, and an event that is set when the block ends, for example by Ctrl-C.

    Tasks that have not started by then are cancelled. Tasks that run should check the event and return early.
    """
    threads, stop = ThreadPoolExecutor(count), threading.Event()
    try:
        yield threads, stop
    finally:
        stop.set()
        threads.shutdown(wait=True, cancel_futures=True)


def choose_device(name: str) -> torch.device:
    """Return a device, after checking that it exists.

    Args:
        name: "auto" (a CUDA GPU if there is one, then Apple's GPU, then the CPU), "cpu", "cuda", "cuda:1" or "mps".

    Raises:
        InputError: no such device on this machine.
    """
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    mps = torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if gpus else "mps" if mps else "cpu")
    there = ["cpu", *(["cuda"] if gpus else []), *(f"cuda:{i}" for i in range(gpus)), *(["mps"] if mps else [])]
    if name not in there:
        raise InputError(f"there is no device '{name}' here.", f"Use auto, {', '.join(there)}.")
    return torch.device(name)
