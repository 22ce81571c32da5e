"""The types `ImageSource` and `SourceImage`, and how a file on disk becomes a `SourceImage`."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from lookalike.data.catalog import Catalog
from lookalike.data.scan import modified_ns, printable, read_regular
from lookalike.gallery.sources.folder_labels import FolderLabels
from lookalike.gallery.store.base import FailedFile, Value
from lookalike.image import MAX_BYTES

TABLES = frozenset({".csv", ".tsv", ".parquet"})  # extensions of lists of images

Source = str | Path | Catalog


@dataclass(frozen=True, slots=True)
class SourceImage:
    """An image file to be read.

    Args:
        path: unique; the path of its item in the gallery.
        size: bytes of the file; 0 if not known without reading it.
        modified: time of the file's last change in nanoseconds since 1970; 0 if not known.
        load: reads the file; raises OSError or InputError.
        label: from a list or data set; None if it names none.
        metadata: from a list or data set; None if it has none.
        listed: whether label and metadata also replace those of an existing item.
        held: bytes that this object keeps in memory.
        folder_label: the name of its class folder; used if the item has no label.
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
    """A source of images that is known to exist.

    Args:
        name: as it was given.
        items: lists all images; files that cannot be read are listed as `FailedFile`.
        count: estimates their number without examining them.
        folder: absolute path, if the source is a folder of files.
        labels: labels of the images by their folders.
        is_list: whether the source itself has labels: a table, a data set, or Parquet files with images.
        passed_over: number of files that are no images by name, by extension; complete after `items`.
        notes: remarks for a person; complete after `items`.
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
    """Look up a file on disk. Its path is made absolute; symbolic links in it are kept."""
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
        return FailedFile(path, f"{size / 2**20:,.0f} MiB are too many for an image", size, modified)
    return SourceImage(path, size, modified, partial(read_file, path), None, metadata, folder_label=folder_label)


def read_file(path: str) -> bytes:
    """Read at most `MAX_BYTES` bytes of a file on disk. Raises OSError."""
    return read_regular(path, MAX_BYTES)
