"""Lists of pictures: tables of their paths, and Parquet files that hold the pictures themselves.

A row that says nothing usable is rejected by its number; the others are taken.
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

BATCH = 64  # rows of Parquet in memory at a time
LABELS = ("label", "labels", "class", "fine_label")  # columns of Hugging Face copies, the likeliest first

Record = Mapping[str | None, Any]  # csv files fields without a column under None


def source_of_table(path: Path) -> ImageSource:
    """A CSV, TSV or Parquet file: a list of paths or URIs (columns path, label, others are metadata; relative to its
    folder), a Parquet file with pictures in it, or a catalog.

    Raises:
        InputError: it cannot be read, or it has no column of paths or pictures.
    """
    if path.suffix.lower() != ".parquet":
        header = _csv_header(path)
        _check_path_column(path, header)
        return _of_records(path, partial(_csv_records, path), lambda: sum(1 for _ in _csv_records(path)))
    schema = read_schema(path)
    if b"lookalike" in (schema.metadata or {}):
        return source_of_catalog(Catalog.from_parquet(path))
    if _picture_column(schema) is not None and "path" not in schema.names:
        return source_of_shards(path, [path])
    _check_path_column(path, schema.names)
    rows = int(pq.read_metadata(path).num_rows)
    plain = [name for name in schema.names if not _is_nested(schema.field(name).type)]
    return _of_records(path, partial(_parquet_records, path, plain), lambda: rows)


def header_of(path: Path) -> list[str]:
    """The names of a CSV or TSV file's columns; none where it cannot be read."""
    try:
        return _csv_header(path)
    except InputError:
        return []


def source_of_shards(source: Path, shards: list[Path]) -> ImageSource:
    """Parquet files with a column of encoded pictures, as Hugging Face data sets are kept. A picture is known by its
    file and number, `FILE.parquet#7`; the column of classes is its label, other plain columns are metadata.

    Raises:
        InputError: a file that cannot be read or has no pictures in it.
    """
    for shard in shards:
        if _picture_column(read_schema(shard)) is None:
            raise InputError(f"{shard}: no column with pictures in it, and none called 'path'.", "Give another file.")

    def items() -> Iterator[ListedImage]:
        for shard in shards:
            yield from _pictures_in(shard)

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
    """The file that a row names, or what is wrong with the row."""
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


def _pictures_in(shard: Path) -> Iterator[ListedImage]:
    schema = read_schema(shard)
    pictures = _picture_column(schema)
    features = _features(schema)
    label = next((name for name in LABELS if name in schema.names and name != pictures), None)
    names = features.get(label or "", {}).get("names")
    columns = [name for name in schema.names if name == pictures or not _is_nested(schema.field(name).type)]
    place, modified = os.path.abspath(shard), modified_ns(shard.stat())  # noqa: PTH100
    for number, record in zip(count(), _parquet_records(shard, columns)):
        path = f"{place}#{number}"
        value = record[pictures]
        data = value.get("bytes") if isinstance(value, dict) else value
        if not data:
            yield FailedFile(path, "no picture in this row", 0, modified)
            continue
        of_class = _class_name(record[label], names) if label is not None else None
        metadata = _metadata(record, {pictures, label, "path"})
        yield SourceImage(path, len(data), modified, partial(bytes, data), of_class, metadata, True, len(data))


def _class_name(value: Any, names: Any) -> str | None:
    if isinstance(names, list) and isinstance(value, int):
        return str(names[value]) if 0 <= value < len(names) else None
    return _text(value) or None


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """What the metadata of a Hugging Face copy say of its columns; nothing where there are none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: about for name, about in features.items() if isinstance(about, dict)}
    except (KeyError, TypeError, ValueError, AttributeError):  # written by something else: the columns must do
        return {}


def _picture_column(schema: pa.Schema) -> str | None:
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
            for batch in file.iter_batches(BATCH, columns=columns):
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
        raise InputError(f"{path}: no column 'path'.", f"Name the column with the files so; there are: {there}.")


def _metadata(record: Record, without: set[str | None]) -> dict[str, Value] | None:
    """The plain values of a row under the names of their columns, empty cells left out; None without such columns."""
    if not record.keys() - without:
        return None
    return {
        str(name): plain
        for name, value in record.items()
        if name not in without and (plain := _value(value)) is not None
    }


def _value(value: Any) -> Value:
    """A value as a store keeps it; dates and the like as text, nothing for what is empty or no number."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, bool | int | float):
        return value
    return str(value) if value not in (None, "") else None


def _text(value: Any) -> str:
    """What stands in a cell; 3 for the 3.0 that a column of numbers with gaps has."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value).strip()
