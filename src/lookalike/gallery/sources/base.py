"""What a source of images is, and one file on disk as an image of it."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from lookalike.data.catalog import Catalog
from lookalike.data.scan import (
    modified_ns,
    printable,
    read_regular,
)
from lookalike.gallery.sources.folder_labels import FolderLabels
from lookalike.gallery.store.base import FailedFile, Value
from lookalike.image import MAX_BYTES

TABLES = frozenset({".csv", ".tsv", ".parquet"})


Source = str | Path | Catalog


@dataclass(frozen=True, slots=True)
class SourceImage:
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


ListedImage = SourceImage | FailedFile


@dataclass(frozen=True)
class ImageSource:
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
    items: Callable[[], Iterator[ListedImage]]
    count: Callable[[], int]
    folder: str | None = None
    labels: FolderLabels | None = None
    is_list: bool = False
    passed_over: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


def file_image(
    path: str, *, folder_label: str | None = None, metadata: Mapping[str, Value] | None = None
) -> ListedImage:
    """A file on disk as an item, or why it can be none. Its path becomes absolute; links in it are kept."""
    path = os.path.abspath(path)  # noqa: PTH100  (Path.resolve would follow links, Path.absolute keep "..")
    try:
        about = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError) as error:
        return FailedFile(printable(path), f"cannot be read ({getattr(error, 'strerror', None) or error})")
    size, modified = about.st_size, modified_ns(about)
    if printable(path) != path:
        return FailedFile(printable(path), "its name is not UTF-8: rename it", size, modified)
    if not stat.S_ISREG(about.st_mode):
        return FailedFile(path, "not a regular file", size, modified)
    if size > MAX_BYTES:
        return FailedFile(path, f"{size / 2**20:,.0f} MiB are too many for a picture", size, modified)
    return SourceImage(path, size, modified, partial(read_file, path), None, metadata, folder_label=folder_label)


def read_file(path: str) -> bytes:
    """The bytes of a file on disk, `MAX_BYTES` at most. Raises OSError."""
    return read_regular(path, MAX_BYTES)
