"""Write files and folders atomically: complete or absent, and on the disk where that is asked for.

`atomic_write`, `atomic_file` and `atomic_folder` write beside the final path and rename into it. They are the only
places that do so, apart from downloads, which keep a partial file to resume it.
"""

from __future__ import annotations

import errno
import glob
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lookalike.errors import InputError

if sys.platform != "win32":
    import fcntl

SYNC_ALL_ABOVE = 200  # files in a folder above which os.sync() is faster than one fsync per file
DAY = 86_400.0  # seconds; a younger temporary folder may belong to a process that still works
UNLOCKED = ".new"  # suffix of a temporary folder until its maker holds the lock on it
NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
EXISTS = {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR}


def partial_path(path: Path) -> Path:
    """Return the path that `atomic_file` writes to before it renames: `NAME.partial` in the same folder."""
    return path.with_name(path.name + ".partial")


def atomic_write(path: Path, content: str | bytes | memoryview, *, durable: bool = False, remedy: str = "") -> None:
    """Write a file, complete or not at all; an existing file stays as it is until the new one replaces it.

    Args:
        path: the file. Its folder must exist.
        content: text is written as UTF-8 without newline translation.
        durable: return only when the bytes and the name are on the disk.
        remedy: what the error advises.

    Raises:
        InputError: the file cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    with atomic_file(path, durable=durable, remedy=remedy) as partial:
        partial.write_bytes(data)


@contextmanager
def atomic_file(path: Path, *, durable: bool = False, shared: bool = False, remedy: str = "") -> Iterator[Path]:
    """Yield a path beside `path` to write to; rename it to `path` when the block ends without an exception.

    When the block raises, the partial file is removed and an existing file at `path` stays as it was. What a killed
    process leaves is overwritten by the next one.

    Args:
        path: the file. Its folder must exist.
        durable: return only when the bytes and the name are on the disk.
        shared: other processes may write the same path at the same time; each gets a partial file of its own.
        remedy: what the error advises.

    Raises:
        InputError: the file cannot be written (an OSError of the block is taken for this).
    """
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}") if shared else partial_path(path)
    try:
        yield partial
        if durable:
            rename_durably(partial, path)
        else:
            partial.replace(path)
    except OSError as error:
        raise cannot_write(path, error, remedy) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, *, durable: bool = False, remedy: str = "") -> Iterator[Path]:
    """Yield a new, empty folder beside `path`; rename it to `path` when the block ends without an exception.

    When the block raises, the temporary folder is removed. Its maker holds a lock on it as long as it lives, so that
    the next call for the same path recognises and removes what a killed process left.

    Args:
        path: the folder to make. Missing parents are made. It must not exist, or be empty.
        durable: return only when all files and the name are on the disk.
        remedy: what the error advises.

    Raises:
        InputError: `path` exists, or cannot be written (an OSError of the block is taken for this).
    """
    place = path.absolute()
    pattern = f".{glob.escape(path.name)}-*.partial"
    made = partial = lock = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        sweep(place.parent, pattern, locked=True)
        sweep(place.parent, pattern + UNLOCKED)
        made = Path(tempfile.mkdtemp(prefix=f".{place.name}-", suffix=f".partial{UNLOCKED}", dir=place.parent))
        lock = _lock(made)
        partial = made.rename(made.with_name(made.name.removesuffix(UNLOCKED)))
        yield partial
        partial.chmod(0o755)  # mkdtemp makes folders that only their owner can enter
        if durable:
            rename_durably(partial, place)
        else:
            partial.replace(place)
    except OSError as error:
        raise cannot_write(path, error, remedy) from error
    finally:
        for left in (made, partial):
            if left is not None:
                shutil.rmtree(left, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def cannot_write(path: Path, error: OSError, remedy: str = "") -> InputError:
    """Return the InputError for a path that cannot be written."""
    if error.errno in EXISTS and path.exists():
        return InputError(f"{path}: already exists.", remedy or "Choose another name, or remove it.")
    advice = "Free some space, or choose another folder." if error.errno in NO_SPACE else "Choose another folder."
    return InputError(f"{path}: cannot be written ({error.strerror or error}).", remedy or advice)


def rename_durably(source: Path, target: Path) -> None:
    """Write a complete file or folder to the disk, rename it, then write the new name to the disk.

    Args:
        source: the file or folder.
        target: its new path, in the same file system. An existing file is replaced.

    Raises:
        OSError: the disk refuses, or `target` is a folder that is not empty.
    """
    if source.is_dir():
        sync_tree(source)
    else:
        sync(source)
    source.replace(target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Write a file's bytes, or the names in a folder, to the disk.

    Raises:
        OSError: the disk refuses.
    """
    if sys.platform == "win32" and path.is_dir():
        return  # Windows opens no folders
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Write a folder and everything in it to the disk. Symbolic links are not followed.

    Raises:
        OSError: the disk refuses.
    """
    if sum(len(names) for _, _, names in os.walk(folder)) > SYNC_ALL_ABOVE:
        os.sync()
        return
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            path = Path(parent) / name
            if not path.is_symlink():
                sync(path)
        sync(Path(parent))


def sweep(folder: Path, pattern: str, *, locked: bool = False) -> None:
    """Remove temporary folders whose makers are gone.

    Args:
        folder: where they are.
        pattern: a glob pattern of their names.
        locked: their makers lock them, as `atomic_folder` does, so an unlocked one is removed at once. Without locks
            only those are removed that have not changed for a day.
    """
    for left in folder.glob(pattern):
        with suppress(FileNotFoundError):  # another process sweeps at the same time
            if left.is_symlink() or not left.is_dir():
                continue
            if time.time() - left.stat().st_mtime > DAY or (locked and _is_unlocked(left)):
                shutil.rmtree(left, ignore_errors=True)


def _lock(folder: Path) -> int | None:
    """Lock a folder until the returned descriptor is closed; None where the file system has no locks."""
    if sys.platform == "win32":
        return None
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _is_unlocked(folder: Path) -> bool:
    handle = _lock(folder)
    if handle is not None:
        os.close(handle)
    return handle is not None
