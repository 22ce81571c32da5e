"""Find copies: files with the same bytes, and images with the same pixels in training and evaluation."""

from __future__ import annotations

import hashlib
import os
import stat
import zipfile
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from lookalike.hardware import cores, stoppable_threads

if TYPE_CHECKING:
    from lookalike.data.pack import Pack

TAIL_BYTES = 4096  # at the end of a file, compared before the whole file is read
CHUNK = 256  # files read by a thread at a time
MAX_NAMED = 3  # pairs named in a message


@dataclass(frozen=True)
class Leak:
    """Evaluation images that are also training images.

    Args:
        count: how many.
        total: number of evaluation images.
        pairs: path of each, and path of a training image with the same pixels.
    """

    count: int
    total: int
    pairs: tuple[tuple[str, str], ...]

    @property
    def sentence(self) -> str:
        """The leak in words, with some paths."""
        what = "is a copy of a training image" if self.count == 1 else "are copies of training images"
        some = "; ".join(f"{one} = {other}" for one, other in self.pairs[:MAX_NAMED])
        more = "; ..." if self.count > MAX_NAMED else ""
        return (
            f"{self.count:,} of {self.total:,} images {what} (the same pixels), which makes results look better than "
            f"they are: {some}{more}"
        )


def same_bytes(root: Path, container: Literal["folder", "zip"], paths: Sequence[str]) -> list[list[int]]:
    """Find files with the same bytes.

    Files of the same length are compared by their last 4 KiB, then by the SHA-256 of the whole file. Members of a zip
    are compared by length and CRC. Empty and unreadable files are left out.

    Args:
        root: folder or zip.
        container: of the files.
        paths: relative to the folder, or names in the zip.

    Returns:
        Groups of two or more indices into `paths`, ascending.
    """
    if container == "zip":
        with zipfile.ZipFile(root) as archive:
            members = {one.filename: (one.file_size, one.CRC) for one in archive.infolist() if one.file_size}
        return _groups(range(len(paths)), [members.get(path) for path in paths])
    groups = _groups(range(len(paths)), [_length(root / path) for path in paths])
    for read in (_tail, _digest):
        rows = [row for group in groups for row in group]
        keys = dict(zip(rows, _map(read, [root / paths[row] for row in rows]), strict=True))
        groups = [rest for group in groups for rest in _groups(group, [keys[row] for row in group])]
    return sorted(groups)


def leak(training: Pack, measured: Pack) -> Leak | None:
    """Find evaluation images with the pixels of a training image, at the size of the packs; None if there are none.

    Images are compared by their middle line first, so that little of the packs is read.
    """
    lines: dict[bytes, list[int]] = defaultdict(list)
    for row in range(len(measured.images)):
        lines[_middle(measured.images[row])].append(row)
    alike = [row for row in range(len(training.images)) if _middle(training.images[row]) in lines]
    trained: dict[bytes, int] = {}
    for row in alike:
        trained.setdefault(_pixels(training.images[row]), row)
    wanted = {_middle(training.images[row]) for row in alike}
    pairs = []
    for row in sorted(row for line in wanted for row in lines[line]):
        if (twin := trained.get(_pixels(measured.images[row]))) is not None:
            pairs.append((measured.catalog.paths[row], training.catalog.paths[twin]))
    return Leak(len(pairs), len(measured.images), tuple(pairs)) if pairs else None


def _middle(image: NDArray[np.uint8]) -> bytes:
    return bytes(image[len(image) // 2].data)


def _pixels(image: NDArray[np.uint8]) -> bytes:
    return hashlib.sha256(image.data).digest()


def _groups(rows: Iterable[int], keys: Iterable[Hashable | None]) -> list[list[int]]:
    """Group rows by key; only groups of two or more. None is equal to nothing."""
    found: dict[Hashable, list[int]] = defaultdict(list)
    for row, key in zip(rows, keys, strict=True):
        if key is not None:
            found[key].append(row)
    return [group for group in found.values() if len(group) > 1]


def _map(read: Callable[[Path], Any], files: list[Path]) -> list[Any]:
    """Apply `read` to each file in threads; None for unreadable files."""

    def chunk(start: int) -> list[Any]:
        found: list[Any] = []
        for path in files[start : start + CHUNK]:
            if stop.is_set():
                break
            try:
                found.append(read(path))
            except OSError:
                found.append(None)
        return found

    with stoppable_threads(cores()) as (threads, stop):
        return [key for keys in threads.map(chunk, range(0, len(files), CHUNK)) for key in keys]


def _length(path: Path) -> int | None:
    """Return the length of a file; None if it is empty or not a regular file."""
    try:
        about = path.stat()
    except (OSError, ValueError):
        return None
    return about.st_size or None if stat.S_ISREG(about.st_mode) else None


def _tail(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
        return file.read(TAIL_BYTES)


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
