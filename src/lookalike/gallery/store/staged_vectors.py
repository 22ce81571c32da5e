"""Vectors of another model, kept in a file beside the database until there is one for every item.

    reembed-TOKEN.vectors    a line of JSON (the model's fingerprint and dimension), then one record for each vector
    reembed.lock             locked by the process that writes them

A record has an id, a checksum, whether the vector was computed from a thumbnail, and the vector. Those of thumbnails
count until the file is closed. Whatever stopped the writer, the records before the first damaged one
count; the others are cut off.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from lookalike.errors import InputError
from lookalike.gallery.store.base import GalleryInfo
from lookalike.gallery.store.common import checksum

PATTERN = "reembed-*.vectors"
LOCK = "reembed.lock"
RECORDS = 4096  # read at a time
MAX_HEADER = 1 << 16  # bytes


class StagedVectors:
    """The file of one model. Use `open_staged`.

    Args:
        file: open for reading and writing; its position is after the header.
        dim: numbers of a vector.
    """

    def __init__(self, file: IO[bytes], dim: int) -> None:
        self._file = file
        self._type = np.dtype([("id", "<i8"), ("checksum", "<u4"), ("thumbnail", "?"), ("vector", "<f2", (dim,))])
        self._start = file.tell()
        self._before = self._cut()

    def ids(self) -> NDArray[np.int64]:
        """The ids that have a vector, (N,) int64, in the order in which they came."""
        self._cut()
        return np.concatenate([np.empty(0, np.int64), *(some["id"].astype(np.int64) for some in self._counting())])

    def add(
        self, ids: NDArray[np.int64], vectors: NDArray[np.float16], from_thumbnails: Sequence[bool] | None = None
    ) -> None:
        """Add vectors, (N, D) float16 of length 1. They are on the disk when this returns; see `Reembedding.add`."""
        records = np.empty(len(ids), self._type)
        records["id"], records["vector"] = ids, vectors
        records["thumbnail"] = False if from_thumbnails is None else from_thumbnails
        records["checksum"] = [_checksum(record) for record in records]
        self._file.seek(0, os.SEEK_END)
        self._file.write(records.tobytes())
        self._file.flush()
        os.fsync(self._file.fileno())

    def vectors(self) -> Iterator[tuple[int, bytes]]:
        """Yield ids and the bytes of their vectors, little-endian float16."""
        for some in self._counting():
            yield from zip(some["id"].tolist(), (vector.tobytes() for vector in some["vector"]), strict=True)

    def _cut(self) -> int:
        """Cut off what follows the last intact record; returns the number of records."""
        count = sum(len(some) for some in self._intact())
        self._file.truncate(self._start + count * self._type.itemsize)
        return count

    def _counting(self) -> Iterator[NDArray[np.void]]:
        """Yield the intact records but those of thumbnails from before the file was opened."""
        place = 0
        for some in self._intact():
            numbers = np.arange(place, place + len(some))
            yield some[~some["thumbnail"] | (numbers >= self._before)]
            place += len(some)

    def _intact(self) -> Iterator[NDArray[np.void]]:
        """Yield the records up to the first one that is cut short or damaged."""
        place = self._start
        while True:
            self._file.seek(place)
            data = self._file.read(RECORDS * self._type.itemsize)
            records = np.frombuffer(data[: len(data) // self._type.itemsize * self._type.itemsize], self._type)
            good = [_checksum(record) == record["checksum"] for record in records]
            intact = good.index(False) if False in good else len(good)
            if intact:
                yield records[:intact]
            if intact < RECORDS:
                return
            place += len(records) * self._type.itemsize


def _checksum(record: np.void) -> int:
    return checksum(int(record["id"]), record["thumbnail"].tobytes() + record["vector"].tobytes())


@contextmanager
def open_staged(folder: Path, about: GalleryInfo) -> Iterator[StagedVectors]:
    """Open the file of a model, or create it, and keep other processes from doing so.

    Args:
        folder: of the gallery.
        about: the model.

    Raises:
        InputError: another process has it open, or it cannot be written.
    """
    path = folder / f"reembed-{about.fingerprint[:12]}.vectors"
    with _alone(folder):
        try:
            file = _opened(path, about)
        except OSError as error:
            raise _unwritable(path, error) from None
        with file:
            try:
                yield StagedVectors(file, about.dim)
            except OSError as error:
                if error.filename is not None:
                    raise
                raise _unwritable(path, error) from None


def discard_staged(folder: Path) -> None:
    """Remove the files of all models, unless a process has one open.

    Raises:
        InputError: a process has one open.
    """
    with _alone(folder):
        remove_staged(folder)


def remove_staged(folder: Path) -> None:
    """Remove the files of all models."""
    for path in folder.glob(PATTERN):
        with suppress(OSError):
            path.unlink()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes from opening a file. The operating system releases the lock of a process that was killed."""
    lock = FileLock(folder / LOCK, thread_local=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise InputError(
            f"{folder}: another process is computing new vectors for this gallery.", "Wait for it, or stop it."
        ) from None
    except OSError as error:
        raise _unwritable(folder / LOCK, error) from None
    try:
        yield
    finally:
        lock.release()


def _opened(path: Path, about: GalleryInfo) -> IO[bytes]:
    """Open the file after its header; a file of another model or with a damaged header is made anew."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    file = os.fdopen(os.open(path, flags, 0o666), "r+b")
    header = json.dumps({"fingerprint": about.fingerprint, "dim": about.dim, "format": 2}).encode() + b"\n"
    if file.readline(MAX_HEADER) != header:
        file.seek(0)
        file.truncate()
        file.write(header)
        file.flush()
    return file


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(
        f"{path}: cannot be written ({error.strerror}).", "Check permissions and free space, then run it again."
    )
