"""Derived files as they are read: plain files of the length and checksum that the database names, into memory.

They are not mapped: a mapped file that is cut short under a process ends it. What one store of a process has read, the
others use.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import zlib
from pathlib import Path
from typing import IO
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from lookalike.gallery.store.sqlite_schema import DATABASE

BLOCK = 1 << 22  # bytes read at a time
FOLD, SMALL = 8, 64 << 20  # a derived file is at most so many times as long as the database, or has so many bytes

_read_already: WeakValueDictionary[tuple[object, ...], NDArray[np.uint8]] = WeakValueDictionary()
_turns = threading.Lock()


def read_whole(path: Path, length: int, expected: int, *, again: bool) -> NDArray[np.uint8]:
    """(length,) uint8: the bytes of a file, once for all who have them in memory.

    Raises:
        OSError: it is not there, no plain file, or not of this length and CRC-32.
        MemoryError: there is no room for it.
    """
    with opened(path, length) as file, _turns:
        found = os.fstat(file.fileno())
        key = (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, path.name, length, expected)
        data = None if again else _read_already.get(key)
        if data is not None:
            return data
        data = np.empty(length, np.uint8)
        total = 0
        for first in range(0, length, BLOCK):
            part = data.data[first : first + BLOCK]
            if file.readinto(part) != len(part):  # type: ignore[attr-defined]
                raise OSError(errno.EIO, "was cut short while it was read")
            total = zlib.crc32(part, total)
        if total != expected:
            raise OSError(errno.EIO, "is not what was written (damaged)")
        data.flags.writeable = False
        _read_already[key] = data
        return data


def opened(path: Path, length: int) -> IO[bytes]:
    """A derived file, opened: a plain file of this length, and no more than its database can be the reason for.

    Raises:
        OSError: it is not.
    """
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "is no plain file")
        if found.st_size != length:
            raise OSError(errno.EIO, f"has {found.st_size:,} bytes of {length:,}")
        if length > max(SMALL, FOLD * path.with_name(DATABASE).stat().st_size):
            raise OSError(errno.EFBIG, f"has {length:,} bytes, more than all rows of the database come to")
        return os.fdopen(handle, "rb", buffering=0)
    except BaseException:
        os.close(handle)
        raise


def fault_of(error: OSError) -> str:
    """What is wrong with a file, as it follows its name."""
    if error.errno == errno.ENOENT:
        return "is missing"
    if error.errno in {errno.ELOOP, errno.ENXIO, errno.EMLINK}:
        return "is no plain file"
    if error.errno in {errno.EIO, errno.EINVAL, errno.EFBIG} and error.filename is None:
        return str(error.strerror)
    return f"cannot be read ({error.strerror})"


def length_and_checksum(path: Path) -> tuple[int, int]:
    """Of a file, its CRC-32."""
    length = total = 0
    block = bytearray(BLOCK)
    with path.open("rb", buffering=0) as file:
        while got := file.readinto(block):
            total = zlib.crc32(memoryview(block)[:got], total)
            length += got
    return length, total
