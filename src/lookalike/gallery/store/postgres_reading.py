"""Rows, vectors and thumbnails out of the tables of `pg_schema.py`, within a transaction of the caller's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import InputError
from lookalike.gallery.store.base import Filter, GalleryInfo, GalleryItem
from lookalike.gallery.store.checks import checksum
from lookalike.gallery.store.postgres_connection import psycopg, sql
from lookalike.gallery.store.postgres_schema import Names, clause
from lookalike.gallery.store.postgres_search import COLUMNS, row_of
from lookalike.gallery.store.sqlite_rows import LARGEST, ids_of

PAGE = 1000  # rows of an iteration in memory

Connection = psycopg.Connection[Any]


class PostgresSnapshot:
    """The rows of a gallery in a database as of one moment; see `Snapshot`.

    Args:
        db: in a transaction that sees one moment.
        names: of the gallery.
        about: the gallery.
        place: for messages.
    """

    def __init__(self, db: Connection, names: Names, about: GalleryInfo, place: str) -> None:
        self.about = about
        self._db, self._names, self._place = db, names, place
        self._count = int(db.execute(names("SELECT count(*) FROM {s}.images")).fetchall()[0][0])

    def __len__(self) -> int:
        return self._count

    def rows(self) -> Iterator[GalleryItem]:
        """All rows in ascending order of id."""
        yield from every_row(self._db, self._names)

    def get(self, ids: Sequence[int]) -> list[GalleryItem | None]:
        """Rows in the order asked for; None for ids that are not there."""
        return get(self._db, self._names, ids)

    def vectors(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """(len(ids), D) float32, in the order asked for. See `Snapshot.vectors`."""
        return vectors(self._db, self._names, ids, self.about.dim, self._place)

    def thumbnails(self, ids: Sequence[int]) -> list[bytes]:
        """The small JPEGs of rows in the order asked for; empty where there is none."""
        found = thumbnails(self._db, self._names, ids, self._place)
        return [found.get(int(id), b"") for id in ids]


def every_row(db: Connection, names: Names, after: int = 0, filter: Filter | None = None) -> Iterator[GalleryItem]:
    """Rows of an id above `after` that pass, in ascending order of id, not all in memory at once."""
    condition, parameters = clause(filter)
    query = names(
        f"SELECT {COLUMNS} FROM {{s}}.images WHERE id > %s AND {{condition}} ORDER BY id", condition=condition
    )
    with db.cursor(name="rows") as cursor:
        cursor.itersize = PAGE
        yield from map(row_of, cursor.execute(query, (min(max(after, 0), LARGEST), *parameters)))


def rows_where(db: Connection, names: Names, condition: str, parameters: Sequence[Any]) -> list[GalleryItem]:
    """The rows that a condition in SQL lets through."""
    query = names(f"SELECT {COLUMNS} FROM {{s}}.images WHERE {{condition}}", condition=sql.SQL(condition))
    return [row_of(values) for values in db.execute(query, parameters)]


def get(db: Connection, names: Names, ids: Sequence[int]) -> list[GalleryItem | None]:
    """Rows in the order asked for; None for ids that are not there."""
    found = {row.id: row for row in rows_where(db, names, "id = ANY(%s::bigint[])", [ids_of(ids)])}
    return [found.get(int(id)) for id in ids]


def vectors(db: Connection, names: Names, ids: Sequence[int], dim: int, place: str) -> NDArray[np.float32]:
    """(len(ids), D) float32, in the order asked for; see `Store.vectors`."""
    query = names("SELECT id, vector, checksum FROM {s}.images WHERE id = ANY(%s::bigint[])")
    found = {id: (vector, expected) for id, vector, expected in db.execute(query, (ids_of(ids),), binary=True)}
    kept = np.empty((len(ids), dim), np.float32)
    for number, id in enumerate(map(int, ids)):
        if id not in found:
            raise InputError(f"{place}: there is no row {id}.", "It may have been removed or replaced.")
        vector, expected = found[id]
        if checksum(id, vector.tobytes()) != expected:
            raise InputError(
                f"{place}: the vector of row {id} is damaged.", "Remove its row, then add the picture again."
            )
        kept[number] = vector
    return kept


def thumbnails(db: Connection, names: Names, ids: Sequence[int], place: str) -> dict[int, bytes]:
    """The small JPEGs of those rows that have one."""
    query = names("SELECT id, jpeg, checksum FROM {s}.thumbnails WHERE id = ANY(%s::bigint[])")
    found: dict[int, bytes] = {}
    for id, jpeg, expected in db.execute(query, (ids_of(ids),), binary=True):
        if checksum(id, jpeg) != expected:
            raise InputError(
                f"{place}: the thumbnail of row {id} is damaged.", "Remove its row, then add the picture again."
            )
        found[id] = bytes(jpeg)
    return found
