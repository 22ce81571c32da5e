"""The items of a gallery in a folder: written to and read from the tables of `sqlite_schema.py`.

Every row has a checksum: SQLite does not notice a flipped bit within a value.
"""

from __future__ import annotations

import json
import math
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import InputError
from lookalike.gallery.store.base import AnyValue, FailedFile, Filter, GalleryInfo, GalleryItem, NewItem, Value, batches
from lookalike.gallery.store.common import (
    MAX_INTEGER,
    OWN_COLUMNS,
    PAGE,
    UNSIGNED,
    Reader,
    checksum,
    filterable,
    json_of,
    passes,
    signed,
    texts_of,
    valid_ids,
    values_of,
)
from lookalike.gallery.store.sqlite_schema import damaged, file_of, last_id, read_meta

COLUMNS = "id, path, digest, size, modified, label, metadata, look"
STORED = f"{COLUMNS}, checksum"
TYPES = ([int, str, bytes, int, int, str, str, int], [int, str, bytes, int, int, NoneType, str, int])  # of `COLUMNS`
MAX_PARAMETERS = 500  # of one statement
VECTORS_AT_A_TIME = 4096  # read from the database
BITS_AT_A_TIME = 1 << 18  # float16 numbers checked at a time, so that they stay in the processor's cache
NOT_FINITE = 0x7C00  # exponent of the float16 numbers that are infinite or not a number

Record = tuple[int, str, bytes, int, int, str | None, str, int]  # the values of `COLUMNS`
Clause = tuple[str, list[str | None]]  # SQL condition on `images`, with its parameters
ItemT = TypeVar("ItemT")


# Reading


class SqliteReader(Reader):
    """Reads the items of a gallery as of one moment; see `Snapshot`.

    Args:
        db: connection in a transaction.
        about: of the gallery.
        database: path, for messages.
    """

    def __init__(self, db: sqlite3.Connection, about: GalleryInfo, database: Path) -> None:
        self.about = about
        self.db, self.database = db, database

    def rows(self, after: int = 0, filter: Filter | None = None) -> Iterator[GalleryItem]:
        """Yield the items with an id above `after` that pass a filter, in ascending order of id.

        Raises:
            InputError: an item is damaged, or an index of the database is wrong.
        """
        condition, parameters = clause(filter)
        query = f"SELECT {STORED} FROM images WHERE id > ? AND {condition} ORDER BY id"
        last = min(max(after, 0), MAX_INTEGER)
        cursor = self.db.execute(query, (last, *parameters))
        while records := cursor.fetchmany(PAGE):
            for record in records:
                item = item_of(record, self.database)
                if item.id <= last or not passes(item, filter):  # pages that form a loop, or a wrong index
                    raise damaged(self.database, f"its tables and indexes differ on item {item.id}")
                last = item.id
                yield item

    def items(self, ids: Iterable[int]) -> dict[int, GalleryItem]:
        """Return the items of those ids that exist, by id."""
        found: dict[int, GalleryItem] = {}
        for some in chunks(valid_ids(ids)):
            query = f"SELECT {STORED} FROM images WHERE id IN ({marks(some)})"
            found.update((record[0], item_of(record, self.database)) for record in self.db.execute(query, some))
        return found

    def items_with(self, column: str, values: Iterable[str] | Iterable[bytes]) -> list[GalleryItem]:
        """Return the items whose column has one of these values."""
        return list(self.items(ids_with(self.db, column, set(values))).values())

    def jpegs(self, ids: Iterable[int]) -> dict[int, bytes]:
        """Return the thumbnails of those items that have one, by id.

        Raises:
            InputError: a thumbnail is damaged.
        """
        found: dict[int, bytes] = {}
        for some in chunks(set(valid_ids(ids))):
            query = f"SELECT id, jpeg, checksum FROM thumbnails WHERE id IN ({marks(some)})"
            for id, jpeg, expected in self.db.execute(query, some):
                if type(jpeg) is not bytes or checksum(id, jpeg) != expected:
                    raise InputError(
                        f"{self.database}: the thumbnail of item {id} is damaged.",
                        "Remove the item and add the image again.",
                    )
                found[id] = jpeg
        return found

    def vectors(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return the vectors of items; see `Snapshot.vectors`."""
        dim = self.about.dim
        found: dict[int, bytes] = {}
        for some in chunks(set(valid_ids(ids))):
            query = f"SELECT id, vector, checksum FROM vectors WHERE id IN ({marks(some)})"
            for id, vector, expected in self.db.execute(query, some):
                if not is_intact(id, vector, expected, dim):
                    raise damaged_vector(self.db, id)
                found[id] = vector
        for id in ids:
            if int(id) not in found:
                raise InputError(
                    f"{self.database.parent}: there is no item {id}.", "It may have been removed or replaced."
                )
        stored = np.frombuffer(b"".join(found[int(id)] for id in ids), "<f2").reshape(len(ids), dim)
        if not (good := np.isfinite(stored).all(axis=1)).all():
            raise damaged_vector(self.db, int(ids[int(np.argmin(good))]))
        return stored.astype(np.float32)

    def count(self, filter: Filter | None = None) -> int:
        """Return the number of items that pass a filter."""
        if not filter:
            return read_meta(self.db).rows
        condition, parameters = clause(filter)
        return int(self.db.execute(f"SELECT count(*) FROM images WHERE {condition}", parameters).fetchone()[0])

    def labels(self, most: int) -> list[tuple[str, int]]:
        """Return the most frequent labels; see `Store.labels`."""
        query = "SELECT label, count(*) FROM images WHERE label IS NOT NULL GROUP BY label ORDER BY 2 DESC, 1 LIMIT ?"
        found = self.db.execute(query, (most,)).fetchall()
        if any(type(label) is not str for label, _ in found):
            raise damaged(self.database, "a label is not text")
        return found

    def rejected(self) -> list[FailedFile]:
        """Return the files that could not be added, by path."""
        found = self.db.execute("SELECT * FROM rejected ORDER BY path").fetchall()
        if any([type(value) for value in values] != [str, str, int, int] for values in found):
            raise damaged(self.database, "its table 'rejected' is damaged")
        return [FailedFile(*values) for values in found]


def ids_with(db: sqlite3.Connection, column: str, values: Iterable[Any]) -> list[int]:
    """Return the ids of the items whose column has one of these values."""
    found: list[int] = []
    for some in chunks(values):
        found += [id for (id,) in db.execute(f"SELECT id FROM images WHERE {column} IN ({marks(some)})", some)]
    return found


def vectors_after(
    db: sqlite3.Connection, dim: int, after: int = 0
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float16]]]:
    """Yield ids (N,) and vectors (N, D) of the items with an id above `after`, in ascending order, N at a time.

    Raises:
        InputError: a vector is damaged.
    """
    cursor = db.execute("SELECT id, vector, checksum FROM vectors WHERE id > ? ORDER BY id", (after,))
    last = after
    while records := cursor.fetchmany(VECTORS_AT_A_TIME):
        for id, vector, expected in records:
            if id <= last or not is_intact(id, vector, expected, dim):  # not ascending: pages that form a loop
                raise damaged_vector(db, id)
            last = id
        numbers = np.frombuffer(b"".join(vector for _, vector, _ in records), "<f2").reshape(-1, dim)
        if not all_finite(numbers):
            places = np.flatnonzero(~np.isfinite(numbers).all(axis=1))
            raise damaged_vector(db, records[int(places[0])][0])
        yield np.array([id for id, _, _ in records], np.int64), numbers


def is_intact(id: int, vector: object, expected: object, dim: int) -> bool:
    """Return whether the bytes of a vector have the right length and checksum."""
    return type(vector) is bytes and len(vector) == 2 * dim and checksum(id, vector) == expected


def all_finite(numbers: NDArray[np.float16]) -> bool:
    """Return whether all numbers are finite."""
    bits = numbers.reshape(-1).view("<u2")
    parts = (bits[first : first + BITS_AT_A_TIME] for first in range(0, len(bits), BITS_AT_A_TIME))
    return all(not ((part & NOT_FINITE) == NOT_FINITE).any() for part in parts)


def damaged_vector(db: sqlite3.Connection, id: int) -> InputError:
    """Return the error for a damaged vector; it names the image."""
    found = db.execute("SELECT path FROM images WHERE id = ?", (id,)).fetchone()
    return InputError(
        f"{shown(found[0]) if found else 'an item without a path'}: its vector (id {id}) is damaged in {file_of(db)}.",
        "Remove the item and add the image again. 'lookalike gallery check' names every damaged item.",
    )


# Writing, within a transaction of the caller


def begin_change(db: sqlite3.Connection) -> None:
    """Begin a transaction that changes items, and count it."""
    db.execute("BEGIN IMMEDIATE")
    db.execute("UPDATE meta SET changes = changes + 1")


def insert(db: sqlite3.Connection, items: Sequence[NewItem], vectors: NDArray[np.float16]) -> list[int]:
    """Add items with different paths, in place of those with the same paths, and return their ids.

    Args:
        db: connection in a transaction.
        items: to add.
        vectors: (N, D) float16, as they are stored.
    """
    paths = [item.path for item in items]
    delete(db, ids_with(db, "path", paths))
    forget(db, paths)
    first = 1 + last_id(db)
    ids = list(range(first, first + len(items)))
    records = [record_of(id, item) for id, item in zip(ids, items, strict=True)]
    db.executemany(
        "INSERT INTO images VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [(*values, checksum_of_record(values)) for values in records],
    )
    blobs = [vector.tobytes() for vector in vectors]
    _insert_blobs(db, "vectors", zip(ids, blobs, strict=True))
    _insert_blobs(
        db, "thumbnails", [(id, item.thumbnail) for id, item in zip(ids, items, strict=True) if item.thumbnail]
    )
    tags = [(*pair, id) for id, item in zip(ids, items, strict=True) for pair in filterable(item.metadata)]
    db.executemany("INSERT INTO tags VALUES (?, ?, ?)", tags)
    db.execute("UPDATE meta SET rows = rows + ?", (len(items),))
    return ids


def delete(db: sqlite3.Connection, ids: Iterable[int]) -> int:
    """Remove items, record that in `removed`, and return how many existed."""
    count = 0
    for some in chunks(ids):
        there = db.execute(f"SELECT {COLUMNS} FROM images WHERE id IN ({marks(some)})", some).fetchall()
        _delete_tags(db, there)
        gone = [values[0] for values in there]
        for table in ("images", "vectors", "thumbnails"):
            db.execute(f"DELETE FROM {table} WHERE id IN ({marks(gone)})", gone)
        db.executemany("INSERT INTO removed SELECT changes, ? FROM meta", [(id,) for id in gone])
        count += len(gone)
    if count:
        db.execute("UPDATE meta SET rows = rows - ?", (count,))
    return count


def update(db: sqlite3.Connection, ids: Iterable[int], label: str | None, metadata: Mapping[str, Value] | None) -> int:
    """Set the label or the metadata of items, if not None, and return how many exist."""
    count = 0
    text = None if metadata is None else _metadata_text(metadata)
    for some in chunks(set(ids)):
        there = db.execute(f"SELECT {STORED} FROM images WHERE id IN ({marks(some)})", some).fetchall()
        changed: list[Record] = []
        for *values, expected in there:
            item_of((*values, expected), file_of(db))  # a new checksum must not hide damage
            *first, before, kept, look = values
            changed.append((*first, before if label is None else label, kept if text is None else text, look))
        if metadata is not None:
            _delete_tags(db, there)
            tags = [(*pair, values[0]) for values in there for pair in filterable(metadata)]
            db.executemany("INSERT INTO tags VALUES (?, ?, ?)", tags)
        db.executemany(
            "UPDATE images SET label = ?, metadata = ?, checksum = ? WHERE id = ?",
            [(values[5], values[6], checksum_of_record(values), values[0]) for values in changed],
        )
        count += len(there)
    return count


def all_ids(db: sqlite3.Connection) -> set[int]:
    """Return the ids of all items."""
    return {id for (id,) in db.execute("SELECT id FROM images")}


def replace_vectors(db: sqlite3.Connection, vectors: Iterable[tuple[int, bytes]]) -> int:
    """Replace all vectors by those of the items that exist, and return how many items now have none.

    Args:
        db: connection in a transaction.
        vectors: ids and vectors as they are stored.
    """
    there = all_ids(db)
    db.execute("DELETE FROM vectors")
    for some in batches(vectors, VECTORS_AT_A_TIME):
        _insert_blobs(db, "vectors", [pair for pair in some if pair[0] in there], verb="INSERT OR REPLACE")
    return int(db.execute("SELECT count(*) FROM images WHERE id NOT IN (SELECT id FROM vectors)").fetchone()[0])


def reject(db: sqlite3.Connection, files: Iterable[FailedFile]) -> None:
    """Record files that could not be added."""
    db.executemany(
        "INSERT OR REPLACE INTO rejected VALUES (?, ?, ?, ?)",
        [(file.path, file.reason, file.size, file.modified) for file in files],
    )


def forget(db: sqlite3.Connection, paths: Iterable[str]) -> None:
    """Delete the records of files that could not be added."""
    db.executemany("DELETE FROM rejected WHERE path = ?", [(path,) for path in paths])


def _insert_blobs(
    db: sqlite3.Connection, table: str, blobs: Iterable[tuple[int, bytes]], *, verb: str = "INSERT"
) -> None:
    db.executemany(f"{verb} INTO {table} VALUES (?, ?, ?)", [(id, blob, checksum(id, blob)) for id, blob in blobs])


def _delete_tags(db: sqlite3.Connection, records: Iterable[Sequence[Any]]) -> None:
    """Delete the tags of these records, found by their metadata."""
    for values in records:
        try:
            tags = [(*pair, values[0]) for pair in filterable(metadata_of(values[6]))]
        except (ValueError, TypeError):  # damaged metadata
            db.execute("DELETE FROM tags WHERE id = ?", (values[0],))
            continue
        db.executemany("DELETE FROM tags WHERE key = ? AND value = ? AND id = ?", tags)


# Items as records


def record_of(id: int, item: NewItem) -> Record:
    """Return the values of `COLUMNS` for a new item."""
    metadata = _metadata_text(item.metadata)
    return (id, item.path, item.digest, item.size, item.modified, item.label, metadata, signed(item.dhash))


def item_of(record: Sequence[Any], database: object) -> GalleryItem:
    """Return an item from the values of `STORED`.

    Args:
        record: the values.
        database: path, for messages.

    Raises:
        InputError: the record is damaged.
    """
    *values, expected = record
    if fault := fault_of_record(values, expected):
        raise InputError(
            f"{shown(values[1])}: {fault} in {database}.",
            f"Remove it with 'lookalike gallery remove GALLERY --id {values[0]}', and add the image again.",
        )
    id, path, digest, size, modified, label, text, look = values
    return GalleryItem(id, path, digest, size, modified, label, metadata_of(text), look % UNSIGNED)


def fault_of_record(values: Sequence[Any], expected: object) -> str:
    """Return what is wrong with a record; empty if it is intact.

    Args:
        values: of `COLUMNS`.
        expected: the stored checksum.
    """
    fault = f"its record (id {values[0]}) is damaged"
    types = [type(value) for value in values]
    if types not in TYPES or checksum_of_record(values) != expected or values[0] < 1:
        return fault
    try:
        metadata_of(values[6])
    except ValueError:
        return fault
    return ""


def _metadata_text(metadata: Mapping[str, Value]) -> str:
    return json.dumps(dict(metadata), ensure_ascii=False, sort_keys=True) if metadata else "{}"


def metadata_of(text: str) -> dict[str, Value]:
    """Return metadata from the JSON in which they are stored.

    Raises:
        ValueError: not an object of text, finite numbers, true, false and null.
    """
    if text == "{}":
        return {}
    try:
        tree = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(tree, dict):
        raise ValueError("not an object")
    for value in tree.values():
        if value is not None and not isinstance(value, str | int | float):
            raise ValueError("neither text nor a number")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError("not finite")
    return tree


def shown(path: object) -> str:
    """Return the path of an item for a message; in a damaged record it can be anything."""
    return path if isinstance(path, str) and path else f"{path!r:.60}"


def checksum_of_record(record: Sequence[Any]) -> int:
    """Return the CRC-32 of the values of `COLUMNS`."""
    return zlib.crc32(repr(tuple(record)).encode("utf-8", "surrogatepass"))


# SQL


def clause(filter: Filter | None) -> Clause:
    """Return a filter as a condition on `images`; "TRUE" if there is none.

    Raises:
        InputError: see `values_of`.
    """
    conditions: list[str] = []
    parameters: list[str | None] = []
    for key, values in values_of(filter).items():
        condition, more = _own_clause(key, values) if key in OWN_COLUMNS else _metadata_clause(key, values)
        conditions.append(condition)
        parameters += more
    return " AND ".join(conditions) or "TRUE", parameters


def _own_clause(column: str, values: Sequence[Value] | AnyValue) -> Clause:
    if isinstance(values, AnyValue):
        return f"{column} IS NOT NULL", []
    texts: list[str | None] = [*texts_of(column, values)]
    condition = f"{column} IN ({marks(texts)})"
    return (f"({condition} OR {column} IS NULL)" if None in values else condition), texts


def _metadata_clause(key: str, values: Sequence[Value] | AnyValue) -> Clause:
    if isinstance(values, AnyValue):
        return "id IN (SELECT id FROM tags WHERE key = ?)", [key]
    accepted: list[str | None] = [json_of(value) for value in values if value is not None]
    condition = f"id IN (SELECT id FROM tags WHERE key = ? AND value IN ({marks(accepted)}))"
    if None not in values:
        return condition, [key, *accepted]
    return f"({condition} OR id NOT IN (SELECT id FROM tags WHERE key = ?))", [key, *accepted, key]


def chunks(items: Iterable[ItemT]) -> Iterator[list[ItemT]]:
    """Yield lists of as many items as one statement takes parameters."""
    everything = list(items)
    for start in range(0, len(everything), MAX_PARAMETERS):
        yield everything[start : start + MAX_PARAMETERS]


def marks(items: Sequence[object]) -> str:
    """Return the placeholders of a statement for these parameters."""
    return ",".join("?" * len(items))
