"""Read the image file of an item by the path that the gallery has of it.

A path is that of a file, `FILE.zip/MEMBER`, `FILE.parquet#ROW`, or a URI. An uploaded image has no file.
"""

from __future__ import annotations

import errno
import os
import threading
import zipfile
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lookalike.errors import InputError
from lookalike.gallery.item_paths import container_of
from lookalike.gallery.sources.base import SourceImage, file_image
from lookalike.gallery.sources.remote import is_uri, remote_image
from lookalike.gallery.sources.tables import images_from
from lookalike.image import MAX_BYTES

UPLOAD_PREFIX = "upload:"  # of the path of an uploaded item; the SHA-256 of its file follows


class GoneError(InputError):
    """The file of an item is gone."""


def load_item(path: str) -> bytes:
    """Return the bytes of an item's image file.

    Raises:
        OSError: the file, or the zip or Parquet file that it is in, cannot be read or reached: perhaps only now.
        GoneError: it is gone; this also holds for all files of a disk that is not mounted.
        InputError: it was uploaded, is no regular file, is too large, or is damaged in its zip.
    """
    if path.startswith(UPLOAD_PREFIX):
        raise InputError("it was uploaded and has no file.", "Upload it again.")
    if is_uri(path):
        return _object(path)
    try:
        os.stat(path)  # noqa: PTH116
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            raise
        container, inside = container_of(path)
        if container and path.startswith(f"{container}#"):
            return _row(container, int(inside))
        if container:
            return _member(container, inside)
        raise GoneError("its file is gone.", "Bring it back.") from None
    found = file_image(path)
    if not isinstance(found, SourceImage):
        raise InputError(f"{found.reason}.", "Replace it.")
    return found.load()


def _object(uri: str) -> bytes:
    try:
        return remote_image(uri).load()
    except FileNotFoundError:
        raise GoneError("its file is gone.", "Bring it back.") from None
    except InputError as error:
        raise OSError(error.message) from None


def _member(container: str, name: str) -> bytes:
    try:
        archive = zipfile.ZipFile(container)
    except (ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise OSError(f"the zip it was in cannot be read: {error}") from None
    with archive:
        try:
            with archive.open(name) as file:
                return file.read(MAX_BYTES + 1)
        except KeyError as error:
            raise GoneError(f"no longer in the zip ({error}).", "Bring it back.") from None
        except (RuntimeError, ValueError, EOFError, zlib.error, zipfile.BadZipFile) as error:
            raise InputError(f"cannot be read from its zip ({error}).", "Replace the zip.") from None


def _row(container: str, number: int) -> bytes:
    stamp = os.stat(container).st_mtime_ns  # noqa: PTH116
    try:
        image = _rows_of(container, stamp).image(number)
    except (InputError, StopIteration, pa.ArrowException) as error:
        if isinstance(error, GoneError):
            raise
        raise OSError(f"its Parquet file cannot be read: {error}") from None
    if not image:
        raise InputError("no image in this row of its Parquet file.", "Bring it back.")
    return image


@lru_cache(maxsize=2)
def _rows_of(container: str, stamp: int) -> _Rows:
    """`stamp`: time of change of the file."""
    return _Rows(Path(container))


class _Rows:
    """The images of a Parquet file, fast if they are read in the order of their rows by several threads.

    Only two batches of rows are in memory.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        metadata = pq.read_metadata(path)
        sizes = [int(metadata.row_group(group).num_rows) for group in range(metadata.num_row_groups)]
        self._starts = [sum(sizes[:group]) for group in range(len(sizes))]
        self._count = sum(sizes)
        self._lock = threading.Lock()
        self._batches: Iterator[list[bytes | None]] = iter(())
        self._before: list[bytes | None] = []
        self._now: list[bytes | None] = []
        self._next = self._count  # row at which the next batch begins

    def image(self, number: int) -> bytes | None:
        """Return the image of a row; None if it has none.

        Raises:
            GoneError: there is no such row.
            InputError: the file cannot be read, or has no images.
            StopIteration: it has become shorter.
        """
        if number >= self._count:
            raise GoneError("no longer in the Parquet file.", "Bring it back.")
        with self._lock:
            group = sum(start <= number for start in self._starts) - 1
            if not self._next - len(self._now) - len(self._before) <= number or self._starts[group] > self._next:
                self._batches = images_from(self._path, group)
                self._before, self._now, self._next = [], [], self._starts[group]
            try:
                while number >= self._next:
                    self._before, self._now = self._now, next(self._batches)
                    self._next += len(self._now)
            except (InputError, StopIteration):
                self._before, self._now, self._next = [], [], self._count
                raise
            return (self._before + self._now)[number - self._next]
