"""What there is to add: files, folders, patterns, lists and data sets, as one stream of items.

Nothing is decoded here, and no more is in memory than the names of one folder.
"""

from __future__ import annotations

import glob
import os
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from lookalike.data.catalog import UNLABELLED, Catalog
from lookalike.data.folder import SPLIT_NAMES, is_image, open_zip
from lookalike.data.hugging_face import shards_at
from lookalike.data.read import BUILTIN, read
from lookalike.data.sources import installed
from lookalike.errors import InputError
from lookalike.image import MAX_BYTES
from lookalike.search.store.base import Rejected, Value

TABLES = frozenset({".csv", ".tsv", ".parquet"})

Source = str | Path | Catalog


@dataclass(frozen=True, slots=True)
class Item:
    """A picture to add.

    Args:
        path: what it is known by in the gallery.
        size, modified: bytes, and the time of change in nanoseconds, as far as they are known without reading it.
        load: reads the file; raises OSError, or InputError.
        label: what it is; None: not said.
        metadata: what else is known; None: not said.
        listed: label and metadata were written down by somebody, and hold for a row that is there already, too.
        held: bytes that it keeps in memory.
    """

    path: str
    size: int
    modified: int
    load: Callable[[], bytes]
    label: str | None = None
    metadata: Mapping[str, Value] | None = None
    listed: bool = False
    held: int = 0


Found = Item | Rejected


@dataclass(frozen=True)
class Listing:
    """One source, looked at and known to be there.

    Args:
        name: as the person gave it.
        items: lists it from the beginning; what cannot be read comes as rejected.
        count: how many there will be, without looking closely.
        folder: its absolute path, of a source that is a folder of files.
    """

    name: str
    items: Callable[[], Iterator[Found]]
    count: Callable[[], int]
    folder: str | None = None


def listing_of(source: Source, *, folder_labels: bool = True) -> Listing:
    """What a source means.

    Args:
        source: a catalog; or, as text or a path: a folder of pictures (recursively; hidden files are left out; a
            folder without pictures may hold Parquet shards with pictures in them), a file, a CSV, TSV or Parquet list
            (columns path, label, any others), a Parquet file with pictures in it, a pattern such as `photos/**/*.jpg`,
            the URI of an object or of a prefix (`s3://bucket/photos`), or the name of a data set.
        folder_labels: whether pictures of a folder get the name of the folder inside it that they lie in as label,
            below `train`, `val` or `test` where there is such.

    Raises:
        InputError: nothing there, or nothing that a gallery can be filled with.
    """
    if isinstance(source, Catalog):
        return Listing(source.name, partial(_of_catalog, source), lambda: len(source))
    if not isinstance(source, str | Path) or "\0" in str(source):
        raise InputError(f"{source!r} is no source of pictures.", "Give files, folders, patterns, tables or a catalog.")
    if isinstance(source, str) and "://" in source:
        from lookalike.search.uris import is_uri, list_of_uri

        if is_uri(source):
            return list_of_uri(source, folder_labels=folder_labels)
    path = Path(source).expanduser()
    if path.is_dir():
        return _of_folder(path, folder_labels)
    if os.path.lexists(path):
        if path.suffix.lower() in TABLES:
            from lookalike.search.lists import list_of

            return list_of(path)
        return Listing(str(source), partial(_of_files, [str(path)]), lambda: 1)
    if glob.has_magic(str(path)):
        return _of_pattern(path)
    if isinstance(source, str) and (source == BUILTIN or installed(source) is not None):
        return listing_of(read(source))
    raise InputError(f"{source}: no such file or folder, and no data set of this name.", "Check the path.")


def file_item(path: str, *, label: str | None = None, metadata: Mapping[str, Value] | None = None) -> Found:
    """A file on disk as an item, or why it can be none. Its path becomes absolute; links in it are kept."""
    path = os.path.abspath(path)  # noqa: PTH100  (Path.resolve would follow links, Path.absolute keep "..")
    try:
        about = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError) as error:
        return Rejected(printable(path), f"cannot be read ({getattr(error, 'strerror', None) or error})")
    size, modified = about.st_size, about.st_mtime_ns
    if printable(path) != path:
        return Rejected(printable(path), "its name is not UTF-8: rename it", size, modified)
    if not stat.S_ISREG(about.st_mode):
        return Rejected(path, "not a regular file", size, modified)
    if size > MAX_BYTES:
        return Rejected(path, f"{size / 2**20:,.0f} MiB are too many for a picture", size, modified)
    return Item(path, size, modified, partial(read_file, path), label, metadata)


def printable(path: str) -> str:
    r"""The path, with what is not UTF-8 in it written as \xff and so on: a store keeps text only."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


@dataclass
class Walk:
    """The picture files below a folder, depth first, by name; each folder once, also where links make a loop."""

    root: str
    seen: set[tuple[int, int]] = field(default_factory=set)
    faults: list[Rejected] = field(default_factory=list)  # folders that cannot be listed

    def files(self) -> Iterator[str]:
        """Paths of files that are called like a picture."""
        waiting = [self._inside(self.root)]
        while waiting:
            path, is_folder = next(waiting[-1], ("", False))
            if not path:
                waiting.pop()
            elif is_folder:
                waiting.append(self._inside(path))
            else:
                yield path

    def _inside(self, folder: str) -> Iterator[tuple[str, bool]]:
        """Pictures and folders in a folder, and which of both; nothing when it was there before. Links come last."""
        try:
            about = os.stat(folder)  # noqa: PTH116
            if (about.st_dev, about.st_ino) in self.seen:
                return
            self.seen.add((about.st_dev, about.st_ino))
            with os.scandir(folder) as entries:
                shown = [entry for entry in entries if not entry.name.startswith(".") and entry.name != "__MACOSX"]
                names = sorted((entry.is_symlink(), entry.name, _is_dir(entry)) for entry in shown)
        except OSError as error:
            self.faults.append(Rejected(printable(folder), f"this folder cannot be listed ({error.strerror})"))
            return
        for _, name, is_folder in names:
            if is_folder or is_image(name):
                yield f"{folder.rstrip('/')}/{name}", is_folder


def _of_folder(path: Path, labels: bool) -> Listing:
    root = os.path.abspath(path)  # noqa: PTH100
    if next(Walk(root).files(), None) is None and (shards := shards_at(path)):
        from lookalike.search.lists import list_of_shards

        return list_of_shards(path, shards)
    return Listing(str(path), partial(_walked, root, labels), lambda: sum(1 for _ in Walk(root).files()), root)


def _walked(root: str, labels: bool) -> Iterator[Found]:
    walk = Walk(root)
    for file in walk.files():
        yield file_item(file, label=class_folder(file[len(root.rstrip("/")) + 1 :]) if labels else None)
        yield from walk.faults
        walk.faults.clear()
    yield from walk.faults


def class_folder(inside: str) -> str | None:
    """The class that folders name: `cat` of `cat/1.jpg`, `train/cat/1.jpg` and `cat/kittens/1.jpg`; None of `1.jpg`."""
    folders = inside.split("/")[:-1]
    if folders and folders[0].lower() in SPLIT_NAMES:
        del folders[0]
    return printable(folders[0]) if folders else None


def _of_pattern(path: Path) -> Listing:
    """Files that match; folders among them are walked. Matches are few enough to be listed at once."""
    files: list[str] = []
    for match in sorted(glob.glob(str(path), recursive=True)):  # noqa: PTH207
        if "__MACOSX" in Path(match).parts:
            continue
        if os.path.isdir(match):  # noqa: PTH112
            if "**" not in path.parts:  # there, what is inside matches by itself
                files += Walk(os.path.abspath(match)).files()  # noqa: PTH100
        elif is_image(match):
            files.append(match)
    if not files:
        raise InputError(f"{path}: no picture matches this pattern.", "Check it; ** stands for any folders.")
    return Listing(str(path), partial(_of_files, files), lambda: len(files))


def _of_files(paths: Iterable[str]) -> Iterator[Found]:
    return map(file_item, paths)


def _of_catalog(catalog: Catalog) -> Iterator[Found]:
    """The pictures of a data set, with its classes as labels and its splits as metadata."""
    root = os.path.abspath(catalog.root)  # noqa: PTH100
    members: dict[str, zipfile.ZipInfo] = {}
    if catalog.container == "zip":
        with open_zip(catalog.root) as archive:
            members = {info.filename: info for info in archive.infolist()}
        with suppress(InputError):
            catalog.read_bytes(0)  # opens the zip before several threads would
    for row, (name, label, split) in enumerate(zip(catalog.paths, catalog.labels, catalog.splits, strict=True)):
        of_class = None if label == UNLABELLED else catalog.class_names[label]
        path, metadata = f"{root}/{name}", {"split": str(split)}
        if catalog.container == "folder":
            found = file_item(path)
        elif name in members:
            found = Item(path, members[name].file_size, members[name].CRC, partial(catalog.read_bytes, row))
        else:
            found = Rejected(path, "no longer in the zip")
        yield replace(found, label=of_class, metadata=metadata, listed=True) if isinstance(found, Item) else found


def read_file(path: str) -> bytes:
    """The bytes of a file on disk, `MAX_BYTES` at most. Raises OSError."""
    with open(path, "rb") as file:  # noqa: PTH123
        return file.read(MAX_BYTES)


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False
