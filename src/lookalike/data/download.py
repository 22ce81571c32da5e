"""Downloads that survive: resumed where they broke, checked against a published checksum, from mirrors in turn.

A proxy is taken from HTTP_PROXY, HTTPS_PROXY and NO_PROXY.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import httpx

from lookalike import __version__
from lookalike.data.sources import Mirror, Source, mirrors_of
from lookalike.data.transfer import MirrorError, Transfer, announced, as_faults
from lookalike.errors import DownloadError, InputError

TRIES = 3  # of a mirror in a row that bring nothing new

T = TypeVar("T")
Progress = Callable[[int, int | None], None]


def download(
    name: str,
    source: Source,
    folder: Path,
    *,
    progress: Progress | None = None,
    pause: float = 1.0,
    timeout: float = 30,
) -> tuple[Mirror, Path]:
    """Get all files of a data set from the first mirror that gives them whole.

    Interrupted at any moment, even killed, it goes on from there when called again.

    Args:
        name: the data set's, for messages.
        source: where to get it.
        folder: keeps what arrives; one folder for each mirror is made in it.
        progress: called with (bytes there, bytes in all; None when that is not known).
        pause: seconds before a mirror is tried again; doubled each time that brings nothing.
        timeout: seconds without a byte after which a connection counts as broken.

    Returns:
        The mirror, and the folder that holds its files.

    Raises:
        DownloadError: no mirror gave all files; it names each with its reason.
        InputError: no room on the disk, a folder that cannot be written, a proxy that is not one.
    """
    reasons = []
    with _client(timeout) as client:
        for mirror in mirrors_of(source):
            place = folder / re.sub(r"[^A-Za-z0-9.-]+", "-", mirror.name)
            try:
                place.mkdir(parents=True, exist_ok=True)
                _get_all(client, mirror, place, progress, pause)
                return mirror, place
            except MirrorError as fault:
                reasons.append(f"{mirror.name}: {fault}")
            except OSError as error:
                raise InputError(
                    f"{error.filename or place}: cannot be written ({error.strerror or error}).",
                    "Make room, or choose another folder; what has arrived is kept.",
                ) from None
    official = source.mirrors[0].files[0]
    raise DownloadError(
        f"{name} could not be downloaded. {'; '.join(reasons)}.",
        f"Try again later: what arrived is kept. Or get {official.url} in another way and say: "
        f"lookalike data import {official.name} --name {name}",
    )


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Make a download folder and keep it to oneself; one that nothing arrived in is gone afterwards.

    Raises:
        InputError: another process holds it, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror}).", "Choose another folder.") from None
    with ExitStack() as held:
        if sys.platform != "win32":
            import fcntl

            lock = os.open(folder, os.O_RDONLY)
            held.callback(os.close, lock)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"{folder}: another download is under way.", "Wait for it, or stop it.") from None
        try:
            yield
        finally:
            for place in (*folder.glob("*/"), folder):
                with suppress(OSError):  # it is not empty, or gone already
                    place.rmdir()


def _client(timeout: float) -> httpx.Client:
    headers = {"User-Agent": f"lookalike/{__version__}", "Accept-Encoding": "identity"}
    try:
        return httpx.Client(headers=headers, timeout=timeout, follow_redirects=True)
    except (ValueError, ImportError, httpx.InvalidURL) as error:
        message = f"the proxy that is set cannot be used ({error})."
        raise InputError(message, "Correct HTTP_PROXY, HTTPS_PROXY or ALL_PROXY.") from None


def _get_all(client: httpx.Client, mirror: Mirror, place: Path, progress: Progress | None, pause: float) -> None:
    files = [_persistently(partial(announced, client, file), pause) for file in mirror.files]
    sizes = [file.size_bytes for file in files]
    total = None if None in sizes else sum(size or 0 for size in sizes)

    def report(before: int, done: int) -> None:
        if progress is not None:
            progress(before + done, total)

    before = 0
    for file in files:
        transfer = Transfer(client, file, place, partial(report, before))
        _persistently(transfer.run, pause, transfer.arrived)
        before += transfer.whole.stat().st_size


def _persistently(action: Callable[[], T], pause: float, arrived: Callable[[], int] = lambda: 0) -> T:
    """Do something until it succeeds, or for the `TRIES`th time in a row brings no more than there was at best."""
    vain, best = 0, arrived()
    while True:
        try:
            with as_faults():
                return action()
        except MirrorError as fault:
            there = arrived()
            vain = 0 if there > best else vain + 1
            best = max(best, there)
            if not fault.again or vain >= TRIES:
                raise
            time.sleep(pause * 2 ** max(vain - 1, 0))
