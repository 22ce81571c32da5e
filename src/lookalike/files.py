"""Files that are on the disk once it is said so."""

from __future__ import annotations

import os
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
