"""The embedded store: a folder with a SQLite database, which is the truth, and files derived from it to search fast.

    NAME.gallery/gallery.db     rows, vectors, thumbnails, rejected files (see `schema.py`)
                 vectors-*.f16, graph-*.usearch    derived, remade when missing or damaged (see `derived.py`)
                 index.lock    held by the process that renews the derived files

Below `EXACT_BELOW` rows every search compares with all of them and nothing is derived. Above, a graph finds most of the
answer, and the rows newer than it, always few, are compared one by one. Derived files are checked byte for byte when a
process first searches; those that fail are not used: the search is exact then, from the database, until a writer's
`add`, `close`, `compact` or `verify` has made them anew. A vector's checksum is looked at whenever it is read from the
database.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import InputError
from lookalike.files import atomic_folder
from lookalike.gallery.store import sqlite_writes
from lookalike.gallery.store.ann_index import Generation, read_generation
from lookalike.gallery.store.base import (
    FailedFile,
    Filter,
    GalleryInfo,
    GalleryItem,
    Hit,
    NewItem,
    Problem,
    ReplacedError,
    SearchResult,
    Value,
)
from lookalike.gallery.store.checks import checked_queries, kept_vectors
from lookalike.gallery.store.closing import close, guard_of, is_there
from lookalike.gallery.store.index_maintenance import IndexMaintenance
from lookalike.gallery.store.sqlite_check import verify
from lookalike.gallery.store.sqlite_reading import SqliteSnapshot, all_rows, rows_of, thumbnails_of, vectors_of
from lookalike.gallery.store.sqlite_rows import ids_of
from lookalike.gallery.store.sqlite_schema import (
    DATABASE,
    Connection,
    check_is_there,
    clause,
    connect,
    damaged,
    frozen_state,
    identity_of,
    make_tables,
    passes,
    read_about,
    read_meta,
    saying,
)
from lookalike.gallery.store.vector_search import VectorSearcher

EXACT_BELOW = 10_000  # rows up to which all are compared: 1 ms at most
PAGE = 1000  # rows of an iteration in memory


class SqliteStore:
    """The rows of a gallery in a folder; see `Store`. May be used from several threads, which take turns.

    Args:
        folder: the gallery.
        write: whether to change it; any number of stores may.
        exact_below: rows up to which every search is exact.

    Raises:
        InputError: no gallery, a damaged one or one of a newer format, or a folder that cannot be written.
    """

    def __init__(self, folder: str | Path, *, write: bool = False, exact_below: int = EXACT_BELOW) -> None:
        self.folder = Path(folder)
        self._database = self.folder / DATABASE
        self._exact_below = exact_below
        self._turns = threading.RLock()
        self._guard: Connection | None = None
        check_is_there(self._database)
        self._identity = identity_of(self._database)
        self._db = connect(self._database, write=write)
        try:
            if write:
                self._guard = guard_of(self._database)
            self.about = read_about(self._db, self._database)
            self._check_place()
            self._searcher = VectorSearcher(self.folder, self.about.dim)
            with saying(self._database):
                check = self._check_place
                self._upkeep = (
                    IndexMaintenance(self.folder, self._db, self.about.dim, exact_below, check) if write else None
                )
        except BaseException:
            close(self._db, self._guard, self._database, self._identity)
            raise
        self._ending = weakref.finalize(self, close, self._db, self._guard, self._database, self._identity)

    @classmethod
    def create(cls, path: str | Path, about: GalleryInfo, *, exact_below: int = EXACT_BELOW) -> SqliteStore:
        """A new, empty gallery, opened for writing. Complete or absent.

        Raises:
            InputError: there is something of that name, or the folder cannot be made.
        """
        path = Path(path)
        if about.dim < 1:
            raise InputError(f"{path}: vectors of {about.dim} numbers cannot be kept.", "Use a model with a dimension.")
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise InputError(f"{path}: already exists.", "Choose another name, or remove it.")
        with atomic_folder(path, durable=True) as beside:
            make_tables(beside / DATABASE, about, Generation().to_json())
        return cls(path, write=True, exact_below=exact_below)

    @classmethod
    def open(cls, path: str | Path, write: bool = False, *, exact_below: int = EXACT_BELOW) -> SqliteStore:
        """A gallery that is there; see the class."""
        return cls(path, write=write, exact_below=exact_below)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._close(tidy=exc[0] is None)

    def close(self) -> None:
        """Bring the derived files up to date where that is worth it."""
        self._close(tidy=True)

    def _close(self, *, tidy: bool) -> None:
        with self._turns:
            try:
                if self._upkeep is not None and tidy and is_there(self._database, self._identity):
                    with saying(self._database):
                        self._upkeep.on_close()
            finally:
                self._upkeep = None
                self._searcher.forget()
                close(self._db, self._guard, self._database, self._identity)
                self._ending.detach()

    def __len__(self) -> int:
        with self._reading() as db:
            return read_meta(db).rows

    def add(self, rows: Sequence[NewItem]) -> list[int]:
        """Keep rows, all or none; their ids. See `Store.add`."""
        last = {row.path: row for row in rows}
        vectors = kept_vectors(list(last.values()), self.about.dim) if last else np.empty((0, self.about.dim))
        with self._writing() as db:
            ids = sqlite_writes.insert(db, list(last.values()), vectors.astype(np.float16, copy=False)) if last else []
        by_path = dict(zip(last, ids, strict=True))
        if self._upkeep is not None:
            with self._turns, saying(self._database):
                self._check_place()
                self._upkeep.after_add()
        return [by_path[row.path] for row in rows]

    def remove(self, ids: Sequence[int]) -> int:
        """Remove rows; how many there were."""
        with self._writing() as db:
            return sqlite_writes.delete(db, set(ids_of(ids)))

    def update(self, ids: Sequence[int], label: str | None = None, metadata: Mapping[str, Value] | None = None) -> int:
        """Change the label or metadata (whole) of rows, where not None; how many rows there were."""
        with self._writing() as db:
            return sqlite_writes.relabel(db, set(ids_of(ids)), label, metadata)

    def calibrated(self, about: GalleryInfo) -> None:
        """Keep what the rows' own labels say."""
        with self._writing() as db:
            db.execute("UPDATE meta SET about = ?", (json.dumps(asdict(about)),))
        self.about = about

    def get(self, ids: Sequence[int]) -> list[GalleryItem | None]:
        """Rows in the order asked for; None for ids that are not there."""
        with self._reading() as db:
            found = rows_of(db, self._database, ids)
        return [found.get(int(id)) for id in ids]

    def thumbnail(self, id: int) -> bytes | None:
        """The small JPEG of a row; None where there is no such row or no thumbnail."""
        with self._reading() as db:
            return thumbnails_of(db, [id], self._database).get(int(id))

    def vectors(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """(len(ids), D) float32, in the order asked for. See `Store.vectors`."""
        with self._reading() as db:
            return vectors_of(db, ids, self.about.dim, self._database)

    def by_path(self, paths: Sequence[str]) -> dict[str, GalleryItem]:
        """The rows of those paths that are there."""
        with self._reading() as db:
            return {
                row.path: row
                for row in rows_of(db, self._database, sqlite_writes.ids_where(db, "path", set(paths))).values()
            }

    def by_digest(self, digests: Sequence[bytes]) -> dict[bytes, GalleryItem]:
        """For those digests that are there, the row of the lowest id."""
        with self._reading() as db:
            found = rows_of(db, self._database, sqlite_writes.ids_where(db, "digest", set(digests)))
        return {found[id].digest: found[id] for id in sorted(found, reverse=True)}

    def rows(self, after: int = 0, filter: Filter | None = None) -> Iterator[GalleryItem]:
        """Rows of an id above `after`, in ascending order of id, all as of the moment of the first."""
        with saying(self._database):
            self._check_place()
            db = connect(self._database, write=False)  # its own, so that what changes meanwhile is not mixed in
            try:
                self._check_place()
                yield from all_rows(db, self._database, after, filter)
            finally:
                db.close()

    @contextmanager
    def snapshot(self) -> Iterator[SqliteSnapshot]:
        """All that is kept as of this moment, by a connection of its own. See `Store.snapshot`."""
        with saying(self._database):
            self._check_place()
            db = connect(self._database, write=False)
            try:
                self._check_place()
                db.execute("BEGIN")
                yield SqliteSnapshot(db, self.about, self._database)
            finally:
                db.close()

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
        with self._reading() as db:
            count = self._searcher.refresh(db)
            exact = exact or count <= self._exact_below
            answers = self._searcher.search(db, queries, k, filter, exact=exact)
            rows = rows_of(db, self._database, {id for ids, _, _ in answers for id in ids.tolist()})
        found = []
        for ids, scores, complete in answers:
            for id in ids.tolist():
                if id not in rows or not passes(rows[id], filter):
                    raise damaged(self._database, f"its tables and indexes differ on row {id}")
            hits = [Hit.of(rows[id], score) for id, score in zip(ids.tolist(), scores.tolist(), strict=True)]
            kept = hits if threshold is None else [hit for hit in hits if hit.score >= threshold]
            found.append(SearchResult(kept, complete))
        return found

    def count(self, filter: Filter | None = None) -> int:
        """Rows that pass."""
        if not filter:
            return len(self)
        condition, parameters = clause(filter)
        with self._reading() as db:
            return int(db.execute(f"SELECT count(*) FROM images WHERE {condition}", parameters).fetchone()[0])

    def labels(self, most: int) -> list[tuple[str, int]]:
        """The most frequent labels and their rows, at most so many; of equally frequent ones by their code points."""
        query = "SELECT label, count(*) FROM images WHERE label IS NOT NULL GROUP BY label ORDER BY 2 DESC, 1 LIMIT ?"
        with self._reading() as db:
            found = db.execute(query, (most,)).fetchall()
        if any(type(label) is not str for label, _ in found):
            raise damaged(self._database, "a label is no text")
        return found

    def reject(self, files: Sequence[FailedFile]) -> None:
        """Remember files that could not be read; one entry for each path."""
        with self._writing() as db:
            sqlite_writes.reject(db, files)

    def rejected(self) -> list[FailedFile]:
        """All of them, by path."""
        with self._reading() as db:
            found = db.execute("SELECT * FROM rejected ORDER BY path").fetchall()
        if any([type(value) for value in values] != [str, str, int, int] for values in found):
            raise damaged(self._database, "its table 'rejected' is not as it was written")
        return [FailedFile(*values) for values in found]

    def forget(self, paths: Sequence[str]) -> None:
        """Forget rejected files."""
        with self._writing() as db:
            sqlite_writes.forget(db, paths)

    def compact(self) -> None:
        """Give back the space of removed rows and make derived files anew; readers go on meanwhile."""
        upkeep = self._writer()
        with self._turns, saying(self._database):
            upkeep.compact()

    def check(self) -> list[Problem]:
        """Look at everything; an empty list: all is well. A writer mends what can be mended at once."""
        with self._turns, saying(self._database):
            self._check_place()
            return verify(self._database, self._db, self.about.dim, self._upkeep)

    def measure_recall(self, k: int = 10, sample: int = 200, seed: int = 0) -> float:
        """Recall@k of the approximate search against the exact one; see `Store.measure_recall`. A row is not counted
        among its own answers.
        """
        with self._reading() as db:
            if self._searcher.refresh(db) <= self._exact_below:
                return 1.0
            return self._searcher.recall(k, sample, np.random.default_rng(seed))

    def facts(self) -> dict[str, str | int | float]:
        """What there is to say of the store itself."""
        with self._reading() as db:
            generation = read_generation(db)
            (dead,) = db.execute("SELECT count(*) FROM removed WHERE id <= ?", (generation.highest,)).fetchone()
        covered = generation.positions - dead if generation.graph_name in generation.files else 0
        return {
            "kind": "SQLite",
            "place": str(self.folder),
            "rows": len(self),
            "bytes": _bytes(self.folder),
            "covered by the approximate index": covered,
            "exact up to": self._exact_below,
        }

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """A snapshot of the database, for as long as the block lasts."""
        with self._turns, saying(self._database):
            self._check_place()
            if self._db.frozen is not None and self._db.frozen != frozen_state(self._database):
                self._db.close()  # what nobody could write, as it seemed, another user has written
                self._db = connect(self._database, write=False)
            self._db.execute("BEGIN")
            try:
                yield self._db
            finally:
                if self._db.in_transaction:
                    self._db.execute("COMMIT")

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that is durable when the block is left, or undone when it raises."""
        self._writer()
        with self._turns, saying(self._database):
            self._check_place()
            sqlite_writes.begin_change(self._db)
            try:
                yield self._db
                self._check_place()
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # some errors have undone it already
                    self._db.execute("ROLLBACK")
                raise
            self._check_place()  # else what was kept went with a gallery that left in the meantime

    def _writer(self) -> IndexMaintenance:
        if self._upkeep is None:
            raise InputError(f"{self.folder}: this gallery is open for reading.", "Open it for writing.")
        self._check_place()
        return self._upkeep

    def _check_place(self) -> None:
        """Raise where what is in the folder now is another gallery, or none."""
        if identity_of(self._database) != self._identity:
            raise ReplacedError(f"{self.folder}: another gallery is there now.", "Open it again.")


def _bytes(folder: Path) -> int:
    total = 0
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # a writer replaces derived files
            total += path.lstat().st_size
    return total
