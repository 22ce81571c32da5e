"""The paths of items: which items are at or below a path, and whether the file of an item is gone.

An item's path is that of a file, `FILE.zip/MEMBER`, `FILE.parquet#NUMBER`, or a URI.
"""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Callable, Iterable

import pyarrow as pa
import pyarrow.parquet as pq

from lookalike.gallery.store.base import Store, batches

LOOKUP_BATCH = 1000  # paths looked up at once


def items_at(store: Store, paths: Iterable[str]) -> dict[str, list[int]]:
    """The ids of the items at each path; if there is none, of all items below it in a folder, zip or Parquet file.

    Args:
        store: of the gallery.
        paths: as the items have them, or relative to the working directory. The files need not exist.
    """
    found: dict[str, list[int]] = {}
    for some in batches(dict.fromkeys(paths), LOOKUP_BATCH):
        known = store.by_path([*some, *map(os.path.abspath, some)])
        for path in some:
            ids = {known[name].id for name in (path, os.path.abspath(path)) if name in known}  # noqa: PTH100
            found[path] = sorted(ids)
    if above := [path for path, ids in found.items() if not ids]:
        for item in store.rows():
            for path in above:
                if is_below(item.path, path):
                    found[path].append(item.id)
    return found


def forget_failed(store: Store, paths: Iterable[str]) -> int:
    """Forget the failed files at or below these paths; returns how many there were."""
    paths = list(paths)
    known = [file.path for file in store.rejected()]
    chosen = [one for one in known if any(is_at(one, path) for path in paths)]
    store.forget(chosen)
    return len(chosen)


def is_at(path: str, place: str) -> bool:
    """Whether the path of an item or failed file is `place` or below it."""
    return path in (place, os.path.abspath(place)) or is_below(path, place)  # noqa: PTH100


def is_below(path: str, above: str) -> bool:
    """Whether an item's path is in a folder, zip or Parquet file; `above` may be relative to the working directory."""
    bases = {above.rstrip("/"), os.path.abspath(above).rstrip("/")} if above else set()  # noqa: PTH100
    rests = [path[len(base) :] for base in bases if path.startswith(base)]
    return any(rest.startswith("/") or (rest.startswith("#") and rest[1:].isdecimal()) for rest in rests)


class Gone:
    """Tells whether the file of a path is gone. Each container is opened only once, so use an instance for one scan.

    A file that cannot be examined, for lack of permission or because its container is damaged, is not gone.
    """

    def __init__(self) -> None:
        self._containers: dict[str, Callable[[str], bool]] = {}

    def __call__(self, path: str) -> bool:
        """Whether the file is gone.

        Args:
            path: of a file, `FILE.zip/MEMBER`, or `FILE.parquet#NUMBER`.
        """
        try:
            os.stat(path)  # noqa: PTH116
        except (FileNotFoundError, NotADirectoryError):
            container, inside = container_of(path)
            return not container or not self._contains(container, inside)
        except (OSError, ValueError):
            return False
        return False

    def _contains(self, container: str, inside: str) -> bool:
        if container not in self._containers:
            self._containers[container] = _contents(container)
        return self._containers[container](inside)


def container_of(path: str) -> tuple[str, str]:
    """The container file in a path, and the name or number inside; two empty texts if there is none."""
    file, _, number = path.rpartition("#")
    if number.isdecimal() and _is_file(file):
        return file, number
    folder = path
    while (above := os.path.dirname(folder)) != folder:  # noqa: PTH120
        folder = above
        if os.path.lexists(folder):
            return (folder, path[len(folder) + 1 :]) if _is_file(folder) else ("", "")
    return "", ""


def _is_file(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)  # noqa: PTH116
    except (OSError, ValueError):
        return False


def _contents(container: str) -> Callable[[str], bool]:
    """A function that tells whether a container has a name or number; always true if it cannot be read."""
    try:
        if zipfile.is_zipfile(container):
            with zipfile.ZipFile(container) as archive:
                return frozenset(archive.namelist()).__contains__
        count = int(pq.read_metadata(container).num_rows)
    except (OSError, zipfile.BadZipFile, pa.ArrowException):
        return lambda inside: True
    return lambda inside: not inside.isdecimal() or int(inside) < count
