"""When the derived files of an embedded gallery are made anew; only for its writer.

While rows are added, the tail that is compared one by one may grow to half of what the files cover; when the writer
closes, to a fiftieth. Files grow by what is new. They are made from the start when a fifth of their rows has been
removed or when they are missing or damaged.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

from lookalike.errors import InputError
from lookalike.gallery.store.ann_index import (
    Generation,
    faults_of,
    generation_of,
    make_generation,
    quick_faults_of,
    read_generation,
    sweep,
)
from lookalike.gallery.store.base import ReplacedError
from lookalike.gallery.store.sqlite_schema import file_of, last_id, read_meta
from lookalike.gallery.store.sqlite_writes import begin_change

WHILE_ADDING = 0.5  # of the covered rows: the most that are newer
WHEN_CLOSING = 0.02
DEAD = 0.2  # of the covered rows: the most that are removed


class IndexMaintenance:
    """The derived files of one gallery, by its writer's connection.

    Args:
        folder: the gallery's.
        db: the writer's.
        dim: numbers of a vector.
        exact_below: rows up to which nothing is derived.
        check: raises a `ReplacedError` where the folder is another gallery's by now; its files are left alone.
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
        self._later = 0  # after a failure: not before the ids have come so far
        self.failure = ""
        self.mended = ""  # what was wrong with what the database said of the derived files
        said = read_meta(db).generation
        try:
            generation = generation_of(said, file_of(db))
        except InputError as error:
            self.mended = error.message
            generation = Generation()
            self._name(generation)
        sweep(folder, generation)

    def generation(self) -> Generation:
        """The derived files as the database names them."""
        return read_generation(self._db)

    def after_add(self) -> None:
        """Rows were added: see whether the tail has grown too long."""
        self._try(self._exact_below, WHILE_ADDING)

    def on_close(self) -> None:
        """The writer ends: leave the gallery fast to search."""
        self._try(self._exact_below // 10, WHEN_CLOSING)

    def renew(self, *, fresh: bool) -> None:
        """Make the derived files that cover all rows.

        Args:
            fresh: from the start, else from what is there.

        Raises:
            OSError: they cannot be written.
            InputError: a vector in the database is damaged.
        """
        self._check()
        generation = self.generation()
        fresh = fresh or not generation.positions or bool(faults_of(self._folder, generation, self._dim))
        new = Generation()
        if self._rows() > self._exact_below:
            onto = None if fresh else generation
            new = make_generation(self._folder, self._db, self._dim, onto=onto, with_graph=True)
        self._check()
        self._name(new, kept=0 if fresh else generation.highest)
        self._check()
        sweep(self._folder, new)
        self.failure = ""

    def _name(self, new: Generation, *, kept: int = 0) -> None:
        """Make the database name a generation, whose files hold removed rows up to the id `kept`."""
        begin_change(self._db)
        try:
            self._db.execute("UPDATE meta SET generation = ?", (new.to_json(),))
            # Readers load the new generation, so only what its files still hold has to be remembered.
            self._db.execute("DELETE FROM removed WHERE id > ?", (kept,))
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def compact(self) -> None:
        """Write the database without gaps, and the derived files without removed rows.

        Raises:
            InputError: no space, or a damaged vector.
        """
        self._db.execute("VACUUM")
        try:
            self.renew(fresh=True)
        except OSError as error:
            raise InputError(
                f"{self._folder}: the derived files cannot be written ({error.strerror}).",
                "Free some space and run it again; no row is lost.",
            ) from None
        self._db.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def _try(self, least: int, share: float) -> None:
        """Renew where it is due. A failure is kept for `verify`: the rows are safe, and searched exactly."""
        rows, last = self._rows(), last_id(self._db)
        if last < self._later:
            return
        generation = self.generation()
        if rows <= self._exact_below:
            if self._dead(last) > max(self._exact_below, least):
                self.renew(fresh=True)  # only to forget what was removed
            return
        broken = bool(quick_faults_of(self._folder, generation))
        stale = last - generation.highest > max(least, share * generation.positions)
        full = self._dead(generation.highest) > DEAD * generation.positions
        if not (broken or stale or full):
            return
        try:
            self.renew(fresh=broken or full)
        except ReplacedError:
            raise
        except (OSError, InputError, sqlite3.Error) as error:
            self._later = last + max(self._exact_below, 1)
            self.failure = str(error)

    def _rows(self) -> int:
        return read_meta(self._db).rows

    def _dead(self, highest: int) -> int:
        """Removed rows up to an id."""
        found = self._db.execute("SELECT count(*) FROM removed WHERE id <= ?", (highest,)).fetchone()
        return int(found[0])
