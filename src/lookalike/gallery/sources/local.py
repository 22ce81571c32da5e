"""Sources on disk: a file, a folder, a pattern such as `photos/**/*.jpg`, or the images of a data set.

Images are listed one by one and not decoded; only the names of one folder are in memory at a time.
"""

from __future__ import annotations

import glob
import os
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from lookalike.data.catalog import UNLABELLED, Catalog
from lookalike.data.image_folder import is_image, open_zip
from lookalike.data.scan import MEDIA, Scan, count_kind, printable, sentence
from lookalike.errors import InputError
from lookalike.gallery.sources.base import ImageSource, ListedImage, SourceImage, file_image
from lookalike.gallery.sources.folder_labels import LIST_EXTENSIONS, FolderLabels
from lookalike.gallery.store.base import FailedFile


def source_of_folder(path: Path, labelled: bool, labels: FolderLabels | None) -> ImageSource:
    """The images in a folder and in the folders below it; hidden files are ignored."""
    root = os.path.abspath(path)  # noqa: PTH100
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
            for kind in LIST_EXTENSIONS & passed_over.keys():
                del passed_over[kind]


def _length(root: str) -> int:
    return sum(1 for _ in Scan(root).files())


def _faults(scan: Scan) -> Iterator[ListedImage]:
    """The files and folders that the scan could not examine since the last call."""
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


def source_of_pattern(path: Path, labelled: bool) -> ImageSource:
    """The images that match a pattern, and those in matching folders. Labels count from the first wildcard on."""
    parts = path.parts
    fixed = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    base = os.path.abspath(Path(*parts[:fixed]))  # noqa: PTH100
    labels = FolderLabels(base) if labelled else None
    passed_over: Counter[str] = Counter()
    found: list[str] = []  # few enough to be listed at once
    for match in sorted(glob.glob(str(path), recursive=True)):  # noqa: PTH207
        if "__MACOSX" in Path(match).parts:
            continue
        if os.path.isdir(match):  # noqa: PTH112
            if "**" not in parts:  # with **, the files inside match themselves
                scan = Scan(os.path.abspath(match), passed_over=passed_over)  # noqa: PTH100
                found += scan.files()
        elif is_image(match):
            found.append(os.path.abspath(match))  # noqa: PTH100
        else:
            count_kind(passed_over, match)
    if not found:
        raise no_images(
            [str(path)], passed_over, "no image matches this pattern", "Check it; ** stands for any folders."
        )

    def items() -> Iterator[ListedImage]:
        yield from (_labelled(file, labels) for file in found)
        notes[:] = labels.notes if labels is not None else []

    notes: list[str] = []
    return ImageSource(str(path), items, lambda: len(found), labels=labels, passed_over=passed_over, notes=notes)


def no_images(
    names: Sequence[str],
    passed_over: Mapping[str, int],
    what: str = "no images found",
    remedy: str = "Give images, folders of images, or a list.",
) -> InputError:
    """The error for sources without any image; it names the kinds of files that they have instead."""
    if MEDIA & passed_over.keys():
        what, remedy = "no images that can be read", "Convert them to JPEG or PNG."
    others = f" ({sentence(passed_over)})" if passed_over else ""
    return InputError(f"{', '.join(names) or 'no source'}: {what}{others}.", remedy)


def source_of_file(name: str, path: Path) -> ImageSource:
    """One image file."""
    return ImageSource(name, lambda: map(file_image, [str(path)]), lambda: 1)


def source_of_catalog(catalog: Catalog) -> ImageSource:
    """The images of a data set."""
    return ImageSource(catalog.name, partial(_catalog_images, catalog), lambda: len(catalog), is_list=True)


def _catalog_images(catalog: Catalog) -> Iterator[ListedImage]:
    """The images of a data set, with its classes as labels and its splits as metadata."""
    root = os.path.abspath(catalog.root)  # noqa: PTH100
    members: dict[str, zipfile.ZipInfo] = {}
    if catalog.container == "zip":
        with open_zip(catalog.root) as archive:
            members = {info.filename: info for info in archive.infolist()}
        with suppress(InputError):
            catalog.read_bytes(0)  # opens the zip now, not in several threads at once
    for index, (name, label, split) in enumerate(zip(catalog.paths, catalog.labels, catalog.splits, strict=True)):
        class_name = None if label == UNLABELLED else catalog.class_names[label]
        path, metadata = f"{root}/{name}", {"split": str(split)}
        if catalog.container == "folder":
            found = file_image(path)
        elif name in members:
            found = SourceImage(path, members[name].file_size, members[name].CRC, partial(catalog.read_bytes, index))
        else:
            found = FailedFile(path, "no longer in the zip")
        yield (
            replace(found, label=class_name, metadata=metadata, listed=True)
            if isinstance(found, SourceImage)
            else found
        )
