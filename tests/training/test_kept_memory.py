"""Kept memory: a step does not ask the kernel again for what it freed, and afterwards all is as it was."""

from __future__ import annotations

import contextlib
import platform
import resource
from pathlib import Path

import pytest
import torch

from lookalike.training.memory import kept_memory

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="memory is kept under glibc alone")
MANY = 48 * 2**20  # bytes; glibc never keeps pieces of 32 MiB and more by itself


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def faults_of_five() -> int:
    """Page faults of taking, filling and freeing a large piece five times, when it has been done a while."""
    before = 0
    for number in range(25):
        if number == 20:
            before = faults()
        torch.full((MANY,), 1, dtype=torch.uint8)
    return faults() - before


@glibc
def test_what_was_freed_is_used_again() -> None:
    plain = faults_of_five()
    with kept_memory(torch.device("cpu")):
        kept = faults_of_five()
    assert kept < plain / 10


@glibc
@pytest.mark.parametrize("error", [False, True])
def test_afterwards_the_memory_is_handed_back(error: bool) -> None:
    before = resident()
    with contextlib.suppress(RuntimeError), kept_memory(torch.device("cpu")):
        pieces = [torch.full((MANY,), 1, dtype=torch.uint8) for _ in range(4)]
        pieces.clear()
        kept = resident() - before
        if error:
            raise RuntimeError
    assert kept > 2 * MANY  # some of it may have been there before
    assert resident() - before < MANY


def test_for_a_gpu_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda _: pytest.fail("the C library was touched"))
    with kept_memory(torch.device("cuda")):
        pass
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    with kept_memory(torch.device("cpu")):
        pass
