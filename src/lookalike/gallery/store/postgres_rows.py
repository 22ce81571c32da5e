"""The items of a gallery in PostgreSQL: written to and read from the tables of `postgres_schema.py`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import InputError
from lookalike.gallery.store.base import AnyValue, FailedFile, Filter, GalleryInfo, GalleryItem, NewItem, Value
from lookalike.gallery.store.common import (
    MAX_INTEGER,
    OWN_COLUMNS,
    PAGE,
    UNSIGNED,
    Reader,
    checksum,
    json_of,
    signed,
    texts_of,
    valid_ids,
    values_of,
)
from lookalike.gallery.store.postgres_connection import Connection, Half, Jsonb, sql
from lookalike.gallery.store.postgres_schema import Names

COLUMNS = "id, path, digest, size, modified, label, metadata, look"
COPY_IMAGES = f"COPY {{s}}.images ({COLUMNS}, vector, checksum) FROM STDIN (FORMAT binary)"
IMAGE_TYPES = ["int8", "text", "bytea", "int8", "int8", "text", "jsonb", "int8", "halfvec", "int8"]
COPY_THUMBNAILS = "COPY {s}.thumbnails (id, jpeg, checksum) FROM STDIN (FORMAT binary)"
THUMBNAIL_TYPES = ["int8", "bytea", "int8"]
SQL_TYPES = {"path": "text", "digest": "bytea"}
MAX_INDEXED_VALUES = 20  # of a key of a filter, up to which the index of the metadata is used
ADD_AGAIN = "Remove the item, then add the image again."

Clause = tuple[sql.Composable, list[Any]]  # condition on `images`, with its parameters


# Reading


class PostgresReader(Reader):
    """Reads the items of a gallery as of one moment; see `Snapshot`.

    Args:
        db: connection in a transaction that sees one moment.
        names: of the gallery.
        about: of the gallery.
        location: for messages.
    """

    def __init__(self, db: Connection, names: Names, about: GalleryInfo, location: str) -> None:
        self.about = about
        self.db, self._names, self._location = db, names, location

    def rows(self, after: int = 0, filter: Filter | None = None) -> Iterator[GalleryItem]:
        """Yield the items with an id above `after` that pass a filter, in ascending order of id."""
        condition, parameters = clause(filter)
        query = self._names(
            f"SELECT {COLUMNS} FROM {{s}}.images WHERE id > %s AND {{condition}} ORDER BY id", condition=condition
        )
        with self.db.cursor(name="rows") as cursor:
            cursor.itersize = PAGE
            yield from map(item_of, cursor.execute(query, (min(max(after, 0), MAX_INTEGER), *parameters)))

    def items(self, ids: Iterable[int]) -> dict[int, GalleryItem]:
        """Return the items of those ids that exist, by id."""
        query = self._names(f"SELECT {COLUMNS} FROM {{s}}.images WHERE id = ANY(%s::bigint[])")
        return {values[0]: item_of(values) for values in self.db.execute(query, (valid_ids(ids),))}

    def items_with(self, column: str, values: Iterable[str] | Iterable[bytes]) -> list[GalleryItem]:
        """Return the items whose column has one of these values."""
        condition = f"{column} = ANY(%s::{SQL_TYPES[column]}[])"
        query = self._names(f"SELECT {COLUMNS} FROM {{s}}.images WHERE {condition}")
        return [item_of(found) for found in self.db.execute(query, (list(values),))]

    def jpegs(self, ids: Iterable[int]) -> dict[int, bytes]:
        """Return the thumbnails of those items that have one, by id.

        Raises:
            InputError: a thumbnail is damaged.
        """
        query = self._names("SELECT id, jpeg, checksum FROM {s}.thumbnails WHERE id = ANY(%s::bigint[])")
        found: dict[int, bytes] = {}
        for id, jpeg, expected in self.db.execute(query, (valid_ids(ids),), binary=True):
            if checksum(id, jpeg) != expected:
                raise InputError(f"{self._location}: the thumbnail of item {id} is damaged.", ADD_AGAIN)
            found[id] = bytes(jpeg)
        return found

    def vectors(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return the vectors of items; see `Snapshot.vectors`."""
        query = self._names("SELECT id, vector, checksum FROM {s}.images WHERE id = ANY(%s::bigint[])")
        rows = self.db.execute(query, (valid_ids(ids),), binary=True)
        found = {id: (vector, expected) for id, vector, expected in rows}
        vectors = np.empty((len(ids), self.about.dim), np.float32)
        for number, id in enumerate(map(int, ids)):
            if id not in found:
                raise InputError(f"{self._location}: there is no item {id}.", "It may have been removed or replaced.")
            vector, expected = found[id]
            if checksum(id, vector.tobytes()) != expected:
                raise InputError(f"{self._location}: the vector of item {id} is damaged.", ADD_AGAIN)
            vectors[number] = vector
        return vectors

    def count(self, filter: Filter | None = None) -> int:
        """Return the number of items that pass a filter."""
        condition, parameters = clause(filter)
        query = self._names("SELECT count(*) FROM {s}.images WHERE {condition}", condition=condition)
        return int(self.db.execute(query, parameters).fetchall()[0][0])

    def labels(self, most: int) -> list[tuple[str, int]]:
        """Return the most frequent labels; see `Store.labels`."""
        query = self._names(
            "SELECT label, count(*) FROM {s}.images WHERE label IS NOT NULL GROUP BY label ORDER BY 2 DESC, 1 LIMIT %s"
        )
        return self.db.execute(query, (most,)).fetchall()

    def rejected(self) -> list[FailedFile]:
        """Return the files that could not be added, by path."""
        query = self._names("SELECT path, reason, size, modified FROM {s}.rejected ORDER BY path")
        return [FailedFile(*values) for values in self.db.execute(query)]


def item_of(values: Sequence[Any]) -> GalleryItem:
    """Return an item from the values of `COLUMNS`."""
    id, path, digest, size, modified, label, metadata, look = values
    return GalleryItem(id, path, digest, size, modified, label, metadata, look % UNSIGNED)


# Writing, within a transaction of the caller


def insert(
    db: Connection, names: Names, items: Sequence[NewItem], vectors: NDArray[np.float16], metadata: Sequence[Jsonb]
) -> list[int]:
    """Add items with different paths, in place of those with the same paths, and return their ids.

    Rows are locked, removed and added in the order of their paths: two writers of the same paths then wait for each
    other, and do not block each other for ever.

    Args:
        db: connection in a transaction.
        names: of the gallery.
        items: to add.
        vectors: (N, D) float16, as they are stored.
        metadata: of each item.
    """
    order = sorted(range(len(items)), key=lambda place: items[place].path.encode())
    paths = [items[place].path for place in order]
    db.execute(names("SELECT FROM {s}.images WHERE path = ANY(%s::text[]) ORDER BY path FOR UPDATE"), (paths,))
    db.execute(names("DELETE FROM {s}.images WHERE path = ANY(%s::text[])"), (paths,))
    forget(db, names, paths)
    query = "SELECT nextval(pg_get_serial_sequence(%s, 'id')) FROM generate_series(1, %s)"
    ids = sorted(id for (id,) in db.execute(query, (names.table("images"), len(items))))
    sums = [checksum(id, vector.astype("<f2").tobytes()) for id, vector in zip(ids, vectors, strict=True)]
    with db.cursor() as cursor, cursor.copy(names(COPY_IMAGES)) as copy:
        copy.set_types(IMAGE_TYPES)
        for place in order:
            item = items[place]
            about = (ids[place], item.path, item.digest, item.size, item.modified, item.label)
            copy.write_row((*about, metadata[place], signed(item.dhash), Half(vectors[place]), sums[place]))
    with db.cursor() as cursor, cursor.copy(names(COPY_THUMBNAILS)) as copy:
        copy.set_types(THUMBNAIL_TYPES)
        for id, item in zip(ids, items, strict=True):
            if item.thumbnail:
                copy.write_row((id, item.thumbnail, checksum(id, item.thumbnail)))
    return ids


def update(
    db: Connection, names: Names, ids: Sequence[int], label: str | None, metadata: Mapping[str, Value] | None
) -> int:
    """Set the label or the metadata of items, if not None, and return how many exist."""
    query = names(
        "UPDATE {s}.images SET label = coalesce(%s::text, label), metadata = coalesce(%s::jsonb, metadata)"
        " WHERE id = ANY(%s::bigint[])"
    )
    values = (label, None if metadata is None else jsonb(metadata), valid_ids(ids))
    return db.execute(query, values).rowcount


def reject(db: Connection, names: Names, files: Sequence[FailedFile]) -> None:
    """Record files that could not be added."""
    query = names(
        "INSERT INTO {s}.rejected VALUES (%s, %s, %s, %s) ON CONFLICT (path) DO UPDATE"
        " SET reason = excluded.reason, size = excluded.size, modified = excluded.modified"
    )
    last = sorted({file.path: file for file in files}.values(), key=lambda file: file.path)
    with db.cursor() as cursor:
        cursor.executemany(query, [(file.path, file.reason, file.size, file.modified) for file in last])


def forget(db: Connection, names: Names, paths: Sequence[str]) -> None:
    """Delete the records of files that could not be added."""
    db.execute(names("DELETE FROM {s}.rejected WHERE path = ANY(%s::text[])"), (list(paths),))


# Metadata and filters as SQL


def jsonb(metadata: Mapping[str, Value]) -> Jsonb:
    """Return metadata as they are stored.

    Raises:
        InputError: a value that metadata cannot have.
    """
    items = ", ".join(f"{json.dumps(str(key), ensure_ascii=False)}: {_text(value)}" for key, value in metadata.items())
    return Jsonb(f"{{{items}}}", dumps=str)


def clause(filter: Filter | None) -> Clause:
    """Return a filter as a condition on `images`; TRUE if there is none.

    Raises:
        InputError: see `values_of`.
    """
    conditions: list[sql.Composable] = []
    parameters: list[Any] = []
    for key, values in values_of(filter).items():
        condition, more = _own_clause(key, values) if key in OWN_COLUMNS else _metadata_clause(key, values)
        conditions.append(condition)
        parameters += more
    return (sql.SQL(" AND ").join(conditions) if conditions else sql.SQL("TRUE")), parameters


def _own_clause(column: str, values: Sequence[Value] | AnyValue) -> Clause:
    if isinstance(values, AnyValue):
        return sql.SQL("{column} IS NOT NULL").format(column=sql.Identifier(column)), []
    texts = texts_of(column, values)
    either = "({column} = ANY(%s::text[]) OR {column} IS NULL)" if None in values else "{column} = ANY(%s::text[])"
    return sql.SQL(either).format(column=sql.Identifier(column)), [texts]


def _metadata_clause(key: str, values: Sequence[Value] | AnyValue) -> Clause:
    """Use the index, through `@>`, for few values only.

    For each row that `@>` compares, the server unpacks the metadata once for each value, and frees the memory after the
    row: gigabytes for thousands of values and metadata of 100 kB. For many values, it takes the value of the key out of
    the metadata once.
    """
    if isinstance(values, AnyValue):
        return sql.SQL("metadata ->> %s IS NOT NULL"), [key]
    given = [value for value in values if value is not None]
    parameters: list[Any]
    if len(given) <= MAX_INDEXED_VALUES:
        condition, parameters = "metadata @> ANY(%s::jsonb[])", [[jsonb({key: value}) for value in given]]
    else:
        condition = "metadata -> %s::text = ANY(%s::jsonb[])"
        parameters = [key, [Jsonb(value, _text) for value in given]]
    if None not in values:
        return sql.SQL(condition), parameters
    return sql.SQL(f"({condition} OR metadata ->> %s IS NULL)"), [*parameters, key]


def _text(value: Value) -> str:
    """Return a value as JSON. A whole float keeps its decimal point, so that it is read as a float again."""
    text = json_of(value)
    if isinstance(value, float):
        return format(value, ".1f") if value.is_integer() else repr(value)
    return text
