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

# How long a thread that has nothing to do asks again and again whether there is something, before it sleeps and leaves
# its core to others. GNU's OpenMP, PyTorch's on Linux: rounds (300,000 without this, up to 20 ms); LLVM's and Intel's:
# milliseconds (200 without this).
SHORT_WAITS = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "1"}
SET_BY_USER = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")


def cores() -> int:
    """Processor cores that this process may use, one at least; fewer than the machine has where it is confined."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_short_waits(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Let OpenMP's waiting threads sleep soon, in this process and in those that it starts.

    By default they keep their cores busy while they wait, and where another program needs a core, the thread that all
    wait for has to share its own with it: training then takes several times its fair share of the time. OpenMP reads
    the environment once, when PyTorch is loaded, so this must come before. `benchmarks/shared_machine.py` measures it.

    Returns:
        Whether it was set: not where one of `SET_BY_USER` is, whatever its value.
    """
    if any(name in environment for name in SET_BY_USER):
        return False
    environment.update(SHORT_WAITS)
    return True


@contextmanager
def short_waits() -> Iterator[None]:
    """As `set_short_waits`, for what the body loads: the environment is afterwards as it was.

    Nothing is set where PyTorch is loaded already.
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
    """Threads, and an event that is set when the block is left, by Ctrl-C for one.

    What has not begun by then is never begun; what has should look at the event between two pieces of its work.
    """
    threads, stop = ThreadPoolExecutor(count), threading.Event()
    try:
        yield threads, stop
    finally:
        stop.set()
        threads.shutdown(wait=True, cancel_futures=True)


def choose_device(name: str) -> torch.device:
    """The device of that name, checked to be there.

    Args:
        name: "auto" (a CUDA GPU, else Apple's, else the CPU), "cpu", "cuda", "cuda:1" or "mps".

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
