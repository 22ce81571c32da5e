"""A gallery as one Parquet file or Lance data set, for other tools and for another store; and back.

One row is one picture. The columns are `SCHEMA` and `vector`, a list of fixed length of float16 (what a gallery keeps,
so nothing is lost) or float32. The schema's metadata hold, under "lookalike.gallery", JSON of `About` and of the
format's version.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Sequence
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

BATCH = 2048  # rows in memory at a time
KEY = b"lookalike.gallery"
FORMAT = 1
UNSIGNED = (1 << 64) - 1
SCHEMA = (
    pa.field("id", pa.int64(), nullable=False),
    pa.field("path", pa.string(), nullable=False),
    pa.field("digest", pa.binary(), nullable=False),
    pa.field("size", pa.int64(), nullable=False),
    pa.field("modified", pa.int64(), nullable=False),
    pa.field("label", pa.string()),
    pa.field("metadata", pa.string(), nullable=False),  # JSON of an object
    pa.field("look", pa.uint64(), nullable=False),  # `dhash` of an item
    pa.field("thumbnail", pa.binary(), nullable=False),
)

TEXTS = tuple(field for field in SCHEMA if field.type in {pa.string(), pa.binary()})
UNIT = 4e-3  # by how much the square of a vector's length may differ from 1
_TRUSTED = "Use an export from a source that you trust."

Precision = Literal["float16", "float32"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ExportLimits:
    """What an export may come to; counted on what comes out of it, whatever it says of itself.

    Args:
        rows: of all its files.
        value_bytes: of one path, label or thumbnail, or of the metadata of one row.
        ratio: bytes of a file's rows over those of the file. Vectors and thumbnails hardly shrink.
        small_bytes: up to this size the ratio does not matter.
    """

    rows: int = 1 << 31
    value_bytes: int = 1 << 20
    ratio: int = 100
    small_bytes: int = 64 << 20

    def allowed(self, packed: int) -> int:
        """Bytes that may come out of a file of this many."""
        return max(self.small_bytes, self.ratio * packed)


def schema_of(about: GalleryInfo, precision: Precision = "float16") -> pa.Schema:
    """The columns of a gallery of this kind, with what it was made with."""
    number = pa.float16() if precision == "float16" else pa.float32()
    vector = pa.field("vector", pa.list_(number, about.dim), nullable=False)
    return pa.schema([*SCHEMA, vector], {KEY: json.dumps({"format": FORMAT, **asdict(about)})})


def batch_of(
    schema: pa.Schema, rows: Sequence[GalleryItem], vectors: NDArray[np.float32], thumbnails: Sequence[bytes]
) -> pa.RecordBatch:
    """Rows as a record batch.

    Args:
        schema: `schema_of` their gallery.
        rows: N of them.
        vectors: (N, D).
        thumbnails: N, in the same order; empty where there is none.
    """
    columns: dict[str, list[Any]] = {
        field.name: [getattr(row, field.name) for row in rows]
        for field in SCHEMA
        if field.name not in {"look", "thumbnail"}
    }
    columns["look"] = [row.dhash & UNSIGNED for row in rows]
    columns["metadata"] = [json.dumps(dict(row.metadata), ensure_ascii=False) for row in rows]
    columns["thumbnail"] = list(thumbnails)
    vector = schema.field("vector").type
    numbers = pa.array(vectors.astype(vector.value_type.to_pandas_dtype()).reshape(-1))
    arrays = [pa.array(columns[field.name], field.type) for field in SCHEMA]
    return pa.RecordBatch.from_arrays(
        [*arrays, pa.FixedSizeListArray.from_arrays(numbers, vector.list_size)], schema=schema
    )


def export_rows(store: Store, path: Path, *, precision: Precision = "float16", progress: Progress | None = None) -> int:
    """Write all rows of a store: a Parquet file or, where the name ends in .lance, a Lance data set.

    It is written beside its place and renamed into it, and is on the disk when this returns. It holds the gallery as of
    one moment, whatever is changed meanwhile.

    Args:
        store: the gallery's.
        path: of the file; what is there is not replaced.
        precision: of the vectors; "float32" for tools that do not know float16.
        progress: called with (rows written, rows in all).

    Returns:
        How many rows.

    Raises:
        InputError: another ending, something is there already, no such folder, no space left; or, for Lance, the
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
        with store.snapshot() as kept:
            for rows in batches(kept.rows(), BATCH):
                ids = [row.id for row in rows]
                yield batch_of(schema, rows, kept.vectors(ids), kept.thumbnails(ids))
                written += len(rows)
                if progress is not None:
                    progress(written, len(kept))

    if lance is not None:
        with atomic_folder(path, durable=True) as folder:
            lance.write_dataset(pa.RecordBatchReader.from_batches(schema, counted()), str(folder))
        return written
    with atomic_file(path, durable=True) as partial, pq.ParquetWriter(partial, schema, compression="zstd") as writer:
        for batch in counted():
            writer.write_batch(batch)
    return written


class Exported:
    """What `export_rows` wrote: one file or data set, or a folder of Parquet files of one gallery, in order of name.

    Args:
        path: of it.
        limits: what is too much.

    Raises:
        InputError: nothing there, or it is not the export of a gallery, or more than the limits allow.
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
                raise InputError(f"{part}: no plain file.", "Point at an exported gallery.")
        self.about = self._about(self.parts[0])
        for part in self.parts[1:]:
            if self._about(part) != self.about:
                raise InputError(f"{part}: of another gallery than {self.parts[0].name}.", "Keep them apart.")
        self.count = sum(self._count(part) for part in self.parts)
        if self.count > self.limits.rows:
            raise InputError(f"{path}: {self.count:,} rows, more than {self.limits.rows:,}.", _TRUSTED)

    def rows(self) -> Iterator[list[NewItem]]:
        """All rows, some thousands at a time, in the order of the file.

        Raises:
            InputError: a damaged file.
        """
        for part in self.parts:
            with _Naming(part):
                left = self.limits.allowed(_bytes(part))
                for batch in self._batches(part):
                    left -= batch.nbytes
                    if left < 0:
                        raise InputError(
                            f"{part}: far more comes out of it than an export of its size holds.", _TRUSTED
                        )
                    yield _rows_of(batch, self.about.dim, self.limits)

    def _batches(self, part: Path) -> Iterator[pa.RecordBatch]:
        lance = _lance_for(part)
        if lance is not None:
            yield from lance.dataset(str(part)).to_batches(batch_size=BATCH)
        else:
            # Values that a file holds once and names often stay so until their lengths have been looked at.
            with pq.ParquetFile(part, read_dictionary=[field.name for field in TEXTS]) as file:
                declared = sum(file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups))
                if declared > self.limits.allowed(_bytes(part)):
                    raise InputError(f"{part}: {declared:,} bytes would come out of it, far too many.", _TRUSTED)
                yield from file.iter_batches(batch_size=BATCH)

    def _schema(self, part: Path) -> pa.Schema:
        lance = _lance_for(part)
        with _Naming(part):
            return lance.dataset(str(part)).schema if lance is not None else pq.read_schema(part)

    def _count(self, part: Path) -> int:
        lance = _lance_for(part)
        with _Naming(part):
            whole = lance.dataset(str(part)).count_rows() if lance is not None else pq.read_metadata(part).num_rows
            return int(whole)

    def _about(self, part: Path) -> GalleryInfo:
        """What the part's gallery was made with, once its columns have been found to be all there."""
        schema = self._schema(part)
        try:
            tree = json.loads((schema.metadata or {})[KEY])
            version = tree.pop("format")
            about = GalleryInfo.from_tree(tree)
        except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
            raise InputError(
                f"{part}: not the export of a gallery: its metadata do not say which model made the vectors.",
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


def create_filled(place: Path | PostgresLocation, source: Exported, progress: Progress | None = None) -> None:
    """A new store with all rows of an export. A folder is complete or absent. For a database the file is read through
    before the first row is sent; if the connection breaks later, what has arrived stays.

    Args:
        place: of the store.
        source: the export.
        progress: called with (rows done, rows in all).

    Raises:
        InputError: there is one already, none can be made there, or the file is damaged.
    """
    if isinstance(place, PostgresLocation):
        for _ in source.rows():
            pass
        _fill(place, source, progress)
        return
    if place.exists():
        raise InputError(f"{place}: already exists.", "Choose another name, or remove it.")
    with atomic_folder(place, durable=True) as folder:
        _fill(folder, source, progress)


def _fill(place: Path | PostgresLocation, source: Exported, progress: Progress | None) -> None:
    with create_store(place, source.about) as store:
        done = 0
        for rows in source.rows():
            done += len(store.add(rows))
            if progress is not None:
                progress(done, source.count)


class _Naming:
    """Turns what pyarrow and Lance raise on a damaged file into an error that names it."""

    def __init__(self, part: Path) -> None:
        self.part = part

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, MemoryError):
            raise InputError(f"{self.part}: does not fit into memory.", _TRUSTED) from None
        if isinstance(error, pa.ArrowException | OSError | ValueError | TypeError | LookupError):
            first = str(error).partition("\n")[0]
            raise InputError(f"{self.part}: damaged or cut short ({first}).", "Export the gallery again.") from None


def _bytes(part: Path) -> int:
    """Of a file, or of all files of a Lance data set."""
    return sum(path.lstat().st_size for path in (part.rglob("*") if part.is_dir() else (part,)))


def _same_list(one: pa.DataType, other: pa.DataType) -> bool:
    alike = pa.types.is_fixed_size_list(one) and one.list_size == other.list_size
    return bool(alike and one.value_type == other.value_type)


def _rows_of(batch: pa.RecordBatch, dim: int, limits: ExportLimits) -> list[NewItem]:
    """Rows of an export, once they are known to be ones.

    Raises:
        ValueError: they are not.
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
    good = np.abs(np.einsum("nd,nd->n", vectors, vectors) - 1) < UNIT  # false of NaN
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
    """The package, where the name ends in .lance; None for Parquet.

    Raises:
        InputError: another ending, or it is not installed.
    """
    if path.suffix == ".parquet":
        return None
    if path.suffix != ".lance":
        raise InputError(f"{path}: '{path.suffix}' is no format of an export.", "End the name in .parquet or .lance.")
    try:
        return importlib.import_module("lance")
    except ImportError:
        raise InputError(
            f"{path}: the package pylance is not installed.", "Run 'pip install pylance', or end the name in .parquet."
        ) from None
