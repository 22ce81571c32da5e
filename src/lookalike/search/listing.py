"""What there is to add: files, folders, patterns, lists and data sets, as one stream of items.

Nothing is decoded here, and no more is in memory than the names of one folder.
"""

from __future__ import annotations

import glob
import os
import shlex
import stat
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from lookalike.data.catalog import UNLABELLED, Catalog
from lookalike.data.folder import is_image, open_zip
from lookalike.data.hugging_face import shards_at
from lookalike.data.read import BUILTIN, read
from lookalike.data.scan import (
    MEDIA,
    Scan,
    count_kind,
    has_image,
    kind_of,
    modified_ns,
    printable,
    read_regular,
    sentence,
)
from lookalike.data.sources import installed
from lookalike.errors import InputError
from lookalike.image import MAX_BYTES
from lookalike.search.folder_labels import LISTS, FolderLabels
from lookalike.search.store.base import Rejected, Value

FEW = 10  # tables in a folder that are looked at
TABLES = frozenset({".csv", ".tsv", ".parquet"})
ARCHIVES = frozenset({".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar"})

Source = str | Path | Catalog


@dataclass(frozen=True, slots=True)
class Item:
    """A picture to add.

    Args:
        path: what it is known by in the gallery.
        size, modified: bytes, and the time of change in nanoseconds, as far as they are known without reading it.
        load: reads the file; raises OSError, or InputError.
        label: what it is, as somebody wrote down; None: not said.
        metadata: what else is known; None: not said.
        listed: label and metadata hold for a row that is there already, too.
        held: bytes that it keeps in memory.
        folder_label: what its folders say that it is; for a row that has no label.
    """

    path: str
    size: int
    modified: int
    load: Callable[[], bytes]
    label: str | None = None
    metadata: Mapping[str, Value] | None = None
    listed: bool = False
    held: int = 0
    folder_label: str | None = None


Found = Item | Rejected


@dataclass(frozen=True)
class Listing:
    """One source, looked at and known to be there.

    Args:
        name: as the person gave it.
        items: lists it from the beginning; what cannot be read comes as rejected.
        count: how many there will be, without looking closely.
        folder: its absolute path, of a source that is a folder of files.
        labels: what its folders say of the images in them.
        is_list: somebody wrote down what its images are: a table, a data set, Parquet with images inside.
        passed_over: how many files of each kind are no images by name, as far as it has been listed.
        notes: what a person should know about it, likewise.
    """

    name: str
    items: Callable[[], Iterator[Found]]
    count: Callable[[], int]
    folder: str | None = None
    labels: FolderLabels | None = None
    is_list: bool = False
    passed_over: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


def listings_of(sources: Iterable[Source], *, folder_labels: bool = True) -> list[Listing]:
    """What several sources mean together: lists come first, since they know better than folders what an image is; what
    a list does not say, the folders among the sources do. All entries of a folder, as the shell makes of `photos/*`,
    are labelled like the folder.

    Args:
        sources: see `listing_of`.
        folder_labels: likewise.

    Raises:
        InputError: as `listing_of`.
    """
    sources = list(sources)
    whole = _folder_of_all(sources)
    labels = None if whole is None or not folder_labels else FolderLabels(whole)
    listings = [
        listing_of(source, folder_labels=folder_labels, labels=labels)
        if whole is None or not _is_archive(source)
        else Listing(str(source), lambda: iter(()), lambda: 0, passed_over=Counter([kind_of(str(source))]))
        for source in sources
    ]
    folders = [one for one in listings if one.labels is not None]
    given = {os.path.abspath(one.name) for one in listings if one.is_list}  # noqa: PTH100
    for one in folders:
        one.labels.notes += [  # type: ignore[union-attr]
            f"{table} looks like a list of these pictures: give it, too, for its labels and metadata"
            for table in _tables_in(one.folder)
            if table not in given
        ]
    if folders:
        listings = [replace(one, items=partial(_filled, one, folders)) if one.is_list else one for one in listings]
    return sorted(listings, key=lambda one: not one.is_list)


def _is_archive(source: Source) -> bool:
    if isinstance(source, Catalog):
        return False
    path = Path(source).expanduser()
    return path.suffix.lower() in ARCHIVES and path.is_file()


def _tables_in(folder: str | None) -> list[str]:
    """CSV and TSV files with a column of paths that lie directly in a folder."""
    from lookalike.search.lists import header_of

    if folder is None:
        return []
    tables = sorted(path for path in Path(folder).glob("[!.]*.[ct]sv") if path.is_file())
    return [printable(str(path)) for path in tables[:FEW] if "path" in header_of(path)]


def _folder_of_all(sources: Sequence[Source]) -> str | None:
    """The folder whose entries, hidden ones aside, are just these sources; None where there is none."""
    if len(sources) < 2 or not all(isinstance(source, str | Path) and "://" not in str(source) for source in sources):
        return None
    paths = {os.path.abspath(os.path.expanduser(str(source))) for source in sources}  # noqa: PTH100, PTH111
    parents = {os.path.dirname(path) for path in paths}  # noqa: PTH120
    if len(parents) > 1:
        return None
    parent = parents.pop()
    try:
        there = {os.path.join(parent, name) for name in os.listdir(parent) if name[0] != "."}  # noqa: PTH118, PTH208
    except (OSError, ValueError):
        return None
    return parent if there == paths else None


def _filled(listing: Listing, folders: Sequence[Listing]) -> Iterator[Found]:
    """A list's items; those without a label get that of the folders they lie in."""
    for one in listing.items():
        if isinstance(one, Item) and one.label is None:
            for folder in folders:
                if folder.labels is not None and one.path.startswith(f"{folder.labels.root}/"):
                    one = replace(one, folder_label=folder.labels.of(one.path)[0])
                    break
        yield one


def listing_of(source: Source, *, folder_labels: bool = True, labels: FolderLabels | None = None) -> Listing:
    """What a source means.

    Args:
        source: a catalog; or, as text or a path: a folder of pictures (recursively; hidden files are left out; a
            folder without pictures may hold Parquet shards with pictures in them), a file, a CSV, TSV or Parquet list
            (columns path, label, any others), a Parquet file with pictures in it, a pattern such as `photos/**/*.jpg`,
            the URI of an object or of a prefix (`s3://bucket/photos`), or the name of a data set.
        folder_labels: whether pictures of a folder get the class that the folders inside it name as label; see
            `lookalike.search.folder_labels`.
        labels: those of a folder above the source, to be used for it.

    Raises:
        InputError: nothing there, an archive, or nothing else that a gallery can be filled with.
    """
    if isinstance(source, Catalog):
        return Listing(source.name, partial(_of_catalog, source), lambda: len(source), is_list=True)
    if not isinstance(source, str | Path) or "\0" in str(source):
        raise InputError(f"{source!r} is no source of pictures.", "Give files, folders, patterns, tables or a catalog.")
    if isinstance(source, str) and "://" in source:
        from lookalike.search.uris import is_uri, list_of_uri

        if is_uri(source):
            return list_of_uri(source, folder_labels=folder_labels)
    path = Path(source).expanduser()
    if path.is_dir():
        return _of_folder(path, folder_labels, labels)
    if os.path.lexists(path):
        if path.suffix.lower() in TABLES:
            from lookalike.search.lists import list_of

            return list_of(path)
        if _is_archive(path):
            raise InputError(f"{path}: an archive is not a source of images.", _how_to_unpack(path))
        return Listing(str(source), partial(_of_files, [str(path)]), lambda: 1)
    if glob.has_magic(str(path)):
        return _of_pattern(path, folder_labels)
    if isinstance(source, str) and (source == BUILTIN or installed(source) is not None):
        return listing_of(read(source))
    raise InputError(f"{source}: no such file or folder, and no data set of this name.", "Check the path.")


def _how_to_unpack(path: Path) -> str:
    remedy = "Unpack it, and give the folder that holds the images."
    if path.suffix.lower() != ".zip":
        return remedy
    return f"{remedy} Class folders: 'lookalike data import {shlex.quote(str(path))} --name NAME', and give NAME."


def file_item(path: str, *, folder_label: str | None = None, metadata: Mapping[str, Value] | None = None) -> Found:
    """A file on disk as an item, or why it can be none. Its path becomes absolute; links in it are kept."""
    path = os.path.abspath(path)  # noqa: PTH100  (Path.resolve would follow links, Path.absolute keep "..")
    try:
        about = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError) as error:
        return Rejected(printable(path), f"cannot be read ({getattr(error, 'strerror', None) or error})")
    size, modified = about.st_size, modified_ns(about)
    if printable(path) != path:
        return Rejected(printable(path), "its name is not UTF-8: rename it", size, modified)
    if not stat.S_ISREG(about.st_mode):
        return Rejected(path, "not a regular file", size, modified)
    if size > MAX_BYTES:
        return Rejected(path, f"{size / 2**20:,.0f} MiB are too many for a picture", size, modified)
    return Item(path, size, modified, partial(read_file, path), None, metadata, folder_label=folder_label)


def _of_folder(path: Path, labelled: bool, labels: FolderLabels | None) -> Listing:
    root = os.path.abspath(path)  # noqa: PTH100
    if not has_image(root) and (shards := shards_at(path)):
        from lookalike.search.lists import list_of_shards

        return list_of_shards(path, shards)
    labels = (labels or FolderLabels(root)) if labelled else None
    passed_over: Counter[str] = Counter()
    notes: list[str] = []
    items = partial(_walked, root, labels, passed_over, notes)
    return Listing(str(path), items, partial(_length, root), root, labels, passed_over=passed_over, notes=notes)


def _walked(root: str, labels: FolderLabels | None, passed_over: Counter[str], notes: list[str]) -> Iterator[Found]:
    passed_over.clear()
    scan = Scan(root, passed_over=passed_over)
    for file in scan.files():
        yield _labelled(file, labels)
        yield from _faults(scan)
    yield from _faults(scan)
    if labels is not None:
        notes[:] = labels.notes
        if labels.is_known:
            for kind in LISTS & passed_over.keys():
                del passed_over[kind]


def _length(root: str) -> int:
    return sum(1 for _ in Scan(root).files())


def _faults(scan: Scan) -> Iterator[Found]:
    """What the scan could not look into since it was asked last."""
    for folder, reason in scan.faults:
        yield Rejected(printable(folder), reason)
    for path in scan.special:
        yield file_item(path)
    scan.faults.clear()
    scan.special.clear()


def _labelled(file: str, labels: FolderLabels | None) -> Found:
    if labels is None:
        return file_item(file)
    label, split = labels.of(file)
    return file_item(file, folder_label=label, metadata=None if split is None else {"split": split})


def _of_pattern(path: Path, labelled: bool) -> Listing:
    """Files that match; folders among them are walked. Labels are those of the folder before the first wildcard."""
    parts = path.parts
    fixed = next(place for place, part in enumerate(parts) if glob.has_magic(part))
    base = os.path.abspath(Path(*parts[:fixed]))  # noqa: PTH100
    labels = FolderLabels(base) if labelled else None
    passed_over: Counter[str] = Counter()
    found: list[str] = []  # few enough to be listed at once
    for match in sorted(glob.glob(str(path), recursive=True)):  # noqa: PTH207
        if "__MACOSX" in Path(match).parts:
            continue
        if os.path.isdir(match):  # noqa: PTH112
            if "**" not in parts:  # there, what is inside matches by itself
                scan = Scan(os.path.abspath(match), passed_over=passed_over)  # noqa: PTH100
                found += scan.files()
        elif is_image(match):
            found.append(os.path.abspath(match))  # noqa: PTH100
        else:
            count_kind(passed_over, match)
    if not found:
        raise no_pictures(
            [str(path)], passed_over, "no picture matches this pattern", "Check it; ** stands for any folders."
        )

    def items() -> Iterator[Found]:
        yield from (_labelled(file, labels) for file in found)
        notes[:] = labels.notes if labels is not None else []

    notes: list[str] = []
    return Listing(str(path), items, lambda: len(found), labels=labels, passed_over=passed_over, notes=notes)


def no_pictures(
    names: Sequence[str],
    passed_over: Mapping[str, int],
    what: str = "no pictures here",
    remedy: str = "Point at pictures, folders of them, or a list.",
) -> InputError:
    """The error for sources without a file that can be read, which says what they have instead."""
    if MEDIA & passed_over.keys():
        what, remedy = "no pictures that can be read", "Convert them to JPEG or PNG."
    said = f" ({sentence(passed_over)})" if passed_over else ""
    return InputError(f"{', '.join(names) or 'nothing'}: {what}{said}.", remedy)


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
    return read_regular(path, MAX_BYTES)
