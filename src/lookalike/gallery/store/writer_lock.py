"""One writer at a time: a lock that says who holds it, and is let go when its process ends, however it ends."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import stat
import sys
from datetime import datetime
from pathlib import Path

from lookalike.errors import InputError, without_passwords

NAME = "writer.lock"
LONGEST = 4096  # characters of what it says


class WriterLock:
    """The right to write to a gallery's folder, held from its making until `release`.

    The file stays; what counts is the operating system's lock on it, which a killed process cannot leave behind.

    Raises:
        InputError: another process holds it (named), or the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / NAME
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise _no_plain_file(path) from None
            raise InputError(
                f"{folder}: cannot be written ({error.strerror}).", "Change its permissions, or open it for reading."
            ) from None
        if not stat.S_ISREG(os.fstat(self._file).st_mode):
            os.close(self._file)
            raise _no_plain_file(path)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._file)
            if not isinstance(error, BlockingIOError):
                raise InputError(
                    f"{path}: cannot be locked ({error.strerror}).", "Keep the gallery on a disk with file locks."
                ) from None
            raise InputError(
                f"{folder}: {_holder(path)} is writing to it.", "Wait until it has ended, or stop it."
            ) from None
        self._write_holder()

    def is_of(self, folder: Path) -> bool:
        """Whether it is the lock of what is in this folder now."""
        held = os.fstat(self._file)
        try:
            found = (folder / NAME).stat()
        except OSError:
            return False
        return (held.st_dev, held.st_ino) == (found.st_dev, found.st_ino)

    def release(self) -> None:
        """Let another write; once is enough, twice does no harm."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _write_holder(self) -> None:
        holder = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "command": without_passwords(" ".join(sys.argv))[:200],
            "since": datetime.now().astimezone().isoformat(" ", "seconds"),
        }
        try:
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, json.dumps(holder).encode(), 0)
        except OSError:  # a full disk: the lock holds all the same, only its holder is not named
            os.ftruncate(self._file, 0)


def _no_plain_file(path: Path) -> InputError:
    """What is said of a lock that is a link or a device: who writes to it would write elsewhere."""
    return InputError(f"{path}: a link or a device, no plain file.", "Remove it; it is made anew.")


def _holder(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            holder = json.loads(file.read(LONGEST))
        who = f"process {holder['pid']} on {holder['host']}"
        return f"{who} ('{holder['command']}', since {holder['since']})"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another process"
