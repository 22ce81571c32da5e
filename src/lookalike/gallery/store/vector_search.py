"""Searches of a gallery in a folder: the vectors in memory, kept in sync with the database.

Positions number the vectors in memory: first those of the index files, then the tail, the vectors of newer items. Ids
ascend with the positions. All scores are computed in float64 from the stored vectors, whatever found the items, so
exact and approximate searches give equal scores.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numkong
import numpy as np
from numpy.typing import NDArray

from lookalike.gallery.store.base import Filter
from lookalike.gallery.store.common import TIE, cosines
from lookalike.gallery.store.index_files import IndexedVectors, generation_of, open_index
from lookalike.gallery.store.sqlite_rows import chunks, clause, marks, vectors_after
from lookalike.gallery.store.sqlite_schema import Meta, damaged, file_of, read_meta

MARGIN = 2e-3  # upper bound of the error of a scalar product in float16
CANDIDATES_PER_HIT = 4  # that the graph is asked for
MIN_CANDIDATES = 40
MAX_CANDIDATES = 4096  # above, comparing with all vectors is as fast
MAX_PILOTS = 4096  # evenly spread vectors of the index files that each query is compared with
MIN_STRIDE = 16  # positions from one pilot to the next
SCORED_AT_A_TIME = 1024  # vectors in float64
MIN_GROWTH = 1024  # positions added to the tail at a time
MAX_EXACT_FILTERED = 10_000  # items that pass a filter, up to which the query is compared with all of them
MAX_CACHED_FILTERS = 32  # whose items are kept until the gallery changes

Positions = NDArray[np.int64]
Ranked = tuple[NDArray[np.int64], NDArray[np.float32]]  # ids and scores, best first
Passes = Callable[[NDArray[np.int64]], NDArray[np.bool_]]  # which of these ids pass the filter
Condition = tuple[str, tuple[str | None, ...]]  # SQL with its parameters
Answer = tuple[NDArray[np.int64], NDArray[np.float32], bool]  # ids, scores, and whether the search was exact


class VectorIndex:
    """Searches the vectors of a gallery. Call `refresh` first in every transaction.

    Args:
        folder: of the gallery.
        dim: numbers of a vector.
    """

    def __init__(self, folder: Path, dim: int) -> None:
        self._folder, self._dim = folder, dim
        self._view: VectorView | None = None
        self._changes, self._generation = -1, ""
        self._filtered: dict[Condition, Positions] = {}

    @property
    def view(self) -> VectorView:
        """The vectors in memory."""
        assert self._view is not None, "refresh comes first"
        return self._view

    def release(self) -> None:
        """Free the memory."""
        self._view = None

    def refresh(self, db: sqlite3.Connection) -> int:
        """Apply the changes since the last call and return the number of items. May begin the transaction again.

        Raises:
            InputError: a vector in the database is damaged.
        """
        meta = read_meta(db)
        if self._view is not None and (meta.changes, meta.generation) == (self._changes, self._generation):
            return meta.rows
        self._filtered.clear()
        if self._view is None or meta.generation != self._generation:
            self._view = None
            meta = self._load(db, meta)
        else:
            view, self._view = self._view, None  # after an error the next call loads everything
            removed = db.execute("SELECT id FROM removed WHERE change > ?", (self._changes,)).fetchall()
            self._apply(db, view, removed, meta.rows)
        self._changes, self._generation = meta.changes, meta.generation
        return meta.rows

    def search(
        self, db: sqlite3.Connection, queries: NDArray[np.float32], k: int, filter: Filter | None, *, exact: bool
    ) -> list[Answer]:
        """Return the k nearest items of each query, (Q, D) float32 of length 1."""
        view = self.view
        among: Positions | None = None
        passes: Passes | None = None
        if filter:
            sql, parameters = clause(filter)
            condition: Condition = (sql, tuple(parameters))
            among = self._passing(db, condition, None if exact else MAX_EXACT_FILTERED)
            passes = _asking(db, condition) if among is None else None
        answers: list[Answer] = []
        for query in queries:
            ranked = None if exact or among is not None else view.approximate(query, k, passes)
            if ranked is None and passes is not None and among is None:
                among = self._passing(db, condition, None)
            ids, scores = ranked or view.exact(query, k, among)
            answers.append((ids, scores, ranked is None))
        return answers

    def recall(self, k: int, sample: int, random: np.random.Generator) -> float:
        """Return the mean share of the exact hits among the approximate ones, for a sample of items as queries."""
        view = self.view
        living = np.flatnonzero(view.alive)
        chosen = random.choice(living, min(sample, len(living)), replace=False)
        shares = []
        for position in np.sort(chosen):
            query = view.vector(int(position))
            own = view.ids[position]
            expected = _scores_without(own, view.exact(query, k + 1))[:k]
            approximate = view.approximate(query, k + 1)
            if approximate is None:
                return 1.0
            found = _scores_without(own, approximate)[:k]
            shares.append((found >= expected[-1] - TIE).sum() / len(expected))
        return float(np.mean(shares))

    def _load(self, db: sqlite3.Connection, meta: Meta) -> Meta:
        """Load all vectors; return the row of `meta` that they belong to."""
        indexed, faults = open_index(self._folder, generation_of(meta.generation, file_of(db)), self._dim)
        if faults:  # damaged, or replaced while they were opened: the newest state of the database tells
            db.execute("COMMIT")
            db.execute("BEGIN")
            newer = read_meta(db)
            if newer.generation != meta.generation:
                return self._load(db, newer)
            meta = newer
        view = VectorView(indexed, self._dim)
        self._apply(db, view, db.execute("SELECT id FROM removed").fetchall(), meta.rows)
        return meta

    def _apply(self, db: sqlite3.Connection, view: VectorView, removed: list[tuple[Any]], rows: int) -> None:
        """Take removed items out of a view and append newer ones."""
        if any(type(id) is not int for (id,) in removed):
            raise damaged(file_of(db), "its table 'removed' is damaged")
        view.remove(np.array([id for (id,) in removed], np.int64))
        for ids, vectors in vectors_after(db, self._dim, view.last):
            view.append(ids, vectors)
        if view.living != rows:
            raise damaged(file_of(db), f"it has {view.living:,} vectors for {rows:,} items")
        self._view = view

    def _passing(self, db: sqlite3.Connection, condition: Condition, most: int | None) -> Positions | None:
        """Return the positions of the items that pass a filter; None if they are more than `most`."""
        if condition in self._filtered:
            return self._filtered[condition]
        sql, parameters = condition
        limit = -1 if most is None else most + 1
        found = db.execute(f"SELECT id FROM images WHERE {sql} LIMIT ?", (*parameters, limit)).fetchall()
        if most is not None and len(found) > most:
            return None
        positions = self.view.positions(np.array([id for (id,) in found], np.int64))
        if len(self._filtered) >= MAX_CACHED_FILTERS:
            self._filtered.pop(next(iter(self._filtered)))
        self._filtered[condition] = positions
        return positions


def _asking(db: sqlite3.Connection, condition: Condition) -> Passes:
    """Return a function that asks the database which of some ids pass."""
    sql, parameters = condition

    def passes(ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        good: list[int] = []
        for some in chunks(ids.tolist()):
            query = f"SELECT id FROM images WHERE id IN ({marks(some)}) AND {sql}"
            good += [id for (id,) in db.execute(query, (*some, *parameters))]
        return np.isin(ids, good)

    return passes


def _scores_without(own: np.int64, ranked: Ranked) -> NDArray[np.float32]:
    """Return the scores of all items but one."""
    ids, scores = ranked
    others: NDArray[np.float32] = scores[ids != own]
    return others


class VectorView:
    """The vectors of a gallery as of one change.

    Args:
        indexed: the contents of the index files.
        dim: numbers of a vector.
    """

    def __init__(self, indexed: IndexedVectors, dim: int) -> None:
        self.matrix, self.graph = indexed.matrix, indexed.graph
        self._ids, self._count = indexed.ids.copy(), len(indexed.ids)
        self._alive = np.ones(self._count, np.bool_)
        self._tail = np.empty((0, dim), np.float16)
        self._stride = max(-(-self.covered // MAX_PILOTS), MIN_STRIDE)
        self._pilots = np.ascontiguousarray(self.matrix[:: self._stride])
        self.dead = 0

    @property
    def covered(self) -> int:
        """Vectors in the index files."""
        return len(self.matrix)

    @property
    def ids(self) -> NDArray[np.int64]:
        """(N,) int64 by position, including removed items."""
        return self._ids[: self._count]

    @property
    def alive(self) -> NDArray[np.bool_]:
        """(N,) bool by position: False for removed items."""
        return self._alive[: self._count]

    @property
    def living(self) -> int:
        return self._count - self.dead

    @property
    def last(self) -> int:
        """The greatest id; 0 if there is none."""
        return int(self._ids[self._count - 1]) if self._count else 0

    def append(self, ids: NDArray[np.int64], vectors: NDArray[np.float16]) -> None:
        """Append newer items. Ids ascend and are above `last`."""
        end = self._count + len(ids)
        if end > len(self._ids):
            room = max(end - len(self._ids), len(self._tail) // 2, MIN_GROWTH)
            self._ids = np.concatenate([self._ids, np.empty(room, np.int64)])
            self._alive = np.concatenate([self._alive, np.ones(room, np.bool_)])
            self._tail = np.concatenate([self._tail, np.empty((room, self._tail.shape[1]), np.float16)])
        self._ids[self._count : end] = ids
        self._tail[self._count - self.covered : end - self.covered] = vectors
        self._count = end

    def remove(self, ids: NDArray[np.int64]) -> None:
        """Mark items as removed; other ids are ignored."""
        positions = self.positions(ids)
        positions = positions[self.alive[positions]]
        self.alive[positions] = False
        self.dead += len(positions)

    def positions(self, ids: NDArray[np.int64]) -> Positions:
        """Return the positions of those ids that are here, removed or not, in ascending order."""
        wanted = np.unique(ids)
        places = np.searchsorted(self.ids, wanted)
        inside = places < self._count
        places, wanted = places[inside], wanted[inside]
        found: Positions = places[self.ids[places] == wanted]
        return found

    def vector(self, position: int) -> NDArray[np.float32]:
        """Return the vector at a position, (D,) float32."""
        vector: NDArray[np.float32] = self._vectors(np.array([position]))[0].astype(np.float32)
        return vector

    def exact(self, query: NDArray[np.float32], k: int, among: Positions | None = None) -> Ranked:
        """Return the k nearest items, of all or of those at the positions `among`, by comparing with each of them."""
        if among is None:
            short = self._shortlist(query, k, 0, self._count)
        else:
            among = among[self.alive[among]]
            short = among[_best(_products(query, self._vectors(among)), k)] if len(among) > k else among
        return self._ranked(query, k, short)

    def approximate(self, query: NDArray[np.float32], k: int, passes: Passes | None = None) -> Ranked | None:
        """Return about the k nearest items; None if only an exact search can tell.

        Args:
            query: (D,) float32.
            k: hits.
            passes: which of some ids pass the filter.
        """
        if self.graph is None:
            return None
        products = _products(query, self._pilots)
        count = max(CANDIDATES_PER_HIT * k, MIN_CANDIDATES)
        while count <= min(MAX_CANDIDATES, self.covered // 2):
            found = self._that_pass(self.graph.nearest(query, count), passes)
            if len(found) >= 2 * k or (passes is None and self.dead == 0):
                ranked = self._ranked(query, k, np.concatenate([found, self._newer(query, k, passes)]))
                if self._nothing_missed(products, ranked, found, passes):
                    return ranked
            count *= 4
        return None

    def _nothing_missed(
        self, products: NDArray[np.float64], ranked: Ranked, found: Positions, passes: Passes | None
    ) -> bool:
        """Return whether the graph found all pilots that belong among the hits.

        If items lie in tight groups, a search of the graph may end in a wrong group: one query in a hundred at 100,000
        items. A pilot of the right group that is missing among the candidates reveals this.
        """
        scores = ranked[1]
        better = np.flatnonzero(products > (scores[-1] if len(scores) else -1) + MARGIN) * self._stride
        return not len(better) or set(self._that_pass(better, passes).tolist()) <= set(found.tolist())

    def _that_pass(self, positions: Positions, passes: Passes | None) -> Positions:
        living = positions[self.alive[positions]] if self.dead else positions
        return living[passes(self.ids[living])] if passes is not None and len(living) else living

    def _newer(self, query: NDArray[np.float32], k: int, passes: Passes | None) -> Positions:
        """Return the positions of the tail that may be among the k nearest."""
        if passes is None:
            return self._shortlist(query, k, self.covered, self._count)
        tail = self._that_pass(np.arange(self.covered, self._count), passes)
        return tail[_best(_products(query, self._vectors(tail)), k)]

    def _shortlist(self, query: NDArray[np.float32], k: int, start: int, end: int) -> Positions:
        """Return the positions from `start` to `end` that may be among the k nearest."""
        found = []
        bounds = sorted({start, min(max(self.covered, start), end), end})
        for first, last in pairwise(bounds):
            products = _products(query, self._slice(first, last))
            if self.dead:
                products[~self.alive[first:last]] = -np.inf
            best = _best(products, k)
            found.append(best[products[best] > -np.inf] + first)
        return np.concatenate(found) if found else np.empty(0, np.int64)

    def _slice(self, first: int, last: int) -> NDArray[np.float16]:
        """Return the vectors of positions that all lie in the index files or all in the tail, without a copy."""
        if last <= self.covered:
            return self.matrix[first:last]
        return self._tail[first - self.covered : last - self.covered]

    def _vectors(self, positions: Positions) -> NDArray[np.float16]:
        """Return a copy of the vectors at some positions, (len(positions), D) float16."""
        old = positions < self.covered
        if old.all():
            return self.matrix[positions]
        vectors = np.empty((len(positions), self._tail.shape[1]), np.float16)
        vectors[old] = self.matrix[positions[old]]
        vectors[~old] = self._tail[positions[~old] - self.covered]
        return vectors

    def _ranked(self, query: NDArray[np.float32], k: int, positions: Positions) -> Ranked:
        """Return the k nearest of a short list by their cosines; equal ones by id."""
        scores = np.empty(len(positions), np.float32)
        for start in range(0, len(positions), SCORED_AT_A_TIME):  # many if many items are alike
            part = slice(start, start + SCORED_AT_A_TIME)
            scores[part] = cosines(query, self._vectors(positions[part]).astype(np.float64))
        order = np.lexsort((positions, -scores))[:k]
        return self.ids[positions[order]], scores[order]


def _products(query: NDArray[np.float32], vectors: NDArray[np.float16]) -> NDArray[np.float64]:
    """Return (N,) float64: scalar products in float16 arithmetic."""
    if not len(vectors):
        return np.empty(0, np.float64)
    return np.asarray(numkong.cdist(query[None].astype(np.float16), vectors, "inner")).reshape(-1)


def _best(products: NDArray[np.float64], k: int) -> Positions:
    """Return the places of all products that may be among the k greatest, given their error; in no order."""
    if len(products) <= k:
        return np.arange(len(products))
    least = np.partition(products, len(products) - k)[len(products) - k]
    return np.flatnonzero(products >= least - MARGIN)
