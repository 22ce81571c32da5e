"""What there is to add: files, folders, patterns, lists and data sets, as one stream of items.

Nothing is decoded here, and no more is in memory than the names of one folder.
"""

from __future__ import annotations

import glob
import os
import shlex
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from lookalike.data.catalog import UNLABELLED, Catalog
from lookalike.data.hugging_face import shards_at
from lookalike.data.image_folder import is_image, open_zip
from lookalike.data.scan import (
    MEDIA,
    Scan,
    count_kind,
    has_image,
    kind_of,
    printable,
    sentence,
)
from lookalike.errors import InputError
from lookalike.gallery.sources.base import ImageSource, ListedImage, Source, SourceImage, file_image
from lookalike.gallery.sources.folder_labels import LISTS, FolderLabels
from lookalike.gallery.sources.resolve import resolve_source
from lookalike.gallery.store.base import FailedFile

FEW = 10  # tables in a folder that are looked at


ARCHIVES = frozenset({".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar"})


def listings_of(sources: Iterable[Source], *, folder_labels: bool = True) -> list[ImageSource]:
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
        resolve_source(source, folder_labels=folder_labels, labels=labels)
        if whole is None or not _is_archive(source)
        else ImageSource(str(source), lambda: iter(()), lambda: 0, passed_over=Counter([kind_of(str(source))]))
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
    from lookalike.gallery.sources.tables import header_of

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


def _filled(listing: ImageSource, folders: Sequence[ImageSource]) -> Iterator[ListedImage]:
    """A list's items; those without a label get that of the folders they lie in."""
    for one in listing.items():
        if isinstance(one, SourceImage) and one.label is None:
            for folder in folders:
                if folder.labels is not None and one.path.startswith(f"{folder.labels.root}/"):
                    one = replace(one, folder_label=folder.labels.of(one.path)[0])
                    break
        yield one


def _how_to_unpack(path: Path) -> str:
    remedy = "Unpack it, and give the folder that holds the images."
    if path.suffix.lower() != ".zip":
        return remedy
    return f"{remedy} Class folders: 'lookalike data import {shlex.quote(str(path))} --name NAME', and give NAME."


def _of_folder(path: Path, labelled: bool, labels: FolderLabels | None) -> ImageSource:
    root = os.path.abspath(path)  # noqa: PTH100
    if not has_image(root) and (shards := shards_at(path)):
        from lookalike.gallery.sources.tables import source_of_shards

        return source_of_shards(path, shards)
    labels = (labels or FolderLabels(root)) if labelled else None
    passed_over: Counter[str] = Counter()
    notes: list[str] = []
    items = partial(_walked, root, labels, passed_over, notes)
    return ImageSource(str(path), items, partial(_length, root), root, labels, passed_over=passed_over, notes=notes)


def _walked(
    root: str, labels: FolderLabels | None, passed_over: Counter[str], notes: list[str]
) -> Iterator[ListedImage]:
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


def _faults(scan: Scan) -> Iterator[ListedImage]:
    """What the scan could not look into since it was asked last."""
    for folder, reason in scan.faults:
        yield FailedFile(printable(folder), reason)
    for path in scan.special:
        yield file_image(path)
    scan.faults.clear()
    scan.special.clear()


def _labelled(file: str, labels: FolderLabels | None) -> ListedImage:
    if labels is None:
        return file_image(file)
    label, split = labels.of(file)
    return file_image(file, folder_label=label, metadata=None if split is None else {"split": split})


def _of_pattern(path: Path, labelled: bool) -> ImageSource:
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

    def items() -> Iterator[ListedImage]:
        yield from (_labelled(file, labels) for file in found)
        notes[:] = labels.notes if labels is not None else []

    notes: list[str] = []
    return ImageSource(str(path), items, lambda: len(found), labels=labels, passed_over=passed_over, notes=notes)


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


def _of_files(paths: Iterable[str]) -> Iterator[ListedImage]:
    return map(file_image, paths)


def _of_catalog(catalog: Catalog) -> Iterator[ListedImage]:
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
            found = file_image(path)
        elif name in members:
            found = SourceImage(path, members[name].file_size, members[name].CRC, partial(catalog.read_bytes, row))
        else:
            found = FailedFile(path, "no longer in the zip")
        yield (
            replace(found, label=of_class, metadata=metadata, listed=True) if isinstance(found, SourceImage) else found
        )
