"""TODO."""

from __future__ import annotations

import glob
import os
from functools import partial
from pathlib import Path

from lookalike.data.catalog import Catalog
from lookalike.data.download import installed
from lookalike.data.registry import BUILTIN, load_dataset
from lookalike.errors import InputError
from lookalike.gallery.sources.base import TABLES, ImageSource, Source
from lookalike.gallery.sources.folder_labels import FolderLabels
from lookalike.gallery.sources.local import _how_to_unpack, _is_archive, _of_catalog, _of_files, _of_folder, _of_pattern


def resolve_source(source: Source, *, folder_labels: bool = True, labels: FolderLabels | None = None) -> ImageSource:
    """What a source means.

    Args:
        source: a catalog; or, as text or a path: a folder of pictures (recursively; hidden files are left out; a
            folder without pictures may hold Parquet shards with pictures in them), a file, a CSV, TSV or Parquet list
            (columns path, label, any others), a Parquet file with pictures in it, a pattern such as `photos/**/*.jpg`,
            the URI of an object or of a prefix (`s3://bucket/photos`), or the name of a data set.
        folder_labels: whether pictures of a folder get the class that the folders inside it name as label; see
            `lookalike.gallery.sources.folder_labels`.
        labels: those of a folder above the source, to be used for it.

    Raises:
        InputError: nothing there, an archive, or nothing else that a gallery can be filled with.
    """
    if isinstance(source, Catalog):
        return ImageSource(source.name, partial(_of_catalog, source), lambda: len(source), is_list=True)
    if not isinstance(source, str | Path) or "\0" in str(source):
        raise InputError(f"{source!r} is no source of pictures.", "Give files, folders, patterns, tables or a catalog.")
    if isinstance(source, str) and "://" in source:
        from lookalike.gallery.sources.remote import is_uri, source_of_uri

        if is_uri(source):
            return source_of_uri(source, folder_labels=folder_labels)
    path = Path(source).expanduser()
    if path.is_dir():
        return _of_folder(path, folder_labels, labels)
    if os.path.lexists(path):
        if path.suffix.lower() in TABLES:
            from lookalike.gallery.sources.tables import source_of_table

            return source_of_table(path)
        if _is_archive(path):
            raise InputError(f"{path}: an archive is not a source of images.", _how_to_unpack(path))
        return ImageSource(str(source), partial(_of_files, [str(path)]), lambda: 1)
    if glob.has_magic(str(path)):
        return _of_pattern(path, folder_labels)
    if isinstance(source, str) and (source == BUILTIN or installed(source) is not None):
        return resolve_source(load_dataset(source))
    raise InputError(f"{source}: no such file or folder, and no data set of this name.", "Check the path.")
