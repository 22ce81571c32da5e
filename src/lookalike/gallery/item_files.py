"""Read the image file of an item by the path that the gallery has of it.

A path is that of a file, `FILE.zip/MEMBER`, `FILE.parquet#ROW`, or a URI. An uploaded image has no file.
"""

from __future__ import annotations

import os
import zipfile
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lookalike.errors import InputError
from lookalike.gallery.item_paths import container_of
from lookalike.gallery.sources.base import SourceImage, file_image
from lookalike.gallery.sources.remote import is_uri, remote_image
from lookalike.gallery.sources.tables import images_of_rows
from lookalike.image import MAX_BYTES

UPLOAD_PREFIX = "upload:"  # of the path of an uploaded item; the SHA-256 of its file follows


def load_item(path: str) -> bytes:
    """Return the bytes of an item's image file.

    Raises:
        OSError: it cannot be read.
        InputError: it is gone, is no regular file, or was uploaded.
    """
    if path.startswith(UPLOAD_PREFIX):
        raise InputError("it was uploaded and has no file.", "Upload it again.")
    if is_uri(path):
        return remote_image(path).load()
    if not os.path.lexists(path):
        container, inside = container_of(path)
        if container and path.startswith(f"{container}#"):
            return _row(container, int(inside))
        if container and zipfile.is_zipfile(container):
            return _member(container, inside)
        raise InputError("its file is gone.", "Bring it back.")
    found = file_image(path)
    if not isinstance(found, SourceImage):
        raise InputError(f"{found.reason}.", "Replace it.")
    return found.load()


def _member(container: str, name: str) -> bytes:
    try:
        with zipfile.ZipFile(container) as archive, archive.open(name) as file:
            return file.read(MAX_BYTES + 1)
    except (KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"no longer in the zip ({error}).", "Bring it back.") from None


def _row(container: str, number: int) -> bytes:
    stamp = os.stat(container).st_mtime_ns  # noqa: PTH116
    try:
        first = 0
        metadata = pq.read_metadata(container)
        for group in range(metadata.num_row_groups):
            count = metadata.row_group(group).num_rows
            if number < first + count:
                return _group(container, group, stamp)[number - first] or b""
            first += count
    except pa.ArrowException as error:
        raise InputError(f"its Parquet file cannot be read ({error}).", "Bring it back.") from None
    raise InputError("no longer in the Parquet file.", "Bring it back.")


@lru_cache(maxsize=2)
def _group(container: str, group: int, stamp: int) -> list[bytes | None]:
    """The images of a row group, which belong together on the disk. `stamp`: time of change of the file."""
    return images_of_rows(Path(container), group)
