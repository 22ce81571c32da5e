"""New vectors of a gallery in PostgreSQL, kept in columns of their own until there is one for every item.

`images` gets the columns `vector_next`, `checksum_next` and `thumbnail_next` (was it computed from a thumbnail?); the
comment on `vector_next` names the model. Once no item lacks a new vector, an index over them is made while searches go
on, and one transaction, which rewrites no rows, puts the new columns in the place of the old ones. Only the owner of
the tables may do this.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import InputError
from lookalike.gallery.store import postgres_rows
from lookalike.gallery.store.base import FailedFile, GalleryInfo
from lookalike.gallery.store.common import checksum, unit_halves, valid_ids
from lookalike.gallery.store.postgres_connection import Connection, Half, Link, errors, sql
from lookalike.gallery.store.postgres_schema import (
    DROP_NEXT,
    INDEXES,
    MAX_DIM,
    MAX_PLAIN_DIM,
    NEXT_INDEX,
    VECTOR_INDEX,
    Names,
    indexes_of,
)

LOCK_SECONDS = 1  # to wait for the lock of the switch: every other transaction waits meanwhile
RETRY_SECONDS = 5.0
COMMENT = """
SELECT pg_catalog.col_description(a.attrelid, a.attnum) FROM pg_catalog.pg_attribute a
WHERE a.attrelid = %s::regclass AND a.attname = 'vector_next' AND NOT a.attisdropped
"""
ADD_COLUMNS = """
ALTER TABLE {s}.images ADD COLUMN vector_next {v}.halfvec({dim}), ADD COLUMN checksum_next bigint,
    ADD COLUMN thumbnail_next boolean;
COMMENT ON COLUMN {s}.images.vector_next IS {comment};
"""
FORGET_THUMBNAILS = """
UPDATE {s}.images SET vector_next = NULL, checksum_next = NULL, thumbnail_next = NULL WHERE thumbnail_next
"""
IS_VALID = "SELECT indisvalid AND indisready FROM pg_catalog.pg_index WHERE indexrelid = to_regclass(%s)"
SWITCH = """
ALTER TABLE {s}.images DROP COLUMN vector, DROP COLUMN checksum, DROP COLUMN thumbnail_next;
ALTER TABLE {s}.images RENAME COLUMN vector_next TO vector;
ALTER TABLE {s}.images RENAME COLUMN checksum_next TO checksum;
ALTER TABLE {s}.images ALTER COLUMN vector SET NOT NULL, ALTER COLUMN checksum SET NOT NULL;
COMMENT ON COLUMN {s}.images.vector IS NULL;
"""


class _BusyError(Exception):
    """Long transactions of others, such as an export, keep the tables from being locked."""


class PostgresReembedding:
    """See `lookalike.gallery.store.base.Reembedding`.

    Args:
        link: open for writing.
        names: of the gallery.
        before: the model in use.
        about: the model to come.
        lock: connection that keeps other processes from compacting or re-embedding the gallery.
        on_switch: called once the vectors are replaced.

    Raises:
        InputError: its vectors are too long, or this role does not own the tables.
    """

    def __init__(
        self,
        link: Link,
        names: Names,
        before: GalleryInfo,
        about: GalleryInfo,
        lock: Connection,
        on_switch: Callable[[], None],
    ) -> None:
        self._link, self._names, self._about, self._lock, self._on_switch = link, names, about, lock, on_switch
        self._comment = json.dumps({"fingerprint": about.fingerprint, "dim": about.dim, "format": 2})
        if about.dim > MAX_DIM:
            raise InputError(
                f"{link.location}: a gallery cannot store vectors of {about.dim} numbers.",
                f"Use a model of 1 to {MAX_DIM:,} dimensions.",
            )

        def begin(db: Connection) -> None:
            if self._kept(db) == self._comment:
                db.execute(names(FORGET_THUMBNAILS))
                return
            db.execute(names(DROP_NEXT))
            db.execute(names(ADD_COLUMNS, dim=sql.Literal(about.dim), comment=sql.Literal(self._comment)))
            if before.dim + about.dim <= MAX_PLAIN_DIM:  # both fit into a page
                db.execute(names("ALTER TABLE {s}.images ALTER COLUMN vector_next SET STORAGE PLAIN"))

        link.writing(begin)

    def ids(self) -> NDArray[np.int64]:
        """See `Reembedding.ids`."""
        query = self._names("SELECT id FROM {s}.images WHERE vector_next IS NOT NULL ORDER BY id")
        return np.array([id for (id,) in self._link.reading(lambda db: db.execute(query).fetchall())], np.int64)

    def add(
        self, ids: Sequence[int], vectors: NDArray[np.float32], from_thumbnails: Sequence[bool] | None = None
    ) -> None:
        """See `Reembedding.add`."""
        halves = unit_halves(vectors, self._about.dim)
        query = self._names(
            "UPDATE {s}.images SET vector_next = %s, checksum_next = %s, thumbnail_next = %s WHERE id = %s"
        )
        marks = [False] * len(ids) if from_thumbnails is None else from_thumbnails
        values = [
            (Half(half), checksum(id, half.tobytes()), bool(mark), id)
            for id, half, mark in zip(ids, halves, marks, strict=True)
        ]

        def work(db: Connection) -> None:
            self._check(db)
            with db.cursor() as cursor:
                cursor.executemany(query, values)

        self._link.writing(work)

    def switch(self, lost: Mapping[int, FailedFile]) -> bool:
        """See `Reembedding.switch`."""
        names = self._names
        self._lock.execute("SELECT")  # if its connection was lost, so was the lock
        removed = valid_ids(lost)
        missing = names("SELECT count(*) FROM {s}.images WHERE vector_next IS NULL AND NOT id = ANY(%s::bigint[])")
        if self._link.reading(lambda db: db.execute(missing, (removed,)).fetchall())[0][0]:
            return False
        indexed = VECTOR_INDEX in indexes_of(self._about.dim)
        if indexed:
            self._make_index()

        def work(db: Connection) -> bool:
            db.execute("SET LOCAL statement_timeout = 0")
            db.execute(names("SET LOCAL lock_timeout = {most}", most=sql.Literal(f"{LOCK_SECONDS}s")))
            try:
                db.execute(names("LOCK TABLE {s}.gallery, {s}.images IN ACCESS EXCLUSIVE MODE"))  # see `Link.begin`
            except errors.LockNotAvailable:
                raise _BusyError from None
            self._check(db)
            if db.execute(missing, (removed,)).fetchall()[0][0]:
                return False
            gone = db.execute(names("DELETE FROM {s}.images WHERE id = ANY(%s::bigint[]) RETURNING id"), (removed,))
            postgres_rows.reject(db, names, [lost[id] for (id,) in gone.fetchall()])  # others may have removed some
            db.execute(names(SWITCH))  # with its column, the old index is gone
            if indexed:
                db.execute(names(f"ALTER INDEX {{s}}.{NEXT_INDEX} RENAME TO {VECTOR_INDEX}"))
            db.execute(names("UPDATE {s}.gallery SET about = %s::json"), (json.dumps(asdict(self._about)),))
            return True

        while True:
            with suppress(_BusyError):
                if not self._link.writing(work):
                    return False
                break
            time.sleep(RETRY_SECONDS)
        self._link.release()
        self._on_switch()
        return True

    def _make_index(self) -> None:
        """Make the index over the new vectors, unless an earlier try has: the server keeps it up to date."""
        names = self._names
        with closing(self._link.connect()) as db, self._link.plain_errors():
            if db.execute(IS_VALID, (names.table(NEXT_INDEX),)).fetchone() == (True,):
                return
            db.execute("SET statement_timeout = 0")
            db.execute(names("DROP INDEX CONCURRENTLY IF EXISTS {s}.{index}", index=sql.Identifier(NEXT_INDEX)))
            where = INDEXES[VECTOR_INDEX].replace("(vector ", "(vector_next ")
            db.execute(names(f"CREATE INDEX CONCURRENTLY {NEXT_INDEX} ON {where}"))

    def _kept(self, db: Connection) -> str | None:
        """What the comment on the column of new vectors says; None if there is no such column."""
        found = db.execute(COMMENT, (self._names.table("images"),)).fetchone()
        return None if found is None else str(found[0])

    def _check(self, db: Connection) -> None:
        """Refuse to mix vectors of two models: another process may have begun with another one."""
        if self._kept(db) != self._comment:
            raise InputError(
                f"{self._link.location}: another process is computing vectors of another model.", "Wait for it."
            )
