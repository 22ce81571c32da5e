"""Kept memory: a step does not ask the kernel again for what it freed, and afterwards that is handed back.

Each time in a process of its own: whoever kept memory before leaves a heap in which large pieces find room.
"""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from lookalike.training.malloc import keep_freed_memory

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="memory is kept under glibc alone")
MANY = 48 * 2**20  # bytes; glibc never keeps pieces of 32 MiB and more by itself

MEASURE = f"""
import contextlib, resource
from pathlib import Path
import torch
from lookalike.training.malloc import keep_freed_memory

def take():
    return torch.full(({MANY},), 1, dtype=torch.uint8)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def faults_of_five():
    for number in range(25):  # a while, until pieces lie where they will
        if number == 20:
            before = faults()
        take()
    return faults() - before

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
"""
AGAIN = """
plain = faults_of_five()
with keep_freed_memory(torch.device("cpu")):
    print(plain, faults_of_five())
"""
BACK = """
take()
before = resident()
with contextlib.suppress(RuntimeError), keep_freed_memory(torch.device("cpu")):
    pieces = [take() for _ in range(4)]
    pieces.clear()
    kept = resident() - before
    if FAILS:
        raise RuntimeError
print(kept, resident() - before)
"""


def measured(code: str) -> list[int]:
    """The numbers that the code prints."""
    done = subprocess.run([sys.executable, "-c", MEASURE + code], check=True, capture_output=True, text=True)
    return [int(word) for word in done.stdout.split()]


@glibc
def test_what_was_freed_is_used_again() -> None:
    plain, kept = measured(AGAIN)
    assert plain > 0
    assert kept < plain / 10


@glibc
@pytest.mark.parametrize("fails", [False, True])
def test_afterwards_the_memory_is_handed_back(fails: bool) -> None:
    kept, after = measured(f"FAILS = {fails}" + BACK)
    assert kept > 3 * MANY
    assert after < MANY


def test_for_a_gpu_or_where_the_user_chose_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda _: pytest.fail("the C library was touched"))
    with keep_freed_memory(torch.device("cuda")):
        pass
    for variable, value in (("MALLOC_TOP_PAD_", "0"), ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=1")):
        with monkeypatch.context() as patch:
            patch.setenv(variable, value)
            with keep_freed_memory(torch.device("cpu")):
                pass
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    with keep_freed_memory(torch.device("cpu")):
        pass
