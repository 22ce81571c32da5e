"""Find out what a given source of images is: a file, folder, pattern, table, URI or data set."""

from __future__ import annotations

import glob
import os
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from lookalike.data.catalog import Catalog
from lookalike.data.hugging_face import shards_at
from lookalike.data.registry import BUILTIN, installed, load_dataset
from lookalike.data.scan import has_image, kind_of, printable
from lookalike.errors import InputError
from lookalike.gallery.sources.base import TABLES, ImageSource, ListedImage, Source, SourceImage
from lookalike.gallery.sources.folder_labels import FolderLabels
from lookalike.gallery.sources.local import source_of_catalog, source_of_file, source_of_folder, source_of_pattern
from lookalike.gallery.sources.remote import is_uri, source_of_uri
from lookalike.gallery.sources.tables import header_of, source_of_shards, source_of_table

MAX_TABLES = 10  # tables in a folder whose headers are read
ARCHIVES = frozenset({".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar"})


def resolve_source(source: Source, *, folder_labels: bool = True, labels: FolderLabels | None = None) -> ImageSource:
    """Turn a path, URI, name or catalog into an `ImageSource`.

    Args:
        source: a catalog; or, as text or path: a folder of images (with all folders below; hidden files are ignored), a
            folder of Parquet shards with images, a file, a CSV, TSV or Parquet list (columns path, label and others), a
            Parquet file with images, a pattern such as `photos/**/*.jpg`, the URI of an object or a prefix
            (`s3://bucket/photos`), or the name of a data set.
        folder_labels: whether the names of class folders become labels; see
            `lookalike.gallery.sources.folder_labels`.
        labels: labels of a folder above the source, used in place of its own.

    Raises:
        InputError: the source does not exist, is an archive, or is no source of images.
    """
    if isinstance(source, Catalog):
        return source_of_catalog(source)
    if not isinstance(source, str | Path) or "\0" in str(source):
        raise InputError(
            f"{source!r} is not a source of images.", "Give files, folders, patterns, tables or a catalog."
        )
    if isinstance(source, str) and is_uri(source):
        return source_of_uri(source, folder_labels=folder_labels)
    path = Path(source).expanduser()
    if path.is_dir():
        if not has_image(os.path.abspath(path)) and (shards := shards_at(path)):  # noqa: PTH100
            return source_of_shards(path, shards)
        return source_of_folder(path, folder_labels, labels)
    if os.path.lexists(path):
        if path.suffix.lower() in TABLES:
            return source_of_table(path)
        if _is_archive(path):
            raise InputError(f"{path}: an archive is not a source of images.", _how_to_unpack(path))
        return source_of_file(str(source), path)
    if glob.has_magic(str(path)):
        return source_of_pattern(path, folder_labels)
    if isinstance(source, str) and (source == BUILTIN or installed(source) is not None):
        return resolve_source(load_dataset(source))
    raise InputError(f"{source}: no such file or folder, and no data set of this name.", "Check the path.")


def resolve_sources(sources: Iterable[Source], *, folder_labels: bool = True) -> list[ImageSource]:
    """Resolve several sources that are added together.

    Lists come first, since their labels count more than those of folders. An image without a label in a list gets that
    of its class folder, if the folder is among the sources. If the sources are all entries of one folder, as a shell
    makes of `photos/*`, they are labelled like the folder itself.

    Args:
        sources: see `resolve_source`.
        folder_labels: whether the names of class folders become labels.

    Raises:
        InputError: see `resolve_source`.
    """
    sources = list(sources)
    whole = _folder_of_all(sources)
    labels = None if whole is None or not folder_labels else FolderLabels(whole)
    resolved = [
        resolve_source(source, folder_labels=folder_labels, labels=labels)
        if whole is None or not _is_archive(source)
        else ImageSource(str(source), lambda: iter(()), lambda: 0, passed_over=Counter([kind_of(str(source))]))
        for source in sources
    ]
    folders = [one for one in resolved if one.labels is not None]
    given = {os.path.abspath(one.name) for one in resolved if one.is_list}  # noqa: PTH100
    for one in folders:
        one.labels.notes += [  # type: ignore[union-attr]
            f"{table} looks like a list of these images: add it, too, for its labels and metadata"
            for table in _tables_in(one.folder)
            if table not in given
        ]
    if folders:
        resolved = [
            replace(one, items=partial(_with_folder_labels, one, folders)) if one.is_list else one for one in resolved
        ]
    return sorted(resolved, key=lambda one: not one.is_list)


def _is_archive(source: Source) -> bool:
    if isinstance(source, Catalog):
        return False
    path = Path(source).expanduser()
    return path.suffix.lower() in ARCHIVES and path.is_file()


def _tables_in(folder: str | None) -> list[str]:
    """The CSV and TSV files directly in a folder that have a column of paths."""
    if folder is None:
        return []
    tables = sorted(path for path in Path(folder).glob("[!.]*.[ct]sv") if path.is_file())
    return [printable(str(path)) for path in tables[:MAX_TABLES] if "path" in header_of(path)]


def _folder_of_all(sources: Sequence[Source]) -> str | None:
    """The folder whose entries, except hidden ones, are exactly these sources; None if there is none."""
    if len(sources) < 2 or not all(isinstance(source, str | Path) and "://" not in str(source) for source in sources):
        return None
    paths = {os.path.abspath(os.path.expanduser(str(source))) for source in sources}  # noqa: PTH100, PTH111
    parents = {os.path.dirname(path) for path in paths}  # noqa: PTH120
    if len(parents) > 1:
        return None
    parent = parents.pop()
    try:
        entries = {os.path.join(parent, name) for name in os.listdir(parent) if name[0] != "."}  # noqa: PTH118, PTH208
    except (OSError, ValueError):
        return None
    return parent if entries == paths else None


def _with_folder_labels(source: ImageSource, folders: Sequence[ImageSource]) -> Iterator[ListedImage]:
    """The images of a list; those without a label get that of their class folder."""
    for one in source.items():
        if isinstance(one, SourceImage) and one.label is None:
            for folder in folders:
                if folder.labels is not None and one.path.startswith(f"{folder.labels.root}/"):
                    one = replace(one, folder_label=folder.labels.of(one.path)[0])
                    break
        yield one


def _how_to_unpack(path: Path) -> str:
    remedy = "Unpack it, and give the folder with the images."
    if path.suffix.lower() != ".zip":
        return remedy
    return f"{remedy} Class folders: 'lookalike data import {shlex.quote(str(path))} --name NAME', and give NAME."
