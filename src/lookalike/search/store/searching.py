"""Searches of an embedded gallery: a view in memory that keeps up with the database, which also answers filters."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookalike.search.store.base import Where
from lookalike.search.store.derived import generation_of, open_covered, stored_vectors
from lookalike.search.store.filters import clause
from lookalike.search.store.rowdata import chunks, marks
from lookalike.search.store.schema import Meta, damaged, file_of, read_meta
from lookalike.search.store.view import Passes, Positions, View

FEW = 10_000  # filtered rows up to which all of them are compared
REMEMBERED = 32  # filters whose rows are kept until the gallery changes
TIE = 1e-6  # scores that differ by less are equal

Answer = tuple[NDArray[np.int64], NDArray[np.float32], bool]  # ids and scores of one query, and whether it is exact
Filter = tuple[str, tuple[str | None, ...]]


class Searcher:
    """Answers from the view as of the database's snapshot. Call `refresh` first in every transaction.

    Args:
        folder: the gallery's.
        dim: numbers of a vector.
    """

    def __init__(self, folder: Path, dim: int) -> None:
        self._folder, self._dim = folder, dim
        self._view: View | None = None
        self._changes, self._generation = -1, ""
        self._filtered: dict[Filter, Positions] = {}

    def forget(self) -> None:
        """Let go of what is in memory."""
        self._view = None

    def refresh(self, db: sqlite3.Connection) -> int:
        """Take up what has changed; rows in the gallery. May begin the transaction anew.

        Raises:
            InputError: a vector that is needed from the database is damaged.
        """
        meta = read_meta(db)
        if self._view is not None and (meta.changes, meta.generation) == (self._changes, self._generation):
            return meta.rows
        self._filtered.clear()
        if self._view is None or meta.generation != self._generation:
            self._view = None
            meta = self._load(db, meta)
        else:
            view, self._view = self._view, None  # an error in the middle makes it be loaded anew
            gone = db.execute("SELECT id FROM removed WHERE change > ?", (self._changes,)).fetchall()
            self._take_up(db, view, gone, meta.rows)
        self._changes, self._generation = meta.changes, meta.generation
        return meta.rows

    def search(
        self, db: sqlite3.Connection, queries: NDArray[np.float32], k: int, where: Where | None, *, exact: bool
    ) -> list[Answer]:
        """Answers to queries, (Q, D) float32 of length 1."""
        view = self._current()
        among: Positions | None = None
        passes: Passes | None = None
        if where:
            condition, parameters = clause(where)
            picked: Filter = (condition, tuple(parameters))
            among = self._positions(db, picked, None if exact else FEW)
            passes = _asking(db, picked) if among is None else None
        answers: list[Answer] = []
        for query in queries:
            ranked = None if exact or among is not None else view.approximate(query, k, passes)
            if ranked is None and passes is not None and among is None:
                among = self._positions(db, picked, None)
            ids, scores = ranked or view.exact(query, k, among)
            answers.append((ids, scores, ranked is None))
        return answers

    def recall(self, k: int, sample: int, random: np.random.Generator) -> float:
        """Mean share of the exact answers that the approximate ones have, for living rows as queries."""
        view = self._current()
        living = np.flatnonzero(view.alive)
        chosen = random.choice(living, min(sample, len(living)), replace=False)
        shares = []
        for position in np.sort(chosen):
            query = view.vector(int(position))
            own = view.ids[position]
            right = _without(own, view.exact(query, k + 1))[:k]
            given = view.approximate(query, k + 1)
            if given is None:
                return 1.0
            found = _without(own, given)[:k]
            shares.append((found >= right[-1] - TIE).sum() / len(right))
        return float(np.mean(shares))

    def _current(self) -> View:
        assert self._view is not None, "refresh comes first"
        return self._view

    def _load(self, db: sqlite3.Connection, meta: Meta) -> Meta:
        """A new view; what it is of."""
        covered, faults = open_covered(self._folder, generation_of(meta.generation, file_of(db)), self._dim)
        if faults:  # damaged, or replaced while they were opened: the newest snapshot knows
            db.execute("COMMIT")
            db.execute("BEGIN")
            newer = read_meta(db)
            if newer.generation != meta.generation:
                return self._load(db, newer)
            meta = newer
        view = View(covered, self._dim)
        self._take_up(db, view, db.execute("SELECT id FROM removed").fetchall(), meta.rows)
        return meta

    def _take_up(self, db: sqlite3.Connection, view: View, gone: list[tuple[Any]], rows: int) -> None:
        if any(type(id) is not int for (id,) in gone):
            raise damaged(file_of(db), "its table 'removed' is not as it was written")
        view.drop(np.array([id for (id,) in gone], np.int64))
        for ids, vectors in stored_vectors(db, self._dim, after=view.last):
            view.append(ids, vectors)
        if view.living != rows:
            raise damaged(file_of(db), f"it has {view.living:,} vectors for {rows:,} rows")
        self._view = view

    def _positions(self, db: sqlite3.Connection, picked: Filter, most: int | None) -> Positions | None:
        """Of the rows that pass; None where they are more than `most`."""
        if picked in self._filtered:
            return self._filtered[picked]
        condition, parameters = picked
        limit = -1 if most is None else most + 1
        found = db.execute(f"SELECT id FROM images WHERE {condition} LIMIT ?", (*parameters, limit)).fetchall()
        if most is not None and len(found) > most:
            return None
        positions = self._current().positions(np.array([id for (id,) in found], np.int64))
        if len(self._filtered) >= REMEMBERED:
            self._filtered.pop(next(iter(self._filtered)))
        self._filtered[picked] = positions
        return positions


def _asking(db: sqlite3.Connection, picked: Filter) -> Passes:
    """A function that asks the database which of some ids pass."""
    condition, parameters = picked

    def passes(ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        good: list[int] = []
        for some in chunks(ids.tolist()):
            query = f"SELECT id FROM images WHERE id IN ({marks(some)}) AND {condition}"
            good += [id for (id,) in db.execute(query, (*some, *parameters))]
        return np.isin(ids, good)

    return passes


def _without(own: np.int64, ranked: tuple[NDArray[np.int64], NDArray[np.float32]]) -> NDArray[np.float32]:
    """Scores of all but one row."""
    ids, scores = ranked
    others: NDArray[np.float32] = scores[ids != own]
    return others
