"""The store in a PostgreSQL server, with pgvector: for many writers, many machines, replicas and backups.

A gallery is one schema (see `pg_schema.py`). Vectors are `halfvec`, float16. An HNSW index over them is kept by the
server with every change; up to `EXACT_BELOW` rows, all or those that pass a filter, a search compares all of them.

Writers need not know of each other. Two that add the same path at once leave one row, the later one's. An id is given
out before its row is seen: of two writers, one may show id 8 before the other shows id 7.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import InputError
from lookalike.gallery.store import postgres_maintenance, postgres_reading, postgres_schema
from lookalike.gallery.store.base import (
    FailedFile,
    Filter,
    GalleryInfo,
    GalleryItem,
    NewItem,
    Problem,
    SearchResult,
    Value,
)
from lookalike.gallery.store.checks import WRAP, checked_queries, checksum, kept_vectors
from lookalike.gallery.store.postgres_connection import READ, Half, Jsonb, Link, psycopg
from lookalike.gallery.store.postgres_schema import Names, clause, jsonb
from lookalike.gallery.store.postgres_search import PostgresSearcher
from lookalike.gallery.store.sqlite_rows import ids_of

EXACT_BELOW = 10_000


Connection = psycopg.Connection[Any]


class PostgresStore:
    """The rows of a gallery in a PostgreSQL database; see `Store`. May be used from several threads, which take turns
    on its one connection; threads that are to search at once open a store each.

    Args:
        dsn: of the database, `postgresql://USER@HOST:PORT/DATABASE` or `key=value` words. What it leaves out comes from
            the environment and files that PostgreSQL's own programs read (PGPASSWORD, PGSERVICE, ~/.pgpass).
        name: of the gallery.
        write: whether to change it; any number of stores may.
        exact_below: rows up to which a search is exact.

    Raises:
        InputError: psycopg is not installed, the server cannot be used, it has no pgvector 0.8, there is no such
            gallery, it is of a newer format, or this role may not read it.
    """

    def __init__(self, dsn: str, name: str, *, write: bool = False, exact_below: int = EXACT_BELOW) -> None:
        self._name = postgres_schema.checked_name(name)
        self._link = Link(dsn, name, write=write)
        self._exact_below = exact_below
        try:
            self.about = postgres_schema.read_about(self._link, name)
            self._names = postgres_schema.names_of(self._link, name)
        except BaseException:
            self._link.close()
            raise
        self._searcher = PostgresSearcher(
            self._names, exact_below, postgres_schema.GRAPH in postgres_schema.indexes_of(self.about.dim)
        )

    @classmethod
    def create(cls, dsn: str, name: str, about: GalleryInfo, *, exact_below: int = EXACT_BELOW) -> PostgresStore:
        """A new, empty gallery, opened for writing. Complete or absent.

        Raises:
            InputError: as for the class; there is a schema of this name; this role may not make one; vectors of more
                than 16,000 numbers. (Of more than 4,000 they are kept, but never indexed: searches are exact.)
        """
        link = Link(dsn, postgres_schema.checked_name(name), write=True)
        try:
            postgres_schema.create(link, name, about)
        finally:
            link.close()
        return cls(dsn, name, write=True, exact_below=exact_below)

    @classmethod
    def open(cls, dsn: str, name: str, write: bool = False, *, exact_below: int = EXACT_BELOW) -> PostgresStore:
        """A gallery that is there; see the class."""
        return cls(dsn, name, write=write, exact_below=exact_below)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. Nothing is left to be done: what was acknowledged is kept."""
        self._link.close()

    def __len__(self) -> int:
        return self.count()

    def add(self, rows: Sequence[NewItem]) -> list[int]:
        """Keep rows, all or none; their ids. See `Store.add`."""
        last = {row.path: row for row in rows}
        unique = list(last.values())
        vectors = kept_vectors(unique, self.about.dim) if unique else np.empty((0, self.about.dim), np.float16)
        metadata = [jsonb(row.metadata) for row in unique]
        ids = self._link.writing(lambda db: insert(db, self._names, unique, vectors, metadata) if unique else [])
        by_path = dict(zip(last, ids, strict=True))
        return [by_path[row.path] for row in rows]

    def remove(self, ids: Sequence[int]) -> int:
        """Remove rows; how many there were."""
        query = self._names("DELETE FROM {s}.images WHERE id = ANY(%s::bigint[])")
        return self._link.writing(lambda db: db.execute(query, (ids_of(ids),)).rowcount)

    def update(self, ids: Sequence[int], label: str | None = None, metadata: Mapping[str, Value] | None = None) -> int:
        """Change the label or metadata (whole) of rows, where not None; how many rows there were."""
        query = self._names(
            "UPDATE {s}.images SET label = coalesce(%s::text, label), metadata = coalesce(%s::jsonb, metadata)"
            " WHERE id = ANY(%s::bigint[])"
        )
        values = (label, None if metadata is None else jsonb(metadata), ids_of(ids))
        return self._link.writing(lambda db: db.execute(query, values).rowcount)

    def calibrated(self, about: GalleryInfo) -> None:
        """Keep what the rows' own labels say."""
        query = self._names("UPDATE {s}.gallery SET about = %s::json")
        self._link.writing(lambda db: db.execute(query, (json.dumps(asdict(about)),)).rowcount)
        self.about = about

    def get(self, ids: Sequence[int]) -> list[GalleryItem | None]:
        """Rows in the order asked for; None for ids that are not there."""
        return self._link.reading(lambda db: postgres_reading.get(db, self._names, ids))

    def thumbnail(self, id: int) -> bytes | None:
        """The small JPEG of a row; None where there is no such row or no thumbnail."""
        found = self._link.reading(lambda db: postgres_reading.thumbnails(db, self._names, [id], self._link.place))
        return found.get(int(id))

    def vectors(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """(len(ids), D) float32, in the order asked for. See `Store.vectors`."""
        return self._link.reading(
            lambda db: postgres_reading.vectors(db, self._names, ids, self.about.dim, self._link.place)
        )

    def by_path(self, paths: Sequence[str]) -> dict[str, GalleryItem]:
        """The rows of those paths that are there."""
        return {row.path: row for row in self._rows("path = ANY(%s::text[])", [list(paths)])}

    def by_digest(self, digests: Sequence[bytes]) -> dict[bytes, GalleryItem]:
        """For those digests that are there, the row of the lowest id."""
        found = self._rows("digest = ANY(%s::bytea[])", [list(digests)])
        return {row.digest: row for row in sorted(found, key=lambda row: row.id, reverse=True)}

    def rows(self, after: int = 0, filter: Filter | None = None) -> Iterator[GalleryItem]:
        """Rows of an id above `after`, in ascending order of id, all as of the moment of the first."""
        with self._link.connect() as db, self._link.saying():  # its own, so that others need not wait for the last row
            self._link.begin(db, READ)
            yield from postgres_reading.every_row(db, self._names, after, filter)

    @contextmanager
    def snapshot(self) -> Iterator[postgres_reading.PostgresSnapshot]:
        """All that is kept as of this moment, by a connection of its own. See `Store.snapshot`."""
        with closing(self._link.connect()) as db, self._link.saying():
            self._link.begin(db, READ)
            yield postgres_reading.PostgresSnapshot(db, self._names, self.about, self._link.place)

    def search(
        self,
        queries: NDArray[np.float32],
        k: int = 10,
        *,
        filter: Filter | None = None,
        threshold: float | None = None,
        exact: bool = False,
    ) -> list[SearchResult]:
        """The rows nearest to each query. See `Store.search`."""
        queries = checked_queries(queries, self.about.dim)
        if k < 1:
            raise InputError(f"{k} answers cannot be given.", "Ask for 1 or more.")

        def work(db: Connection) -> list[SearchResult]:
            all_of_them = exact or not self._searcher.approximates(db, filter)
            return self._searcher.search(db, queries, k, filter, exact=all_of_them)

        answers = self._link.reading(work, "" if exact else self._searcher.settings(k))
        if threshold is None:
            return answers
        return [SearchResult([hit for hit in one.hits if hit.score >= threshold], one.exact) for one in answers]

    def count(self, filter: Filter | None = None) -> int:
        """Rows that pass."""
        condition, parameters = clause(filter)
        query = self._names("SELECT count(*) FROM {s}.images WHERE {condition}", condition=condition)
        return int(self._link.reading(lambda db: db.execute(query, parameters).fetchall())[0][0])

    def labels(self, most: int) -> list[tuple[str, int]]:
        """The most frequent labels and their rows, at most so many; of equally frequent ones by their code points."""
        query = self._names(
            "SELECT label, count(*) FROM {s}.images WHERE label IS NOT NULL GROUP BY label ORDER BY 2 DESC, 1 LIMIT %s"
        )
        return self._link.reading(lambda db: db.execute(query, (most,)).fetchall())

    def reject(self, files: Sequence[FailedFile]) -> None:
        """Remember files that could not be read; one entry for each path."""
        last = sorted({file.path: file for file in files}.values(), key=lambda file: file.path)
        query = self._names(
            "INSERT INTO {s}.rejected VALUES (%s, %s, %s, %s) ON CONFLICT (path) DO UPDATE"
            " SET reason = excluded.reason, size = excluded.size, modified = excluded.modified"
        )
        values = [(file.path, file.reason, file.size, file.modified) for file in last]

        def work(db: Connection) -> None:
            with db.cursor() as cursor:
                cursor.executemany(query, values)

        self._link.writing(work)

    def rejected(self) -> list[FailedFile]:
        """All of them, by path."""
        query = self._names("SELECT path, reason, size, modified FROM {s}.rejected ORDER BY path")
        return [FailedFile(*values) for values in self._link.reading(lambda db: db.execute(query).fetchall())]

    def forget(self, paths: Sequence[str]) -> None:
        """Forget rejected files."""
        query = self._names("DELETE FROM {s}.rejected WHERE path = ANY(%s::text[])")
        self._link.writing(lambda db: db.execute(query, (list(paths),)))

    def compact(self) -> None:
        """Make the index anew, beside the old one, and let the space of removed rows be used again. Others go on
        meanwhile. Only the owner of the tables may.
        """
        postgres_maintenance.compact(self._link, self._names, self.about.dim)

    def check(self) -> list[Problem]:
        """Look at every vector, thumbnail and index; an empty list: all is well."""
        return postgres_maintenance.verify(self._link, self._names, self.about.dim, self._searcher)

    def measure_recall(self, k: int = 10, sample: int = 200, seed: int = 0) -> float:
        """Recall@k of the approximate search against the exact one; see `Store.measure_recall`. A row is not counted
        among its own answers.
        """
        return postgres_maintenance.recall(self._link, self._searcher, k, sample, seed)

    def facts(self) -> dict[str, str | int | float]:
        """What there is to say of the store itself."""
        return postgres_maintenance.facts(self._link, self._names, self._searcher)

    def _rows(self, condition: str, parameters: list[Any]) -> list[GalleryItem]:
        return self._link.reading(lambda db: postgres_reading.rows_where(db, self._names, condition, parameters))


# Rows into the tables of `pg_schema.py`, within a transaction that the caller began and ends.

IMAGES = "id, path, digest, size, modified, label, metadata, look, vector, checksum"


TYPES = ["int8", "text", "bytea", "int8", "int8", "text", "jsonb", "int8", "halfvec", "int8"]


def insert(
    db: psycopg.Connection[Any],
    names: Names,
    rows: Sequence[NewItem],
    vectors: NDArray[np.float16],
    metadata: Sequence[Jsonb],
) -> list[int]:
    """Add rows of different paths, in place of those that have these paths now; their ids.

    Rows are locked, removed and added by ascending path, whatever their order: two writers of the same paths then wait
    for each other instead of each holding what the other wants.

    Args:
        db: in a transaction.
        names: of the gallery.
        rows: what to add.
        vectors: (N, D) float16 as they are stored.
        metadata: of each row.
    """
    order = sorted(range(len(rows)), key=lambda place: rows[place].path.encode())
    paths = [rows[place].path for place in order]
    db.execute(names("SELECT FROM {s}.images WHERE path = ANY(%s::text[]) ORDER BY path FOR UPDATE"), (paths,))
    db.execute(names("DELETE FROM {s}.images WHERE path = ANY(%s::text[])"), (paths,))
    db.execute(names("DELETE FROM {s}.rejected WHERE path = ANY(%s::text[])"), (paths,))
    given = "SELECT nextval(pg_get_serial_sequence(%s, 'id')) FROM generate_series(1, %s)"
    ids = sorted(id for (id,) in db.execute(given, (names.table("images"), len(rows))))
    halves = [Half(vector) for vector in vectors]
    sums = [checksum(id, vector.astype("<f2").tobytes()) for id, vector in zip(ids, vectors, strict=True)]
    with (
        db.cursor() as cursor,
        cursor.copy(names(f"COPY {{s}}.images ({IMAGES}) FROM STDIN (FORMAT binary)")) as copy,
    ):
        copy.set_types(TYPES)
        for place in order:
            row = rows[place]
            look = row.dhash - WRAP if row.dhash >= WRAP // 2 else row.dhash
            copy.write_row(
                (
                    ids[place],
                    row.path,
                    row.digest,
                    row.size,
                    row.modified,
                    row.label,
                    metadata[place],
                    look,
                    halves[place],
                    sums[place],
                )
            )
    with (
        db.cursor() as cursor,
        cursor.copy(names("COPY {s}.thumbnails (id, jpeg, checksum) FROM STDIN (FORMAT binary)")) as copy,
    ):
        copy.set_types(["int8", "bytea", "int8"])
        for id, row in zip(ids, rows, strict=True):
            if row.thumbnail:
                copy.write_row((id, row.thumbnail, checksum(id, row.thumbnail)))
    return ids
