"""`lookalike serve` as a process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx

# PyTorch: for ONNX Runtime a file would be made of each new model first, which takes seconds.
RUNTIME = ("--runtime", "torch")
COMMAND = [sys.executable, "-c", "from lookalike.cli.main import run; run()", "serve"]
PATIENCE = 60.0  # seconds for a busy machine


@dataclass
class Running:
    """A service that runs: its process, its URL, and its standard error."""

    process: subprocess.Popen[bytes]
    url: str
    errors: IO[bytes]

    def log(self) -> str:
        """What it has said so far."""
        self.errors.seek(0)
        return self.errors.read().decode()

    def until_ready(self) -> None:
        """Wait until it is."""
        deadline = time.monotonic() + PATIENCE
        while not self._is_ready():
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}ready").status_code == 200
        except httpx.TransportError:  # it has ended, or is about to
            time.sleep(0.1)
            return False


@contextmanager
def serving(*arguments: str | Path, environ: dict[str, str] | None = None, ready: bool = True) -> Iterator[Running]:
    """A service on a free port of loopback; killed in the end, where it has not ended by itself."""
    with tempfile.TemporaryFile() as errors:
        process = start(
            *arguments, "--port", "0", *(() if "--runtime" in arguments else RUNTIME), errors=errors, environ=environ
        )
        try:
            running = Running(process, _url(process, errors), errors)
            if ready:
                running.until_ready()
            yield running
        finally:
            process.kill()
            process.wait(PATIENCE)


def start(
    *arguments: str | Path, errors: IO[bytes] | int = subprocess.PIPE, environ: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """`lookalike serve` with these arguments and no keys but those of `environ`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LOOKALIKE_")}
    return subprocess.Popen([*COMMAND, *map(str, arguments)], stderr=errors, env=inherited | (environ or {}))


def _url(process: subprocess.Popen[bytes], errors: IO[bytes]) -> str:
    deadline = time.monotonic() + PATIENCE
    while True:
        errors.seek(0)
        said = errors.read().decode()
        if found := re.search(r"http://\S+:\d+/", said):
            return found.group()
        assert process.poll() is None, said
        assert time.monotonic() < deadline, said
        time.sleep(0.02)
