"""Lists of images: tables of paths, and Parquet files that have the images themselves.

A row that cannot be used becomes a `FailedFile` with its number; the other rows are taken.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lookalike.data.catalog import Catalog
from lookalike.data.scan import modified_ns
from lookalike.data.tables import holds_images, not_whole, read_schema
from lookalike.errors import InputError
from lookalike.gallery.sources.base import ImageSource, ListedImage, SourceImage, file_image
from lookalike.gallery.sources.local import source_of_catalog
from lookalike.gallery.sources.remote import is_uri, remote_image
from lookalike.gallery.store.base import FailedFile, Value

READ_BATCH = 64  # rows of a Parquet file in memory at a time
READ_BUFFER = 1 << 20  # bytes of a column of images: without a buffer, a whole row group is read at once
LABEL_COLUMNS = ("label", "labels", "class", "fine_label")  # of Hugging Face data sets, in order of preference

Record = Mapping[str | None, Any]  # csv puts surplus fields under None


def source_of_table(path: Path) -> ImageSource:
    """The images of a CSV, TSV or Parquet file.

    It is a list of paths (relative to its folder) or URIs, with the columns path, label, and others, which become
    metadata; or a Parquet file with images; or a catalog.

    Raises:
        InputError: it cannot be read, or has no column of paths or images.
    """
    if path.suffix.lower() != ".parquet":
        header = _csv_header(path)
        _check_path_column(path, header)
        return _of_records(path, partial(_csv_records, path), lambda: sum(1 for _ in _csv_records(path)))
    schema = read_schema(path)
    if b"lookalike" in (schema.metadata or {}):
        return source_of_catalog(Catalog.from_parquet(path))
    if _image_column(schema) is not None and "path" not in schema.names:
        return source_of_shards(path, [path])
    _check_path_column(path, schema.names)
    rows = int(pq.read_metadata(path).num_rows)
    plain = [name for name in schema.names if not _is_nested(schema.field(name).type)]
    return _of_records(path, partial(_parquet_records, path, plain), lambda: rows)


def header_of(path: Path) -> list[str]:
    """The names of the columns of a CSV or TSV file; none if it cannot be read."""
    try:
        return _csv_header(path)
    except InputError:
        return []


def source_of_shards(source: Path, shards: list[Path]) -> ImageSource:
    """The images of Parquet files with a column of encoded images, as in Hugging Face data sets.

    The path of an image is its file and row number, `FILE.parquet#7`. The column of classes becomes the label, other
    plain columns become metadata.

    Raises:
        InputError: a file cannot be read or has no images.
    """
    for shard in shards:
        if _image_column(read_schema(shard)) is None:
            raise InputError(f"{shard}: neither a column of images nor a column 'path'.", "Give another file.")

    def items() -> Iterator[ListedImage]:
        for shard in shards:
            yield from _images_in(shard)

    return ImageSource(
        str(source), items, lambda: sum(int(pq.read_metadata(shard).num_rows) for shard in shards), is_list=True
    )


def _of_records(path: Path, records: Callable[[], Iterator[Record]], length: Callable[[], int]) -> ImageSource:
    folder = os.path.abspath(path.parent)  # noqa: PTH100

    def items() -> Iterator[ListedImage]:
        about = path.stat()
        for number, record in enumerate(records(), start=1):
            found = _listed(folder, record)
            if isinstance(found, str):
                name = f"{os.path.abspath(path)}, row {number}"  # noqa: PTH100
                yield FailedFile(name, found, about.st_size, modified_ns(about))
            else:
                yield found

    return ImageSource(str(path), items, length, is_list=True)


def _listed(folder: str, record: Record) -> ListedImage | str:
    """The file that a row names, or the reason why the row cannot be used."""
    if None in record:
        return "more fields than columns"
    path = _text(record.get("path"))
    if not path:
        return "no path"
    if "\0" in path:
        return "a path with a zero byte in it"
    found = remote_image(path) if is_uri(path) else file_image(os.path.join(folder, path))  # noqa: PTH118
    if isinstance(found, FailedFile):
        return found
    label = _text(record.get("label")) or None
    return SourceImage(
        found.path, found.size, found.modified, found.load, label, _metadata(record, {"path", "label"}), True
    )


def _images_in(shard: Path) -> Iterator[ListedImage]:
    schema = read_schema(shard)
    images = _image_column(schema)
    features = _features(schema)
    label = next((name for name in LABEL_COLUMNS if name in schema.names and name != images), None)
    names = features.get(label or "", {}).get("names")
    columns = [name for name in schema.names if name == images or not _is_nested(schema.field(name).type)]
    file, modified = os.path.abspath(shard), modified_ns(shard.stat())  # noqa: PTH100
    for number, record in zip(count(), _parquet_records(shard, columns)):
        path = f"{file}#{number}"
        value = record[images]
        data = value.get("bytes") if isinstance(value, dict) else value
        if not data:
            yield FailedFile(path, "no image in this row", 0, modified)
            continue
        class_name = _class_name(record[label], names) if label is not None else None
        metadata = _metadata(record, {images, label, "path"})
        yield SourceImage(path, len(data), modified, partial(bytes, data), class_name, metadata, True, len(data))


def images_from(shard: Path, group: int) -> Iterator[list[bytes | None]]:
    """Yield the encoded images of a Parquet file from a row group on, `READ_BATCH` at a time; None: a row without one.

    Raises:
        InputError: it cannot be read, or has no images.
    """
    images = _image_column(read_schema(shard))
    if images is None:
        raise InputError(f"{shard}: has no column of images.", "Bring the file back.")
    try:
        with pq.ParquetFile(shard, buffer_size=READ_BUFFER) as file:
            groups = range(group, file.num_row_groups)
            for batch in file.iter_batches(READ_BATCH, row_groups=groups, columns=[images]):
                values = batch.column(0).to_pylist()
                yield [value.get("bytes") if isinstance(value, dict) else value for value in values]
    except (OSError, pa.ArrowException) as error:
        raise not_whole(shard, error) from None


def _class_name(value: Any, names: Any) -> str | None:
    if isinstance(names, list) and isinstance(value, int):
        return str(names[value]) if 0 <= value < len(names) else None
    return _text(value) or None


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """The Hugging Face features in the metadata of a Parquet file, by column; empty if there are none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: about for name, about in features.items() if isinstance(about, dict)}
    except (KeyError, TypeError, ValueError, AttributeError):  # written by another program
        return {}


def _image_column(schema: pa.Schema) -> str | None:
    named = [name for name, about in _features(schema).items() if about.get("_type") == "Image"]
    for name in [*named, *schema.names]:
        if name in schema.names and holds_images(schema.field(name).type):
            return str(name)
    return None


def _is_nested(kind: pa.DataType) -> bool:
    return bool(pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _parquet_records(path: Path, columns: list[str]) -> Iterator[Record]:
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(READ_BATCH, columns=columns):
                yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise not_whole(path, error) from None


def _csv_header(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return next(csv.reader(file, delimiter=_delimiter(path)), [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _no_table(path, error) from None


def _csv_records(path: Path) -> Iterator[Record]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from csv.DictReader(file, delimiter=_delimiter(path))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _no_table(path, error) from None


def _delimiter(path: Path) -> str:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return max(",;\t", key=file.readline().count)


def _no_table(path: Path, error: Exception) -> InputError:
    return InputError(f"{path}: cannot be read as a table ({error}).", "Save it as CSV in UTF-8.")


def _check_path_column(path: Path, names: list[str]) -> None:
    if "path" not in names:
        there = ", ".join(names) or "none"
        raise InputError(f"{path}: no column 'path'.", f"Rename the column of paths; the columns are: {there}.")


def _metadata(record: Record, without: set[str | None]) -> dict[str, Value] | None:
    """The plain values of a row by column, without empty cells; None if there are no such columns."""
    if not record.keys() - without:
        return None
    return {
        str(name): plain
        for name, value in record.items()
        if name not in without and (plain := _value(value)) is not None
    }


def _value(value: Any) -> Value:
    """A value as a store takes it: dates and the like become text, empty values and NaN become None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, bool | int | float):
        return value
    return str(value) if value not in (None, "") else None


def _text(value: Any) -> str:
    """The text of a cell; "3" for 3.0, as numbers in a column with gaps are."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value).strip()
