"""Images in object stores and other file systems of pyarrow: `s3://`, `gs://`, `hdfs://`, `file://`.

A URI stands for one object, or for all images below a prefix. pyarrow takes credentials from the environment, see
https://arrow.apache.org/docs/python/filesystems.html.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache, partial
from typing import Any
from urllib.parse import quote, urlsplit

from lookalike.data.image_folder import is_image
from lookalike.data.scan import count_kind, is_hidden
from lookalike.errors import InputError
from lookalike.gallery.sources.base import ImageSource, ListedImage, SourceImage
from lookalike.gallery.sources.folder_labels import children_of, class_folder, tops_of
from lookalike.gallery.store.base import FailedFile
from lookalike.image import MAX_BYTES

URI = re.compile(r"[a-z][a-z0-9+.-]+://.+", re.IGNORECASE)


def is_uri(source: object) -> bool:
    """Whether a source is a URI, not a path."""
    return isinstance(source, str) and URI.fullmatch(source) is not None


def source_of_uri(uri: str, *, folder_labels: bool = True) -> ImageSource:
    """The object at a URI, or the images below a prefix.

    The paths of their items are URIs without user, password and options.

    Args:
        uri: of an object or a prefix.
        folder_labels: as for `resolve_source`.

    Raises:
        InputError: pyarrow does not know the scheme, there is no such object, or it cannot be accessed.
    """
    from pyarrow.fs import FileType

    system, path = open_uri(uri)
    try:
        [info] = system.get_file_info([path])
    except OSError as error:
        raise _unreachable(uri, error) from None
    if info.type == FileType.NotFound:
        raise InputError(f"{_shown(uri)}: no such object or prefix.", "Check the address; a prefix ends like a folder.")
    if info.type == FileType.File:
        return ImageSource(_shown(uri), lambda: iter([_found(uri, info, None)]), lambda: 1)
    passed_over: Counter[str] = Counter()
    notes: list[str] = []
    items = partial(_below, uri, system, path, folder_labels, passed_over, notes)
    length = partial(_length, system, path)
    return ImageSource(_shown(uri), items, length, passed_over=passed_over, notes=notes)


def remote_image(uri: str) -> SourceImage:
    """An object that a list names. Its size and time of change are not requested, so it never counts as changed."""
    return SourceImage(_shown(uri), 0, 0, partial(read_object, uri))


@lru_cache
def open_uri(uri: str) -> tuple[Any, str]:
    """The pyarrow file system of a URI, and the path in it.

    Raises:
        InputError: pyarrow has none for it.
    """
    import pyarrow as pa
    from pyarrow.fs import FileSystem

    try:
        system, path = FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise _unreachable(uri, error) from None
    return system, path


def read_object(uri: str, path: str | None = None) -> bytes:
    """Read at most `MAX_BYTES` bytes of an object.

    Args:
        uri: names the file system.
        path: of the object in the file system; None: that of the URI.

    Raises:
        OSError: the object cannot be read.
        InputError: there is no such file system.
    """
    system, own = open_uri(uri)
    with system.open_input_stream(own if path is None else path) as stream:
        return bytes(stream.read(MAX_BYTES))


def _length(system: Any, path: str) -> int:
    return sum(1 for _ in _infos(system, path, Counter()))


def _infos(system: Any, path: str, passed_over: Counter[str]) -> Iterator[Any]:
    """The images below a prefix, by name. Hidden files are ignored, files that are no images are counted."""
    from pyarrow.fs import FileSelector, FileType

    root = path.rstrip("/")
    found = system.get_file_info(FileSelector(root, recursive=True))
    for info in sorted(found, key=lambda one: str(one.path)):
        if info.type == FileType.File and not is_hidden(info.path[len(root) + 1 :]):
            count_kind(passed_over, info.path)
            if is_image(info.path):
                yield info


def _below(
    uri: str, system: Any, path: str, labels: bool, passed_over: Counter[str], notes: list[str]
) -> Iterator[ListedImage]:
    start = len(path.rstrip("/")) + 1
    passed_over.clear()
    notes.clear()
    infos = list(_infos(system, path, passed_over))
    tops = tops_of(children_of(info.path[start:] for info in infos), notes)
    for info in infos:
        yield _found(uri, info, class_folder(info.path[start:], tops) if labels else None)


def _found(uri: str, info: Any, folder_label: str | None) -> ListedImage:
    name, size, modified = f"{urlsplit(uri).scheme}://{quote(info.path)}", int(info.size), int(info.mtime_ns or 0)
    if size > MAX_BYTES:
        return FailedFile(name, f"{size / 2**20:,.0f} MiB are too many for an image", size, modified)
    return SourceImage(name, size, modified, partial(read_object, uri, info.path), folder_label=folder_label)


def _shown(uri: str) -> str:
    """The URI without user, password and options, which must not be stored or printed."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _unreachable(uri: str, error: Exception) -> InputError:
    first = str(error).partition("\n")[0]
    return InputError(f"{_shown(uri)}: cannot be reached ({first}).", "Check the address and the access rights.")
