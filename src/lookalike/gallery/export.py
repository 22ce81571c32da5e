"""Export a gallery to a Parquet file or Lance data set, for other tools or another store, and import it again.

Each row is an item. The columns are `SCHEMA` and `vector`, a list of fixed length of float16 (as a gallery stores it,
so nothing is lost) or float32. The schema's metadata have, under "lookalike.gallery", the fields of `GalleryInfo` and
the version of the format, as JSON.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lookalike.errors import InputError
from lookalike.files import atomic_file, atomic_folder
from lookalike.gallery.store.base import GalleryInfo, GalleryItem, NewItem, Store, batches
from lookalike.gallery.store.location import PostgresLocation, create_store
from lookalike.gallery.store.sqlite_rows import metadata_of

READ_BATCH = 2048  # rows in memory at a time
KEY = b"lookalike.gallery"
FORMAT = 1
UINT64_MASK = (1 << 64) - 1
SCHEMA = (
    pa.field("id", pa.int64(), nullable=False),
    pa.field("path", pa.string(), nullable=False),
    pa.field("digest", pa.binary(), nullable=False),
    pa.field("size", pa.int64(), nullable=False),
    pa.field("modified", pa.int64(), nullable=False),
    pa.field("label", pa.string()),
    pa.field("metadata", pa.string(), nullable=False),  # a JSON object
    pa.field("look", pa.uint64(), nullable=False),  # `dhash` of an item
    pa.field("thumbnail", pa.binary(), nullable=False),
)

TEXTS = tuple(field for field in SCHEMA if field.type in {pa.string(), pa.binary()})
UNIT_TOLERANCE = 4e-3  # of the square of a vector's length, which is 1
_TRUSTED = "Use an export from a source that you trust."

Precision = Literal["float16", "float32"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ExportLimits:
    """Limits of an export that is read; they apply to the decompressed data, whatever the file declares.

    Args:
        rows: number of rows in all files.
        value_bytes: size of one path, label or thumbnail, or of the metadata of one row.
        ratio: decompressed size over the size of the file. Vectors and thumbnails hardly shrink.
        small_bytes: decompressed size up to which the ratio does not matter.
    """

    rows: int = 1 << 31
    value_bytes: int = 1 << 20
    ratio: int = 100
    small_bytes: int = 64 << 20

    def allowed(self, packed: int) -> int:
        """The decompressed size that a file of this size may have."""
        return max(self.small_bytes, self.ratio * packed)


def schema_of(about: GalleryInfo, precision: Precision = "float16") -> pa.Schema:
    """The columns of an export of a gallery, with its `GalleryInfo` as metadata."""
    number = pa.float16() if precision == "float16" else pa.float32()
    vector = pa.field("vector", pa.list_(number, about.dim), nullable=False)
    return pa.schema([*SCHEMA, vector], {KEY: json.dumps({"format": FORMAT, **asdict(about)})})


def batch_of(
    schema: pa.Schema, items: Sequence[GalleryItem], vectors: NDArray[np.float32], thumbnails: Sequence[bytes]
) -> pa.RecordBatch:
    """Items as a record batch.

    Args:
        schema: `schema_of` the gallery.
        items: N items.
        vectors: (N, D).
        thumbnails: N JPEGs; empty if an item has none.
    """
    columns: dict[str, list[Any]] = {
        field.name: [getattr(item, field.name) for item in items]
        for field in SCHEMA
        if field.name not in {"look", "thumbnail"}
    }
    columns["look"] = [item.dhash & UINT64_MASK for item in items]
    columns["metadata"] = [json.dumps(dict(item.metadata), ensure_ascii=False) for item in items]
    columns["thumbnail"] = list(thumbnails)
    vector = schema.field("vector").type
    numbers = pa.array(vectors.astype(vector.value_type.to_pandas_dtype()).reshape(-1))
    arrays = [pa.array(columns[field.name], field.type) for field in SCHEMA]
    return pa.RecordBatch.from_arrays(
        [*arrays, pa.FixedSizeListArray.from_arrays(numbers, vector.list_size)], schema=schema
    )


def export_rows(store: Store, path: Path, *, precision: Precision = "float16", progress: Progress | None = None) -> int:
    """Write all items of a store to a Parquet file or, if the name ends in .lance, a Lance data set.

    The file is complete or absent, and on the disk when this returns. It has the items as of one moment, even if the
    gallery is changed meanwhile.

    Args:
        store: of the gallery.
        path: the file; an existing one is not replaced.
        precision: of the vectors; "float32" for tools that cannot read float16.
        progress: called with (items written, items in all).

    Returns:
        Number of items.

    Raises:
        InputError: another extension, the path exists, its folder does not, or the disk is full; or, for Lance, the
            package pylance is not installed.
    """
    lance = _lance_for(path)
    if path.exists():
        raise InputError(f"{path}: already exists.", "Choose another name, or remove it.")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path}: no such folder.", "Name a file in a folder that exists.")
    schema = schema_of(store.about, precision)
    written = 0

    def counted() -> Iterator[pa.RecordBatch]:
        nonlocal written
        with store.snapshot() as snapshot:
            for items in batches(snapshot.rows(), READ_BATCH):
                ids = [item.id for item in items]
                yield batch_of(schema, items, snapshot.vectors(ids), snapshot.thumbnails(ids))
                written += len(items)
                if progress is not None:
                    progress(written, len(snapshot))

    if lance is not None:
        with atomic_folder(path, durable=True) as folder:
            lance.write_dataset(pa.RecordBatchReader.from_batches(schema, counted()), str(folder))
        return written
    with atomic_file(path, durable=True) as partial, pq.ParquetWriter(partial, schema, compression="zstd") as writer:
        for batch in counted():
            writer.write_batch(batch)
    return written


class Exported:
    """What `export_rows` wrote: a file or data set, or a folder of Parquet files of one gallery, ordered by name.

    Args:
        path: the file or folder.
        limits: for its size.

    Raises:
        InputError: the path does not exist, is no export of a gallery, or exceeds the limits.
    """

    def __init__(self, path: Path, limits: ExportLimits | None = None) -> None:
        self.path = path
        self.limits = limits or ExportLimits()
        self.parts = [path]
        if path.is_dir() and path.suffix != ".lance":
            self.parts = sorted(path.glob("*.parquet"))
            if not self.parts:
                raise InputError(f"{path}: no Parquet files in this folder.", "Point at an exported gallery.")
        for part in self.parts:
            if not part.exists():
                raise InputError(f"{part}: no such file.", "Point at an exported gallery.")
            if not (part.is_dir() if part.suffix == ".lance" else part.is_file()):
                raise InputError(f"{part}: not a regular file.", "Point at an exported gallery.")
        self.about = self._about(self.parts[0])
        for part in self.parts[1:]:
            if self._about(part) != self.about:
                raise InputError(
                    f"{part}: another gallery than {self.parts[0].name}.", "Keep them in separate folders."
                )
        self.count = sum(self._count(part) for part in self.parts)
        if self.count > self.limits.rows:
            raise InputError(f"{path}: {self.count:,} rows, more than {self.limits.rows:,}.", _TRUSTED)

    def rows(self) -> Iterator[list[NewItem]]:
        """All items, some thousands at a time, in the order of the file.

        Raises:
            InputError: a file is damaged or exceeds the limits.
        """
        for part in self.parts:
            with _naming_errors(part):
                left = self.limits.allowed(_bytes(part))
                for batch in self._batches(part):
                    left -= batch.nbytes
                    if left < 0:
                        raise InputError(f"{part}: decompresses to far more than an export of its size has.", _TRUSTED)
                    yield _items_of(batch, self.about.dim, self.limits)

    def _batches(self, part: Path) -> Iterator[pa.RecordBatch]:
        lance = _lance_for(part)
        if lance is not None:
            yield from lance.dataset(str(part)).to_batches(batch_size=READ_BATCH)
        else:
            # Repeated values stay in dictionaries until their lengths have been checked.
            with pq.ParquetFile(part, read_dictionary=[field.name for field in TEXTS]) as file:
                declared = sum(file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups))
                if declared > self.limits.allowed(_bytes(part)):
                    raise InputError(f"{part}: decompresses to {declared:,} bytes, far too many.", _TRUSTED)
                yield from file.iter_batches(batch_size=READ_BATCH)

    def _schema(self, part: Path) -> pa.Schema:
        lance = _lance_for(part)
        with _naming_errors(part):
            return lance.dataset(str(part)).schema if lance is not None else pq.read_schema(part)

    def _count(self, part: Path) -> int:
        lance = _lance_for(part)
        with _naming_errors(part):
            whole = lance.dataset(str(part)).count_rows() if lance is not None else pq.read_metadata(part).num_rows
            return int(whole)

    def _about(self, part: Path) -> GalleryInfo:
        """The `GalleryInfo` in a part's metadata, after a check of its columns."""
        schema = self._schema(part)
        try:
            tree = json.loads((schema.metadata or {})[KEY])
            version = tree.pop("format")
            about = GalleryInfo.from_tree(tree)
        except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
            raise InputError(
                f"{part}: not the export of a gallery: its metadata do not name the model.",
                "Point at a file that 'lookalike gallery export' wrote.",
            ) from None
        if version != FORMAT:
            raise InputError(f"{part}: format {version!r}; this version reads {FORMAT}.", "Update Lookalike.")
        expected = {field.name: field.type for field in SCHEMA}
        for name, kind in expected.items():
            if name not in schema.names or schema.field(name).type != kind:
                raise InputError(f"{part}: no column '{name}' of {kind}.", "Export the gallery again.")
        kinds = [schema_of(about, precision).field("vector").type for precision in ("float16", "float32")]
        vector = schema.field("vector").type if "vector" in schema.names else None
        if not any(vector is not None and _same_list(vector, kind) for kind in kinds):
            raise InputError(f"{part}: no column 'vector' of {about.dim} numbers.", "Export the gallery again.")
        return about


def create_filled(location: Path | PostgresLocation, source: Exported, progress: Progress | None = None) -> None:
    """Create a store with all items of an export.

    A folder is complete or absent. For a database the file is validated before the first item is sent; if the
    connection breaks later, the items that have arrived stay.

    Args:
        location: of the store.
        source: the export.
        progress: called with (items done, items in all).

    Raises:
        InputError: the location exists or cannot be created, or the file is damaged.
    """
    if isinstance(location, PostgresLocation):
        for _ in source.rows():
            pass
        _fill(location, source, progress)
        return
    if location.exists():
        raise InputError(f"{location}: already exists.", "Choose another name, or remove it.")
    with atomic_folder(location, durable=True) as folder:
        _fill(folder, source, progress)


def _fill(location: Path | PostgresLocation, source: Exported, progress: Progress | None) -> None:
    with create_store(location, source.about) as store:
        done = 0
        for rows in source.rows():
            done += len(store.add(rows))
            if progress is not None:
                progress(done, source.count)


@contextmanager
def _naming_errors(part: Path) -> Iterator[None]:
    """Turn what pyarrow and Lance raise for a damaged file into an error that names the file."""
    try:
        yield
    except MemoryError:
        raise InputError(f"{part}: does not fit into memory.", _TRUSTED) from None
    except (pa.ArrowException, OSError, ValueError, TypeError, LookupError) as error:
        first = str(error).partition("\n")[0]
        raise InputError(f"{part}: damaged or cut short ({first}).", "Export the gallery again.") from None


def _bytes(part: Path) -> int:
    """The size of a file, or of all files of a Lance data set."""
    return sum(path.lstat().st_size for path in (part.rglob("*") if part.is_dir() else (part,)))


def _same_list(one: pa.DataType, other: pa.DataType) -> bool:
    alike = pa.types.is_fixed_size_list(one) and one.list_size == other.list_size
    return bool(alike and one.value_type == other.value_type)


def _items_of(batch: pa.RecordBatch, dim: int, limits: ExportLimits) -> list[NewItem]:
    """The items of a record batch.

    Raises:
        ValueError: a value is missing, too large or not valid.
    """
    for column, field in zip(batch.columns, batch.schema, strict=True):
        if field.name != "label" and column.null_count:
            raise ValueError(f"a row without '{field.name}'")
    for field in TEXTS:
        values = batch.column(field.name)
        values = values.dictionary if isinstance(values, pa.DictionaryArray) else values
        if (longest := pc.max(pc.binary_length(values)).as_py() or 0) > limits.value_bytes:
            raise ValueError(f"a value of {longest:,} bytes in '{field.name}'")
    columns = {field.name: batch.column(field.name).to_pylist() for field in SCHEMA if field.name != "id"}
    flat = batch.column("vector").flatten().to_numpy(zero_copy_only=False)
    vectors = flat.astype(np.float32).reshape(len(batch), dim)
    good = np.abs(np.einsum("nd,nd->n", vectors, vectors) - 1) < UNIT_TOLERANCE  # false of NaN
    if not good.all():
        raise ValueError(f"{(~good).sum()} vectors that are not of length 1")
    columns["metadata"] = [metadata_of(text) for text in columns["metadata"]]
    columns["dhash"] = columns.pop("look")
    names = list(columns)
    return [
        NewItem(vector=vector, **dict(zip(names, values, strict=True)))
        for vector, *values in zip(vectors, *columns.values(), strict=True)
    ]


def _lance_for(path: Path) -> Any:
    """The package `lance` if the name ends in .lance; None for Parquet.

    Raises:
        InputError: another extension, or the package is not installed.
    """
    if path.suffix == ".parquet":
        return None
    if path.suffix != ".lance":
        raise InputError(f"{path}: the extension '{path.suffix}' is not supported.", "Use .parquet or .lance.")
    try:
        return importlib.import_module("lance")
    except ImportError:
        raise InputError(
            f"{path}: the package pylance is not installed.", "Run 'pip install pylance', or use .parquet."
        ) from None
