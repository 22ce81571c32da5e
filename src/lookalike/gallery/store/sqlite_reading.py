"""What is read of an embedded gallery's rows, looked at before it is given out: by a store, or as of one moment."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import InputError
from lookalike.gallery.store.ann_index import damaged_vector
from lookalike.gallery.store.base import Filter, GalleryInfo, GalleryItem
from lookalike.gallery.store.checks import checksum
from lookalike.gallery.store.sqlite_rows import LARGEST, STORED, chunks, ids_of, marks, row_of
from lookalike.gallery.store.sqlite_schema import clause, damaged, passes, read_meta

PAGE = 1000  # rows of an iteration in memory


class SqliteSnapshot:
    """The rows of a gallery in a folder as of one moment; see `Snapshot`.

    Args:
        db: in a transaction.
        about: the gallery.
        database: for messages.
    """

    def __init__(self, db: sqlite3.Connection, about: GalleryInfo, database: Path) -> None:
        self.about = about
        self._db, self._database = db, database
        self._count = read_meta(db).rows  # the first reading is the moment

    def __len__(self) -> int:
        return self._count

    def rows(self) -> Iterator[GalleryItem]:
        """All rows in ascending order of id."""
        return all_rows(self._db, self._database)

    def get(self, ids: Sequence[int]) -> list[GalleryItem | None]:
        """Rows in the order asked for; None for ids that are not there."""
        found = rows_of(self._db, self._database, ids)
        return [found.get(int(id)) for id in ids]

    def vectors(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """(len(ids), D) float32, in the order asked for. See `Snapshot.vectors`."""
        return vectors_of(self._db, ids, self.about.dim, self._database)

    def thumbnails(self, ids: Sequence[int]) -> list[bytes]:
        """The small JPEGs of rows in the order asked for; empty where there is none."""
        found = thumbnails_of(self._db, ids, self._database)
        return [found.get(int(id), b"") for id in ids]


def all_rows(
    db: sqlite3.Connection, database: Path, after: int = 0, filter: Filter | None = None
) -> Iterator[GalleryItem]:
    """Rows of an id above `after` that pass, in ascending order of id.

    Raises:
        InputError: a row is damaged, or one does not belong among them.
    """
    condition, parameters = clause(filter)
    query = f"SELECT {STORED} FROM images WHERE id > ? AND {condition} ORDER BY id"
    last = min(max(after, 0), LARGEST)
    cursor = db.execute(query, (last, *parameters))
    while records := cursor.fetchmany(PAGE):
        for record in records:
            row = row_of(record, database)
            if row.id <= last or not passes(row, filter):  # pages that lead back to themselves, or a wrong index
                raise damaged(database, f"its tables and indexes differ on row {row.id}")
            last = row.id
            yield row


def rows_of(db: sqlite3.Connection, database: Path, ids: Iterable[int]) -> dict[int, GalleryItem]:
    """The rows that are there, by id.

    Raises:
        InputError: one is damaged.
    """
    found: dict[int, GalleryItem] = {}
    for some in chunks(ids_of(ids)):
        query = f"SELECT {STORED} FROM images WHERE id IN ({marks(some)})"
        found.update((record[0], row_of(record, database)) for record in db.execute(query, some))
    return found


def vectors_of(db: sqlite3.Connection, ids: Sequence[int], dim: int, database: Path) -> NDArray[np.float32]:
    """(len(ids), D) float32, in the order asked for; see `Store.vectors`."""
    found: dict[int, bytes] = {}
    for some in chunks(set(ids_of(ids))):
        query = f"SELECT id, vector, checksum FROM vectors WHERE id IN ({marks(some)})"
        for id, vector, expected in db.execute(query, some):
            if type(vector) is not bytes or len(vector) != 2 * dim or checksum(id, vector) != expected:
                raise damaged_vector(db, id)
            found[id] = vector
    for id in ids:
        if int(id) not in found:
            raise InputError(f"{database.parent}: there is no row {id}.", "It may have been removed or replaced.")
    kept = np.frombuffer(b"".join(found[int(id)] for id in ids), "<f2").reshape(len(ids), dim)
    if not (good := np.isfinite(kept).all(axis=1)).all():
        raise damaged_vector(db, int(ids[int(np.argmin(good))]))
    return kept.astype(np.float32)


def thumbnails_of(db: sqlite3.Connection, ids: Sequence[int], database: Path) -> dict[int, bytes]:
    """The small JPEGs of those rows that have one.

    Raises:
        InputError: one is damaged.
    """
    found: dict[int, bytes] = {}
    for some in chunks(set(ids_of(ids))):
        query = f"SELECT id, jpeg, checksum FROM thumbnails WHERE id IN ({marks(some)})"
        for id, jpeg, expected in db.execute(query, some):
            if type(jpeg) is not bytes or checksum(id, jpeg) != expected:
                raise InputError(
                    f"{database}: the thumbnail of row {id} is damaged.", "Remove its row, then add the picture again."
                )
            found[id] = jpeg
    return found
