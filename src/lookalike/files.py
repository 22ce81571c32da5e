"""Files that are on the disk once it is said so."""

from __future__ import annotations

import glob
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MANY = 200  # files beyond which the whole disk is written out at once


def sync(path: Path) -> None:
    """Have a file's bytes, or the names in a folder, on the disk before this returns.

    Raises:
        OSError: the disk does not take them.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Likewise for all files and folders in a folder, and itself; links are not followed.

    Raises:
        OSError: the disk does not take them.
    """
    if sum(len(names) for _, _, names in os.walk(folder)) > MANY:
        os.sync()  # all that is to be written, in the order that is good for the disk
        return
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            path = Path(parent) / name
            if not path.is_symlink():
                sync(path)
        sync(Path(parent))


def rename_durably(beside: Path, place: Path) -> None:
    """Give a file or folder that is whole its name: its bytes are on the disk before, the name after.

    Args:
        beside: what was written, in the same file system.
        place: its name. A file of this name is replaced.

    Raises:
        OSError: the disk does not take it, or there is a folder of this name.
    """
    if beside.is_dir():
        sync_tree(beside)
    else:
        sync(beside)
    beside.replace(place)
    sync(place.parent)


# Half-made folders, hidden beside the place they are meant for: made, and swept when their maker was killed.

if sys.platform != "win32":
    import fcntl


DAY = 86_400.0  # seconds; a younger one may belong to a process that still works


UNHELD = ".new"  # ends the name of a folder that its maker does not hold yet


@contextmanager
def half_made(place: Path, kind: str) -> Iterator[Path]:
    """A new, empty folder beside a place, to be filled; whatever of it is not renamed away is removed at the end.

    Its maker holds a lock on it as long as it lives, by which `sweep` tells it from what a killed process left behind.

    Args:
        place: what it is made for. The folder that it is in is made when missing.
        kind: the ending of the folder's name, such as "importing".

    Raises:
        OSError: it cannot be made.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    sweep(place.parent, f".{glob.escape(place.name)}-*.{kind}", held=True)
    sweep(place.parent, f".{glob.escape(place.name)}-*.{kind}{UNHELD}")
    made = Path(tempfile.mkdtemp(prefix=f".{place.name}-", suffix=f".{kind}{UNHELD}", dir=place.parent))
    beside = made.with_name(made.name.removesuffix(UNHELD))
    handle = None
    try:
        handle = _hold(made)
        made.rename(beside)
        yield beside
    finally:
        shutil.rmtree(made, ignore_errors=True)
        shutil.rmtree(beside, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def sweep(folder: Path, pattern: str, *, held: bool = False) -> None:
    """Remove the folders in `folder` that match a glob pattern and whose makers do not work on them any more.

    Args:
        folder: where they are.
        pattern: of their names.
        held: whether their makers hold them, as `half_made` does; of others it is only known that nobody works on one
            that has not changed for a day.
    """
    for left in folder.glob(pattern):
        with suppress(FileNotFoundError):  # another process sweeps too
            if left.is_symlink() or not left.is_dir():
                continue
            if time.time() - left.stat().st_mtime > DAY or (held and _is_let_go(left)):
                shutil.rmtree(left, ignore_errors=True)


def _hold(folder: Path) -> int | None:
    """Lock a folder until what is returned is closed; None where the file system has no such locks."""
    if sys.platform == "win32":
        return None
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _is_let_go(folder: Path) -> bool:
    handle = _hold(folder)
    if handle is not None:
        os.close(handle)
    return handle is not None
