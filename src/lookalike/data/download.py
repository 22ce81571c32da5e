"""Download files: resume partial ones, verify checksums, try mirrors in turn.

HTTP_PROXY, HTTPS_PROXY and NO_PROXY are respected.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

import httpx
from filelock import FileLock, Timeout

from lookalike import __version__
from lookalike.data.spec import HUB, Mirror, RemoteFile
from lookalike.errors import DownloadError, InputError
from lookalike.files import atomic_write, partial_path, rename_durably

MAX_TRIES = 3  # in a row without progress, per mirror


T = TypeVar("T")


Progress = Callable[[int, int | None], None]


def download(
    name: str,
    mirrors: tuple[Mirror, ...],
    folder: Path,
    *,
    progress: Progress | None = None,
    pause: float = 1.0,
    timeout: float = 30,
) -> tuple[Mirror, Path]:
    """Download all files of a data set from the first mirror that has them whole.

    After an interruption, even a kill, the next call continues.

    Args:
        name: of the data set, for messages.
        mirrors: where to get it, in order; the environment may name others (see `configured_mirrors`).
        folder: for the files; each mirror has a subfolder.
        progress: called with (bytes done, bytes in all; None if unknown).
        pause: seconds before a mirror is tried again, doubled after each try without progress.
        timeout: seconds without data after which a connection is closed.

    Returns:
        The mirror, and the folder that holds its files.

    Raises:
        DownloadError: all mirrors failed; it names each with its reason.
        InputError: a full disk, a folder that cannot be written, or a bad proxy.
    """
    reasons = []
    with _client(timeout) as client:
        for mirror in configured_mirrors(mirrors):
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
    official = mirrors[0].files[0]
    raise DownloadError(
        f"{name} could not be downloaded. {'; '.join(reasons)}.",
        f"Try again later: what arrived is kept. Or get {official.url} in another way and say: "
        f"lookalike data import {official.name} --name {name}",
    )


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Make a download folder and lock it; if it is empty at the end, it is removed.

    Raises:
        InputError: another process holds the lock, or the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror}).", "Choose another folder.") from None
    path = folder / "download.lock"
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise InputError(f"{folder}: another download is running.", "Wait until it has ended, or stop it.") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}).", "Choose another folder.") from None
    try:
        yield
    finally:
        for file in (path, *folder.glob("*/"), folder):
            with suppress(OSError):  # a folder that is not empty; on Windows, a file that is locked
                file.unlink() if file == path else file.rmdir()
        lock.release()


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
    """Repeat an action until it succeeds, or for the `MAX_TRIES`th time in a row makes no progress."""
    vain, best = 0, arrived()
    while True:
        try:
            with as_faults():
                return action()
        except MirrorError as fault:
            there = arrived()
            vain = 0 if there > best else vain + 1
            best = max(best, there)
            if not fault.again or vain >= MAX_TRIES:
                raise
            time.sleep(pause * 2 ** max(vain - 1, 0))


# One file from one mirror.

MAX_REDIRECTS = 5  # to the response with the checksum of the Hub


TRANSIENT = {408, 425, 429, 500, 502, 503, 504}


class MirrorError(Exception):
    """Why a mirror did not deliver a file; `again`: whether another try may help."""

    def __init__(self, reason: str, *, again: bool = False) -> None:
        super().__init__(reason.rstrip("."))
        self.again = again


@contextmanager
def as_faults() -> Iterator[None]:
    """Turn exceptions of httpx into `MirrorError`."""
    try:
        yield
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.TooManyRedirects) as error:
        raise MirrorError(str(error)) from None
    except httpx.HTTPError as error:
        reason = re.sub(r"^\[Errno -?\d+\] ", "", str(error)) or type(error).__name__
        raise MirrorError(reason, again=True) from None


def announced(client: httpx.Client, file: RemoteFile) -> RemoteFile:
    """Return the file with checksum and size from the Hub's response headers, if none are given.

    The Hub sends the SHA-256 of a large file in X-Linked-Etag, before it redirects to the storage.
    """
    if file.checksum:
        return file
    request: httpx.Request | None = client.build_request("HEAD", file.url)
    for _ in range(MAX_REDIRECTS):
        if request is None:
            break
        response = client.send(request, follow_redirects=False)
        digest, size = response.headers.get("X-Linked-Etag", "").strip('"'), response.headers.get("X-Linked-Size", "")
        if re.fullmatch(r"[0-9a-f]{64}", digest):
            return replace(file, checksum=f"sha256:{digest}", size_bytes=int(size) if size.isdecimal() else None)
        if response.is_error:
            raise _refusal(response)
        request = response.next_request
    raise MirrorError(f"no SHA-256 is announced for {file.name}")


class Transfer:
    """The download of one file from one mirror; `report` is called with the number of bytes so far."""

    def __init__(self, client: httpx.Client, file: RemoteFile, place: Path, report: Callable[[int], None]) -> None:
        self.client = client
        self.file = file
        self.report = report
        self.whole = place / file.name
        self.partial = partial_path(self.whole)
        self.notes = place / f"{file.name}.partial.json"

    def arrived(self) -> int:
        """Return the length of the partial file."""
        return self.partial.stat().st_size if self.partial.exists() else 0

    def run(self) -> None:
        """Download the missing part, verify the checksum, rename the file."""
        if self.whole.exists() and self._is_right(self.whole):
            self.report(self.whole.stat().st_size)
            return
        notes = self._read_notes()
        have = self.arrived() if notes else 0
        if not have or have != notes["size"]:
            self._fetch(have, notes)
        if not self._is_right(self.partial):
            self._discard()
            kind = self.file.checksum.partition(":")[0].upper()
            raise MirrorError(f"what it sent does not have the published {kind}", again=have > 0)
        rename_durably(self.partial, self.whole)
        self.notes.unlink(missing_ok=True)

    def _fetch(self, have: int, notes: dict[str, Any]) -> None:
        headers = {"Range": f"bytes={have}-", "If-Range": notes["etag"] or notes["date"]} if have else {}
        with self.client.stream("GET", self.file.url, headers=headers) as response:
            if response.status_code == 416 and have:
                if response.headers.get("Content-Range") == f"bytes */{have}":
                    return  # the file is complete: the size in the notes was too large
                self._discard()
                raise MirrorError("it has no such part as was asked for", again=True)
            if response.status_code == 206 and have:
                total = self._check_part(response, have, notes)
            elif response.status_code == 200:
                have, total = 0, self._begin(response)
            else:
                raise _refusal(response)
            self._check_room(have, total)
            with self.partial.open("ab") as file:
                for chunk in response.iter_raw():
                    have += file.write(chunk)
                    if total is not None and have > total:
                        break
                    self.report(have)
        if total is not None and have != total:
            if have > total:
                self._discard()
            raise MirrorError(f"the connection ended at {have:,} of {total:,} bytes", again=have < total)

    def _begin(self, response: httpx.Response) -> int | None:
        """Start anew: make an empty partial file, then the notes that belong to it."""
        length = response.headers.get("Content-Length", "")
        size = int(length) if length.isdecimal() else self.file.size_bytes
        if self.file.size_bytes is not None and size != self.file.size_bytes:
            raise MirrorError(f"it has {size:,} bytes where {self.file.size_bytes:,} were published")
        etag = response.headers.get("ETag", "")
        notes = {
            "url": self.file.url,
            "etag": "" if etag.startswith("W/") else etag,  # a weak one does not promise the same bytes
            "date": response.headers.get("Last-Modified", ""),
            "size": size,
        }
        self.partial.write_bytes(b"")
        atomic_write(self.notes, json.dumps(notes))
        return size

    def _check_part(self, response: httpx.Response, have: int, notes: dict[str, Any]) -> int | None:
        """Return the size of the whole file, after checking that this response continues the partial file."""
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        same_tag = response.headers.get("ETag", notes["etag"]) == notes["etag"] or not notes["etag"]
        same_size = match is not None and match[2] in {"*", str(notes["size"])}
        if match is None or int(match[1]) != have or not same_tag or not same_size:
            self._discard()
            raise MirrorError("it sent another part than the one asked for", again=True)
        return notes["size"]  # type: ignore[no-any-return]

    def _read_notes(self) -> dict[str, Any]:
        """Read the notes of the partial file; empty if it cannot be resumed."""
        try:
            notes = json.loads(self.notes.read_text(encoding="utf-8"))
            fits = notes["url"] == self.file.url and notes["size"] is not None and bool(notes["etag"] or notes["date"])
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        return notes if fits else {}

    def _check_room(self, have: int, total: int | None) -> None:
        needed, free = (total or 0) - have, shutil.disk_usage(self.partial.parent).free
        if needed > free:
            raise InputError(
                f"{self.partial.parent}: {needed / 2**20:,.0f} MiB are to come, {free / 2**20:,.0f} MiB are free.",
                "Free some, or choose another folder; what has arrived is kept.",
            )

    def _is_right(self, path: Path) -> bool:
        kind, _, digest = self.file.checksum.partition(":")
        with path.open("rb") as file:
            return hashlib.file_digest(file, kind).hexdigest() == digest

    def _discard(self) -> None:
        self.partial.unlink(missing_ok=True)
        self.notes.unlink(missing_ok=True)


def _refusal(response: httpx.Response) -> MirrorError:
    code = response.status_code
    phrase = HTTPStatus(code).phrase if code in HTTPStatus._value2member_map_ else ""
    return MirrorError(f"{code} {phrase}".strip(), again=code in TRANSIENT)


# The order of the mirrors.


def configured_mirrors(official: tuple[Mirror, ...]) -> tuple[Mirror, ...]:
    """Return the mirrors in the order in which they are tried, with those that the environment names.

    $LOOKALIKE_MIRROR is the address of a folder that holds the files of the first mirror; it is tried first.
    $HF_ENDPOINT replaces the address of the Hugging Face Hub.
    """
    hub = (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")
    mirrors = tuple(
        replace(mirror, files=tuple(replace(file, url=file.url.replace(HUB, hub, 1)) for file in mirror.files))
        for mirror in official
    )
    if own := os.environ.get("LOOKALIKE_MIRROR", "").rstrip("/"):
        files = official[0].files
        mirrors = (Mirror(own, tuple(replace(file, url=f"{own}/{file.name}") for file in files)), *mirrors)
    return mirrors
