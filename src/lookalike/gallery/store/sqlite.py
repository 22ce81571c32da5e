"""The store of a gallery in a folder: a SQLite database, and index files made from it for fast searches.

    NAME.gallery/gallery.db                         items, vectors, thumbnails, failed files (`sqlite_schema.py`)
                 vectors-*.f16, graph-*.usearch     index files, made again if missing or damaged (`index_files.py`)
                 index.lock                         locked by the process that renews the index files

With at most `EXACT_BELOW` items each search compares the query with all of them, and there are no index files. With
more items, the graph finds most of the hits, and the items newer than the graph are compared one by one. The checksums
of index files are checked when a process first searches. Damaged files are not used: searches are exact until a writer
has made the files again in `add`, `close`, `compact` or `check`. The checksum of a vector is checked each time it is
read from the database.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import InputError
from lookalike.files import atomic_folder
from lookalike.gallery.store import sqlite_check, sqlite_rows
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
from lookalike.gallery.store.common import EXACT_BELOW, BaseStore, Result, passes, unit_halves, valid_ids
from lookalike.gallery.store.index_files import Generation, read_generation
from lookalike.gallery.store.index_maintenance import IndexMaintenance
from lookalike.gallery.store.sqlite_rows import SqliteReader
from lookalike.gallery.store.sqlite_schema import (
    DATABASE,
    Connection,
    check_is_there,
    close,
    connect,
    damaged,
    frozen_state,
    identity_of,
    is_there,
    make_tables,
    open_guard,
    plain_errors,
    read_about,
)
from lookalike.gallery.store.staged_vectors import StagedVectors, discard_staged, open_staged, remove_staged
from lookalike.gallery.store.vector_search import VectorIndex


class _IncompleteError(InputError):
    """An item has no new vector: the transaction that replaces the vectors is undone."""


class SqliteStore(BaseStore[SqliteReader]):
    """A gallery in a folder; see `Store`. Threads take turns.

    Args:
        folder: of the gallery.
        write: open for changes. Any number of stores, also of several processes, may do so.
        exact_below: number of items up to which every search is exact.

    Raises:
        InputError: there is no gallery, it is damaged or of a newer format, or the folder cannot be written.
    """

    def __init__(self, folder: str | Path, *, write: bool = False, exact_below: int = EXACT_BELOW) -> None:
        self.folder = Path(folder)
        self._database = self.folder / DATABASE
        self._exact_below = exact_below
        self._mutex = threading.RLock()
        self._guard: Connection | None = None
        check_is_there(self._database)
        self._identity = identity_of(self._database)
        self._db = connect(self._database, write=write)
        try:
            if write:
                self._guard = open_guard(self._database)
            self.about = read_about(self._db, self._database)
            self._about_text: str | None = None  # of the database, as it was last compared with `about`
            self._check_identity()
            self._index = VectorIndex(self.folder, self.about.dim)
            self._maintenance: IndexMaintenance | None = None
            if write:
                with plain_errors(self._database):
                    self._maintenance = IndexMaintenance(
                        self.folder, self._db, self.about.dim, exact_below, self._check_same
                    )
        except BaseException:
            close(self._db, self._guard, self._database, self._identity)
            raise
        self._finalizer = weakref.finalize(self, close, self._db, self._guard, self._database, self._identity)

    @classmethod
    def create(cls, path: str | Path, about: GalleryInfo, *, exact_below: int = EXACT_BELOW) -> SqliteStore:
        """Create an empty gallery and open it for writing. An interrupted call leaves nothing.

        Raises:
            InputError: there is something of this name, or the folder cannot be made.
        """
        path = Path(path)
        if about.dim < 1:
            raise InputError(f"{path}: a gallery cannot store vectors of {about.dim} numbers.", "Use another model.")
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise InputError(f"{path}: already exists.", "Choose another name, or remove it.")
        with atomic_folder(path, durable=True) as beside:
            make_tables(beside / DATABASE, about, Generation().to_json())
        return cls(path, write=True, exact_below=exact_below)

    @classmethod
    def open(cls, path: str | Path, write: bool = False, *, exact_below: int = EXACT_BELOW) -> SqliteStore:
        """Open an existing gallery; see the class."""
        return cls(path, write=write, exact_below=exact_below)

    def __exit__(self, *exc: object) -> None:
        self._close(tidy=exc[0] is None)

    def close(self) -> None:
        """Close the store. A writer renews the index files if that makes searches faster."""
        self._close(tidy=True)

    def _close(self, *, tidy: bool) -> None:
        with self._mutex:
            try:
                if self._maintenance is not None and tidy and is_there(self._database, self._identity):
                    with plain_errors(self._database), suppress(ReplacedError):
                        self._check_model(self._db)
                        self._maintenance.on_close()
            finally:
                self._maintenance = None
                self._index.release()
                close(self._db, self._guard, self._database, self._identity)
                self._finalizer.detach()

    # Reading

    def rows(self, after: int = 0, filter: Filter | None = None) -> Iterator[GalleryItem]:
        """Yield the items with an id above `after` that pass a filter, by id, all as of one moment."""
        with self.snapshot() as reader:
            yield from reader.rows(after, filter)

    @contextmanager
    def snapshot(self) -> Iterator[SqliteReader]:
        """Read everything as of this moment, through a connection of its own; see `Store.snapshot`."""
        with plain_errors(self._database):
            self._check_identity()
            db = connect(self._database, write=False)
            try:
                self._check_identity()
                db.execute("BEGIN")
                self._check_model(db)  # the first read sets the moment
                yield SqliteReader(db, self.about, self._database)
            finally:
                db.close()

    def _read(self, work: Callable[[SqliteReader], Result]) -> Result:
        with self._reading() as reader:
            return work(reader)

    def _nearest(
        self, queries: NDArray[np.float32], k: int, filter: Filter | None, *, exact: bool
    ) -> list[SearchResult]:
        with self._reading() as reader:
            count = self._index.refresh(reader.db)
            exact = exact or count <= self._exact_below
            answers = self._index.search(reader.db, queries, k, filter, exact=exact)
            items = reader.items({id for ids, _, _ in answers for id in ids.tolist()})
        for id in {id for ids, _, _ in answers for id in ids.tolist()}:
            if id not in items or not passes(items[id], filter):
                raise damaged(self._database, f"its tables and indexes differ on item {id}")
        return [
            SearchResult(
                [Hit.of(items[id], score) for id, score in zip(ids.tolist(), scores.tolist(), strict=True)],
                was_exact,
            )
            for ids, scores, was_exact in answers
        ]

    def measure_recall(self, k: int = 10, sample: int = 200, seed: int = 0) -> float:
        """Return recall@k of the approximate search; see `Store.measure_recall`. An item is not its own hit."""
        with self._reading() as reader:
            if self._index.refresh(reader.db) <= self._exact_below:
                return 1.0
            return self._index.recall(k, sample, np.random.default_rng(seed))

    def facts(self) -> dict[str, str | int | float]:
        """Return facts about the store itself; see `Store.facts`."""
        with self._reading() as reader:
            generation = read_generation(reader.db)
            query = "SELECT count(*) FROM removed WHERE id <= ?"
            (removed,) = reader.db.execute(query, (generation.highest,)).fetchone()
            rows = len(reader)
        return {
            "kind": "SQLite",
            "location": str(self.folder),
            "rows": rows,
            "bytes": _bytes_of(self.folder),
            "covered by the approximate index": (
                generation.positions - removed if generation.graph_name in generation.files else 0
            ),
            "exact up to": self._exact_below,
        }

    # Writing

    def _insert(self, items: Sequence[NewItem], vectors: NDArray[np.float16]) -> list[int]:
        with self._writing() as db:
            ids = sqlite_rows.insert(db, items, vectors) if items else []
        if self._maintenance is not None:
            with self._mutex, plain_errors(self._database):
                self._check_identity()
                self._maintenance.after_add()
        return ids

    def remove(self, ids: Sequence[int]) -> int:
        """Remove items and return how many existed."""
        with self._writing() as db:
            return sqlite_rows.delete(db, set(valid_ids(ids)))

    def update(self, ids: Sequence[int], label: str | None = None, metadata: Mapping[str, Value] | None = None) -> int:
        """Set the label or the metadata of items, if not None, and return how many exist."""
        with self._writing() as db:
            return sqlite_rows.update(db, set(valid_ids(ids)), label, metadata)

    def calibrated(self, about: GalleryInfo) -> None:
        """Store the threshold of a calibration; see `Store.calibrated`."""
        with self._writing() as db:
            db.execute("UPDATE meta SET about = ?", (json.dumps(asdict(about)),))
        self.about = about

    @contextmanager
    def reembedding(self, about: GalleryInfo) -> Iterator[_Reembedding]:
        """Prepare to replace the vectors by those of another model; see `Store.reembedding`."""
        self._check_writes()
        with open_staged(self.folder, about) as staged:
            yield _Reembedding(about, staged, partial(self._switch, about, staged))

    def _switch(self, about: GalleryInfo, staged: StagedVectors, lost: Mapping[int, FailedFile]) -> bool:
        """Replace the vectors in one transaction, while no process renews the index files; see `Reembedding`."""
        maintenance = self._check_writes()
        kept = set(staged.ids().tolist())
        with self._mutex, plain_errors(self._database), maintenance.held():
            try:
                with self._writing() as db:
                    there = sqlite_rows.all_ids(db)
                    if not there <= kept | lost.keys():  # before anything is rewritten
                        raise _IncompleteError("there are items without a new vector.")
                    sqlite_rows.delete(db, set(valid_ids(lost)))
                    sqlite_rows.reject(db, [file for id, file in lost.items() if id in there])
                    if sqlite_rows.replace_vectors(db, staged.vectors()):
                        raise _IncompleteError("there are items without a new vector.")
                    text = json.dumps(asdict(about))
                    db.execute("UPDATE meta SET about = ?, generation = ?", (text, Generation().to_json()))
                    db.execute("DELETE FROM removed")  # readers load everything again
            except _IncompleteError:
                return False
            self.about, self._about_text = about, None
            self._index = VectorIndex(self.folder, about.dim)
            remove_staged(self.folder)
        with self._mutex, plain_errors(self._database):
            self._maintenance = IndexMaintenance(self.folder, self._db, about.dim, self._exact_below, self._check_same)
            self._maintenance.after_add()
        return True

    def reject(self, files: Sequence[FailedFile]) -> None:
        """Record files that could not be added, one record for each path."""
        with self._writing() as db:
            sqlite_rows.reject(db, files)

    def forget(self, paths: Sequence[str]) -> None:
        """Delete the records of files that could not be added."""
        with self._writing() as db:
            sqlite_rows.forget(db, paths)

    def compact(self, *, discard_reembed: bool = False) -> None:
        """Free the space of removed items and make the index files again, while readers and writers continue."""
        maintenance = self._check_writes()
        with self._mutex, plain_errors(self._database):
            self._check_model(self._db)
            if discard_reembed:
                discard_staged(self.folder)
            maintenance.compact()

    def check(self) -> list[Problem]:
        """Check everything. A writer repairs what can be repaired."""
        with self._mutex, plain_errors(self._database):
            self._check_same()
            return sqlite_check.check(self._database, self._db, self.about.dim, self._maintenance)

    # Transactions

    @contextmanager
    def _reading(self) -> Iterator[SqliteReader]:
        """A transaction that sees one moment."""
        with self._mutex, plain_errors(self._database):
            self._check_identity()
            if self._db.frozen is not None and self._db.frozen != frozen_state(self._database):
                self._db.close()  # opened as a database that cannot change, and changed by another user
                self._db = connect(self._database, write=False)
            self._db.execute("BEGIN")
            try:
                self._check_model(self._db)
                yield SqliteReader(self._db, self.about, self._database)
            finally:
                if self._db.in_transaction:
                    self._db.execute("COMMIT")

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that is durable at the end of the block, or undone if the block raises."""
        self._check_writes()
        with self._mutex, plain_errors(self._database):
            self._check_identity()
            sqlite_rows.begin_change(self._db)
            try:
                self._check_model(self._db)
                yield self._db
                self._check_identity()
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # some errors have undone it already
                    self._db.execute("ROLLBACK")
                raise
            self._check_identity()  # if this fails, the change was made to the gallery that was there before

    def _check_writes(self) -> IndexMaintenance:
        if self._maintenance is None:
            raise InputError(f"{self.folder}: this gallery is open for reading.", "Open it for writing.")
        self._check_identity()
        return self._maintenance

    def _check_identity(self) -> None:
        """Raise a `ReplacedError` if the folder holds another gallery now, or none."""
        if identity_of(self._database) != self._identity:
            raise ReplacedError(f"{self.folder}: another gallery is there now.", "Open it again.")

    def _check_same(self) -> None:
        """Raise a `ReplacedError` if the folder holds another gallery, or the vectors are those of another model."""
        self._check_identity()
        self._check_model(self._db)

    def _check_model(self, db: sqlite3.Connection) -> None:
        """Raise a `ReplacedError` if the vectors have become those of another model."""
        (text,) = db.execute("SELECT about FROM meta").fetchone() or (None,)
        if text == self._about_text:
            return
        if read_about(db, self._database).fingerprint != self.about.fingerprint:
            raise ReplacedError(f"{self.folder}: its vectors are those of another model now.", "Open it again.")
        self._about_text = text


class _Reembedding:
    """See `lookalike.gallery.store.base.Reembedding`. `switch`: called with what was kept."""

    def __init__(
        self, about: GalleryInfo, staged: StagedVectors, switch: Callable[[Mapping[int, FailedFile]], bool]
    ) -> None:
        self._about, self._staged, self.switch = about, staged, switch

    def ids(self) -> NDArray[np.int64]:
        return self._staged.ids()

    def add(
        self, ids: Sequence[int], vectors: NDArray[np.float32], from_thumbnails: Sequence[bool] | None = None
    ) -> None:
        self._staged.add(np.array(ids, np.int64), unit_halves(vectors, self._about.dim), from_thumbnails)


def _bytes_of(folder: Path) -> int:
    total = 0
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # a writer replaces index files
            total += path.lstat().st_size
    return total
