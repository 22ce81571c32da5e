"""The store of a gallery in a PostgreSQL server with pgvector: for many machines, replicas and backups.

A gallery is one schema (`postgres_schema.py`). Vectors are `halfvec`, float16. The server keeps an HNSW index over them
up to date. If at most `EXACT_BELOW` items pass the filter, a search compares the query with all of them.

Writers need not know of each other. If two add the same path at once, the later item stays. An id is assigned before
the item can be seen: one writer may show id 8 before another shows id 7.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from lookalike.gallery.store import postgres_maintenance, postgres_rows, postgres_schema
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
from lookalike.gallery.store.common import EXACT_BELOW, BaseStore, Result, valid_ids
from lookalike.gallery.store.postgres_connection import READ, Connection, Link
from lookalike.gallery.store.postgres_reembed import PostgresReembedding
from lookalike.gallery.store.postgres_rows import PostgresReader, jsonb
from lookalike.gallery.store.postgres_search import PostgresSearcher


class PostgresStore(BaseStore[PostgresReader]):
    """A gallery in a PostgreSQL database; see `Store`. Threads take turns on its one connection.

    Args:
        dsn: of the database, `postgresql://USER@HOST:PORT/DATABASE` or `key=value` words. Missing values come from the
            environment and files that PostgreSQL's own programs read (PGPASSWORD, PGSERVICE, ~/.pgpass).
        name: of the gallery.
        write: open for changes. Any number of stores may do so.
        exact_below: number of items up to which a search is exact.

    Raises:
        InputError: psycopg is not installed, the server cannot be used, it has no pgvector 0.8, there is no such
            gallery, it has a newer format, or this role may not read it.
    """

    def __init__(self, dsn: str, name: str, *, write: bool = False, exact_below: int = EXACT_BELOW) -> None:
        self._name = postgres_schema.checked_name(name)
        self._link = Link(dsn, name, write=write)
        try:
            self.about = postgres_schema.read_about(self._link, name)
            self._names = postgres_schema.names_of(self._link, name)
        except BaseException:
            self._link.close()
            raise
        self._exact_below = exact_below
        indexed = postgres_schema.VECTOR_INDEX in postgres_schema.indexes_of(self.about.dim)
        self._searcher = PostgresSearcher(self._names, exact_below, indexed)

    @classmethod
    def create(cls, dsn: str, name: str, about: GalleryInfo, *, exact_below: int = EXACT_BELOW) -> PostgresStore:
        """Create an empty gallery and open it for writing. An interrupted call leaves nothing.

        Raises:
            InputError: as for the class; the name is taken; this role may not create a schema; the vectors have more
                than 16,000 numbers. (Vectors of more than 4,000 numbers are not indexed: searches are exact.)
        """
        link = Link(dsn, postgres_schema.checked_name(name), write=True)
        try:
            postgres_schema.create(link, name, about)
        finally:
            link.close()
        return cls(dsn, name, write=True, exact_below=exact_below)

    @classmethod
    def open(cls, dsn: str, name: str, write: bool = False, *, exact_below: int = EXACT_BELOW) -> PostgresStore:
        """Open an existing gallery; see the class."""
        return cls(dsn, name, write=write, exact_below=exact_below)

    def close(self) -> None:
        """Close the connection."""
        self._link.close()

    # Reading

    def rows(self, after: int = 0, filter: Filter | None = None) -> Iterator[GalleryItem]:
        """Yield the items with an id above `after` that pass a filter, by id, all as of one moment."""
        with self.snapshot() as reader:
            yield from reader.rows(after, filter)

    @contextmanager
    def snapshot(self) -> Iterator[PostgresReader]:
        """Read everything as of this moment, through a connection of its own; see `Store.snapshot`."""
        with closing(self._link.connect()) as db, self._link.plain_errors():
            self._link.begin(db, READ)
            yield self._reader(db)

    def _reader(self, db: Connection) -> PostgresReader:
        return PostgresReader(db, self._names, self.about, self._link.location)

    def _read(self, work: Callable[[PostgresReader], Result]) -> Result:
        return self._link.reading(lambda db: work(self._reader(db)))

    def _nearest(
        self, queries: NDArray[np.float32], k: int, filter: Filter | None, *, exact: bool
    ) -> list[SearchResult]:
        def work(db: Connection) -> list[SearchResult]:
            all_of_them = exact or not self._searcher.approximates(db, filter)
            return self._searcher.search(db, queries, k, filter, exact=all_of_them)

        return self._link.reading(work, "" if exact else self._searcher.settings(k))

    def measure_recall(self, k: int = 10, sample: int = 200, seed: int = 0) -> float:
        """Return recall@k of the approximate search; see `Store.measure_recall`. An item is not its own hit."""
        return self._link.reading(lambda db: self._searcher.recall(db, k, sample, seed), self._searcher.settings(k + 1))

    def facts(self) -> dict[str, str | int | float]:
        """Return facts about the store itself; see `Store.facts`."""
        return postgres_maintenance.facts(self._link, self._names, self._searcher)

    # Writing

    def _insert(self, items: Sequence[NewItem], vectors: NDArray[np.float16]) -> list[int]:
        metadata = [jsonb(item.metadata) for item in items]
        return self._link.writing(
            lambda db: postgres_rows.insert(db, self._names, items, vectors, metadata) if items else []
        )

    def remove(self, ids: Sequence[int]) -> int:
        """Remove items and return how many existed."""
        query = self._names("DELETE FROM {s}.images WHERE id = ANY(%s::bigint[])")
        return self._link.writing(lambda db: db.execute(query, (valid_ids(ids),)).rowcount)

    def update(self, ids: Sequence[int], label: str | None = None, metadata: Mapping[str, Value] | None = None) -> int:
        """Set the label or the metadata of items, if not None, and return how many exist."""
        return self._link.writing(lambda db: postgres_rows.update(db, self._names, ids, label, metadata))

    def calibrated(self, about: GalleryInfo) -> None:
        """Store the threshold of a calibration; see `Store.calibrated`."""
        query = self._names("UPDATE {s}.gallery SET about = %s::json")
        self._link.writing(lambda db: db.execute(query, (json.dumps(asdict(about)),)).rowcount)
        self.about = about

    @contextmanager
    def reembedding(self, about: GalleryInfo) -> Iterator[PostgresReembedding]:
        """Prepare to replace the vectors by those of another model; see `Store.reembedding`. Only the owner may."""
        self._link.check_writes()
        with closing(self._link.connect()) as lock, self._link.plain_errors():
            self._link.begin(lock, "BEGIN")
            lock.execute("COMMIT")
            with postgres_maintenance.alone(self._link, self._names, lock):
                yield PostgresReembedding(self._link, self._names, self.about, about, lock, self._begin_again)

    def _begin_again(self) -> None:
        """Read what the gallery is made with now: its vectors have become those of another model."""
        self.about = postgres_schema.read_about(self._link, self._name)
        indexed = postgres_schema.VECTOR_INDEX in postgres_schema.indexes_of(self.about.dim)
        self._searcher = PostgresSearcher(self._names, self._exact_below, indexed)

    def reject(self, files: Sequence[FailedFile]) -> None:
        """Record files that could not be added, one record for each path."""
        self._link.writing(lambda db: postgres_rows.reject(db, self._names, files))

    def forget(self, paths: Sequence[str]) -> None:
        """Delete the records of files that could not be added."""
        self._link.writing(lambda db: postgres_rows.forget(db, self._names, paths))

    def compact(self, *, discard_reembed: bool = False) -> None:
        """Make the index again and free the space of removed items, while others continue. Only the owner may."""
        postgres_maintenance.compact(self._link, self._names, self.about.dim, discard_reembed=discard_reembed)

    def check(self) -> list[Problem]:
        """Check every vector, thumbnail and index."""
        return postgres_maintenance.check(self._link, self._names, self.about.dim, self._searcher)
