"""The paths of rows: which rows lie at or below a path, and whether the file of a row is gone.

A row's path is that of a file, `FILE.zip/MEMBER`, `FILE.parquet#NUMBER`, or a URI.
"""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Callable, Iterable

import pyarrow as pa
import pyarrow.parquet as pq

from lookalike.gallery.store.base import Store, batches

LOOKED_UP = 1000  # paths at once


def rows_at(store: Store, paths: Iterable[str]) -> dict[str, list[int]]:
    """The ids of the rows at each path, or, where there is none, of all rows below it: in a folder, zip or Parquet
    file, whether or not that is still there. A path is as the row has it, or as the file is called from here.
    """
    found: dict[str, list[int]] = {}
    for some in batches(dict.fromkeys(paths), LOOKED_UP):
        known = store.by_path([*some, *map(os.path.abspath, some)])
        for path in some:
            rows = {known[name].id for name in (path, os.path.abspath(path)) if name in known}  # noqa: PTH100
            found[path] = sorted(rows)
    if above := [path for path, ids in found.items() if not ids]:
        for row in store.rows():
            for path in above:
                if is_below(row.path, path):
                    found[path].append(row.id)
    return found


def forget_rejected(store: Store, paths: Iterable[str]) -> int:
    """Forget the rejected files at or below these paths; how many there were."""
    paths = list(paths)
    known = [one.path for one in store.rejected()]
    gone = [one for one in known if any(is_at(one, path) for path in paths)]
    store.forget(gone)
    return len(gone)


def is_at(path: str, there: str) -> bool:
    """Whether a row's or rejected file's path is the one given, or below it."""
    return path in (there, os.path.abspath(there)) or is_below(path, there)  # noqa: PTH100


def is_below(path: str, above: str) -> bool:
    """Whether a row's path lies in a folder, zip or Parquet file, as the row has that or as it is called from here."""
    bases = {above.rstrip("/"), os.path.abspath(above).rstrip("/")} if above else set()  # noqa: PTH100
    rests = [path[len(base) :] for base in bases if path.startswith(base)]
    return any(rest.startswith("/") or (rest.startswith("#") and rest[1:].isdecimal()) for rest in rests)


class Gone:
    """Says of paths whether what they name is gone. Containers are opened once each, so keep it for one look only.

    What cannot be looked at, because a folder may not be entered or a container is damaged, is not gone.
    """

    def __init__(self) -> None:
        self._containers: dict[str, Callable[[str], bool]] = {}

    def __call__(self, path: str) -> bool:
        """Whether it is gone.

        Args:
            path: of a file, `FILE.zip/MEMBER`, or `FILE.parquet#NUMBER`.
        """
        try:
            os.stat(path)  # noqa: PTH116
        except (FileNotFoundError, NotADirectoryError):
            container, inside = _container_of(path)
            return not container or not self._holds(container, inside)
        except (OSError, ValueError):
            return False
        return False

    def _holds(self, container: str, inside: str) -> bool:
        if container not in self._containers:
            self._containers[container] = _contents(container)
        return self._containers[container](inside)


def _container_of(path: str) -> tuple[str, str]:
    """The file that a path leads into, and what it names there; two empty texts where there is none."""
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
    """Whether a container holds what has this name or number; of one that cannot be read, everything."""
    try:
        if zipfile.is_zipfile(container):
            with zipfile.ZipFile(container) as archive:
                return frozenset(archive.namelist()).__contains__
        count = int(pq.read_metadata(container).num_rows)
    except (OSError, zipfile.BadZipFile, pa.ArrowException):
        return lambda inside: True
    return lambda inside: not inside.isdecimal() or int(inside) < count
