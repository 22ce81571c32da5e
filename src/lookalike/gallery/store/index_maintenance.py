"""When the index files of a gallery in a folder are renewed, and by whom.

Any number of processes may write to a gallery: SQLite lets one transaction at a time change rows. The index files are
renewed by one process at a time, which holds the lock `index.lock`. A writer that finds it locked leaves the renewal to
the process that holds it.

Rows that are newer than the index files (the tail) are compared one by one. While rows are added, the tail may grow to
half of what the files cover; when a writer closes, to a fiftieth. The files are extended by the new rows. They are made
from scratch when a fifth of their rows has been removed, or when a file is missing or damaged.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from lookalike.errors import InputError
from lookalike.gallery.store.base import ReplacedError
from lookalike.gallery.store.index_files import (
    Generation,
    faults_by_length,
    generation_of,
    make_generation,
    open_index,
    read_generation,
    sweep,
)
from lookalike.gallery.store.sqlite_rows import begin_change
from lookalike.gallery.store.sqlite_schema import file_of, last_id, read_meta

LOCK = "index.lock"
WAIT_SECONDS = 600.0  # for another process that renews the index files
MAX_TAIL = 0.5  # rows newer than the index files, as a share of the rows in them
MAX_TAIL_ON_CLOSE = 0.02
MAX_REMOVED = 0.2  # removed rows in the index files, as a share of the rows in them


class _LockedError(InputError):
    """Another process is renewing the index files."""


class IndexMaintenance:
    """Keeps the index files of one gallery up to date, through the connection of a writer.

    Args:
        folder: of the gallery.
        db: connection of the writer.
        dim: numbers of a vector.
        exact_below: galleries with at most this many rows have no index files.
        check: raises `ReplacedError` if the folder now holds another gallery, whose files must not be touched, or the
            vectors have become those of another model. They do not while the lock is held.

    Raises:
        InputError: the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        db: sqlite3.Connection,
        dim: int,
        exact_below: int,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._folder, self._db, self._dim, self._exact_below, self._check = folder, db, dim, exact_below, check
        self._lock = FileLock(folder / LOCK, thread_local=False)
        self._later = 0  # after a failure: not before the ids have come so far
        self.failure = ""  # why the index files could not be renewed
        self.mended = ""  # what was wrong with the database's record of the index files
        with suppress(_LockedError), self._locked():
            try:
                generation = generation_of(read_meta(db).generation, file_of(db))
            except InputError as error:
                self.mended = error.message
                generation = Generation()
                self._name(generation)
            sweep(folder, generation)

    def generation(self) -> Generation:
        """The index files that the database names."""
        return read_generation(self._db)

    def after_add(self) -> None:
        """Renew the index files if the rows that were added have made the tail too long."""
        self._try(self._exact_below, MAX_TAIL)

    def on_close(self) -> None:
        """Renew the index files if the tail is long enough to slow down searches."""
        self._try(self._exact_below // 10, MAX_TAIL_ON_CLOSE)

    def renew(self, *, fresh: bool) -> None:
        """Make index files that cover all rows.

        Args:
            fresh: make them from scratch instead of extending the present ones.

        Raises:
            InputError: they cannot be written, a vector in the database is damaged, or another process is renewing the
                files.
        """
        with self._locked():
            self._check()
            generation = self.generation()
            if not fresh:
                fresh = not generation.positions or bool(self._faults(generation))
            new = Generation()
            self._db.execute("BEGIN")  # one state of the rows, whatever other writers do meanwhile
            try:
                meta = read_meta(self._db)
                if meta.rows > self._exact_below:
                    onto = None if fresh else generation
                    new = make_generation(self._folder, self._db, self._dim, onto=onto)
            finally:
                if self._db.in_transaction:
                    self._db.execute("COMMIT")
            self._check()
            self._name(new, kept=0 if fresh else generation.highest, changes=meta.changes)
            self._check()
            sweep(self._folder, new)
            self.failure = ""

    def _name(self, new: Generation, *, kept: int = 0, changes: int | None = None) -> None:
        """Store the names of new index files in the database.

        Readers then load these files, so the database need not remember removed rows that the files do not hold.

        Args:
            new: the files.
            kept: the files may hold removed rows up to this id.
            changes: the files hold no other rows that were removed up to this change; None: the files hold no rows.
        """
        begin_change(self._db)
        try:
            self._db.execute("UPDATE meta SET generation = ?", (new.to_json(),))
            condition = "id > ?" if changes is None else "id > ? AND change <= ?"
            values = (kept,) if changes is None else (kept, changes)
            self._db.execute(f"DELETE FROM removed WHERE {condition}", values)
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def compact(self) -> None:
        """Write the database without gaps, and the index files without removed rows.

        Raises:
            InputError: the disk is full, a vector is damaged, or another process is renewing the index files.
        """
        with self._locked():
            self._db.execute("VACUUM")
            self.renew(fresh=True)
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def _try(self, least: int, share: float) -> None:
        """Renew the index files if that is due. A failure is kept for `check`: searches are exact until then."""
        rows, last = self._rows(), last_id(self._db)
        if last < self._later:
            return
        generation = self.generation()
        if rows <= self._exact_below:
            if self._dead(last) > max(self._exact_below, least):
                with suppress(_LockedError):
                    self.renew(fresh=True)  # only to forget what was removed
            return
        broken = bool(faults_by_length(self._folder, generation))
        stale = last - generation.highest > max(least, share * generation.positions)
        full = self._dead(generation.highest) > MAX_REMOVED * generation.positions
        if not (broken or stale or full):
            return
        try:
            self.renew(fresh=broken or full)
        except _LockedError:
            pass
        except ReplacedError:
            raise
        except (OSError, InputError, sqlite3.Error) as error:
            self._later = last + max(self._exact_below, 1)
            self.failure = str(error)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock on the index files, so that no process renews them; wait for one that does.

        Raises:
            InputError: it takes more than `WAIT_SECONDS`.
        """
        end = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                with self._locked():
                    yield
                    return
            except _LockedError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock on the index files. The operating system releases the lock of a process that was killed."""
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise _LockedError(
                f"{self._folder}: another process is renewing its index.", "Run it again when that has ended."
            ) from None
        except OSError as error:
            raise InputError(
                f"{self._folder / LOCK}: cannot be written ({error.strerror}).",
                "Change its permissions, or open the gallery for reading.",
            ) from None
        try:
            yield
        finally:
            self._lock.release()

    def _faults(self, generation: Generation) -> dict[str, str]:
        return open_index(self._folder, generation, self._dim, again=True)[1]

    def _rows(self) -> int:
        return read_meta(self._db).rows

    def _dead(self, highest: int) -> int:
        """Removed rows up to an id."""
        found = self._db.execute("SELECT count(*) FROM removed WHERE id <= ?", (highest,)).fetchone()
        return int(found[0])
