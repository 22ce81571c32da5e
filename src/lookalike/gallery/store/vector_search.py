"""What a process holds in memory to search: which rows live, the covered vectors where they lie, and the newer ones.

A position is a row's place here: first those of the derived files, then the tail of rows that are newer than these. Ids
ascend with the positions. Scores that are given out are computed in float64 from the kept vectors, whatever found the
rows, so that exact and approximate search agree on them to the last digit.
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

from lookalike.gallery.store.ann_index import Covered, generation_of, open_covered, stored_vectors
from lookalike.gallery.store.base import Filter
from lookalike.gallery.store.sqlite_rows import chunks, marks
from lookalike.gallery.store.sqlite_schema import Meta, clause, damaged, file_of, read_meta

MARGIN = 2e-3  # more than two scores differ from what float16 arithmetic makes of them


SPARE = 4  # the graph is asked for so many times more than wanted


LEAST = 40  # and for so many at least


MOST = 4096  # beyond, comparing with all rows is no slower


PILOTS = 4096  # covered rows, evenly spread, that every query is compared with, at most


APART = 16  # places from one to the next, at least


BLOCK = 1024  # vectors in float64 at a time


GROWTH = 1024  # places that the tail gets at a time, at least


Positions = NDArray[np.int64]


Ranked = tuple[NDArray[np.int64], NDArray[np.float32]]  # ids and scores, the likeliest first


Passes = Callable[[NDArray[np.int64]], NDArray[np.bool_]]  # of ids: which pass the filter


class VectorView:
    """The rows of a gallery as of one change.

    Args:
        covered: what the derived files hold.
        dim: numbers of a vector.
    """

    def __init__(self, covered: Covered, dim: int) -> None:
        self.matrix, self.graph = covered.matrix, covered.graph
        self._ids, self._count = covered.ids.copy(), len(covered.ids)
        self._alive = np.ones(self._count, np.bool_)
        self._tail = np.empty((0, dim), np.float16)
        self._stride = max(-(-self.covered // PILOTS), APART)
        self._pilots = np.ascontiguousarray(self.matrix[:: self._stride])
        self.dead = 0

    @property
    def covered(self) -> int:
        return len(self.matrix)

    @property
    def ids(self) -> NDArray[np.int64]:
        """(N,) int64 by position, removed rows included."""
        return self._ids[: self._count]

    @property
    def alive(self) -> NDArray[np.bool_]:
        return self._alive[: self._count]

    @property
    def living(self) -> int:
        return self._count - self.dead

    @property
    def last(self) -> int:
        """The greatest id; 0 where there is none."""
        return int(self._ids[self._count - 1]) if self._count else 0

    def append(self, ids: NDArray[np.int64], vectors: NDArray[np.float16]) -> None:
        """Take up newer rows: ids ascending and above `last`."""
        end = self._count + len(ids)
        if end > len(self._ids):
            room = max(end - len(self._ids), len(self._tail) // 2, GROWTH)
            self._ids = np.concatenate([self._ids, np.empty(room, np.int64)])
            self._alive = np.concatenate([self._alive, np.ones(room, np.bool_)])
            self._tail = np.concatenate([self._tail, np.empty((room, self._tail.shape[1]), np.float16)])
        self._ids[self._count : end] = ids
        self._tail[self._count - self.covered : end - self.covered] = vectors
        self._count = end

    def drop(self, ids: NDArray[np.int64]) -> None:
        """Forget removed rows; ids that are not here are no error."""
        positions = self.positions(ids)
        positions = positions[self.alive[positions]]
        self.alive[positions] = False
        self.dead += len(positions)

    def positions(self, ids: NDArray[np.int64]) -> Positions:
        """Of those ids that are here, living or not, in ascending order."""
        wanted = np.unique(ids)
        places = np.searchsorted(self.ids, wanted)
        inside = places < self._count
        places, wanted = places[inside], wanted[inside]
        found: Positions = places[self.ids[places] == wanted]
        return found

    def vector(self, position: int) -> NDArray[np.float32]:
        """(D,) float32."""
        vector: NDArray[np.float32] = self._vectors(np.array([position]))[0].astype(np.float32)
        return vector

    def exact(self, query: NDArray[np.float32], k: int, among: Positions | None = None) -> Ranked:
        """The k nearest of all living rows, or of those `among` positions, by comparing with each of them."""
        if among is None:
            short = self._shortlist(query, k, 0, self._count)
        else:
            among = among[self.alive[among]]
            short = among[_best(_products(query, self._vectors(among)), k)] if len(among) > k else among
        return self._ranked(query, k, short)

    def approximate(self, query: NDArray[np.float32], k: int, passes: Passes | None = None) -> Ranked | None:
        """About the k nearest living rows, of those that pass; None where only comparing with all can say.

        Args:
            query: (D,) float32.
            k: answers.
            passes: which of some ids pass the filter.
        """
        if self.graph is None:
            return None
        products = _products(query, self._pilots)
        ask = max(SPARE * k, LEAST)
        while ask <= min(MOST, self.covered // 2):
            found = self._passing(self.graph.nearest(query, ask), passes)
            if len(found) >= 2 * k or (passes is None and self.dead == 0):
                ranked = self._ranked(query, k, np.concatenate([found, self._newer(query, k, passes)]))
                if self._nothing_missed(products, ranked, found, passes):
                    return ranked
            ask *= 4
        return None

    def _nothing_missed(
        self, products: NDArray[np.float64], ranked: Ranked, found: Positions, passes: Passes | None
    ) -> bool:
        """Whether the graph came by all the pilots that belong among the answers.

        Where rows lie in tight groups, a graph may lead to the wrong group and miss the right one altogether: one query
        in a hundred at 100,000 rows. A pilot of the right group gives that away.
        """
        scores = ranked[1]
        better = np.flatnonzero(products > (scores[-1] if len(scores) else -1) + MARGIN) * self._stride
        return not len(better) or set(self._passing(better, passes).tolist()) <= set(found.tolist())

    def _passing(self, positions: Positions, passes: Passes | None) -> Positions:
        living = positions[self.alive[positions]] if self.dead else positions
        return living[passes(self.ids[living])] if passes is not None and len(living) else living

    def _newer(self, query: NDArray[np.float32], k: int, passes: Passes | None) -> Positions:
        """Positions of the tail that may be among the k nearest."""
        if passes is None:
            return self._shortlist(query, k, self.covered, self._count)
        tail = self._passing(np.arange(self.covered, self._count), passes)
        return tail[_best(_products(query, self._vectors(tail)), k)]

    def _shortlist(self, query: NDArray[np.float32], k: int, start: int, end: int) -> Positions:
        """Positions from `start` to `end` that may be among the k nearest of the living ones there."""
        found = []
        bounds = sorted({start, min(max(self.covered, start), end), end})
        for first, last in pairwise(bounds):
            rows = self._stretch(first, last)
            products = _products(query, rows)
            if self.dead:
                products[~self.alive[first:last]] = -np.inf
            best = _best(products, k)
            found.append(best[products[best] > -np.inf] + first)
        return np.concatenate(found) if found else np.empty(0, np.int64)

    def _stretch(self, first: int, last: int) -> NDArray[np.float16]:
        """Vectors of a run of positions that lie in the files or in the tail, not copied."""
        if last <= self.covered:
            return self.matrix[first:last]
        return self._tail[first - self.covered : last - self.covered]

    def _vectors(self, positions: Positions) -> NDArray[np.float16]:
        """(len(positions), D) float16, copied."""
        old = positions < self.covered
        if old.all():
            return self.matrix[positions]
        vectors = np.empty((len(positions), self._tail.shape[1]), np.float16)
        vectors[old] = self.matrix[positions[old]]
        vectors[~old] = self._tail[positions[~old] - self.covered]
        return vectors

    def _ranked(self, query: NDArray[np.float32], k: int, positions: Positions) -> Ranked:
        """The k nearest of a short list, by their true cosines; of equal ones the lower id."""
        scores = np.empty(len(positions), np.float32)
        for start in range(0, len(positions), BLOCK):  # many where many rows are alike
            part = slice(start, start + BLOCK)
            scores[part] = cosines(query, self._vectors(positions[part]).astype(np.float64))
        order = np.lexsort((positions, -scores))[:k]
        return self.ids[positions[order]], scores[order]


def cosines(query: NDArray[np.float32], vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosines between a query (D,) and vectors (N, D), -1..1, each computed alike wherever its vector stands."""
    numbers = query.astype(np.float64)
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors) * (numbers @ numbers))
    found = np.einsum("nd,d->n", vectors, numbers) / np.maximum(lengths, 1e-300)
    return np.clip(found, -1, 1)  # type: ignore[no-any-return]


def _products(query: NDArray[np.float32], vectors: NDArray[np.float16]) -> NDArray[np.float64]:
    """(N,) float64: scalar products in the precision of float16 vectors, the query's as well."""
    if not len(vectors):
        return np.empty(0, np.float64)
    return np.asarray(numkong.cdist(query[None].astype(np.float16), vectors, "inner")).reshape(-1)


def _best(products: NDArray[np.float64], k: int) -> Positions:
    """Places of all that may belong to the k greatest, given what the products are off by; in no order."""
    if len(products) <= k:
        return np.arange(len(products))
    least = np.partition(products, len(products) - k)[len(products) - k]
    return np.flatnonzero(products >= least - MARGIN)


# Searches of an embedded gallery: a view in memory that keeps up with the database, which also answers filters.

FEW = 10_000  # filtered rows up to which all of them are compared


REMEMBERED = 32  # filters whose rows are kept until the gallery changes


TIE = 1e-6  # scores that differ by less are equal


Answer = tuple[NDArray[np.int64], NDArray[np.float32], bool]  # ids and scores of one query, and whether it is exact


RowMask = tuple[str, tuple[str | None, ...]]


class VectorSearcher:
    """Answers from the view as of the database's snapshot. Call `refresh` first in every transaction.

    Args:
        folder: the gallery's.
        dim: numbers of a vector.
    """

    def __init__(self, folder: Path, dim: int) -> None:
        self._folder, self._dim = folder, dim
        self._view: VectorView | None = None
        self._changes, self._generation = -1, ""
        self._filtered: dict[RowMask, Positions] = {}

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
        self, db: sqlite3.Connection, queries: NDArray[np.float32], k: int, filter: Filter | None, *, exact: bool
    ) -> list[Answer]:
        """Answers to queries, (Q, D) float32 of length 1."""
        view = self._current()
        among: Positions | None = None
        passes: Passes | None = None
        if filter:
            condition, parameters = clause(filter)
            picked: RowMask = (condition, tuple(parameters))
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

    def _current(self) -> VectorView:
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
        view = VectorView(covered, self._dim)
        self._take_up(db, view, db.execute("SELECT id FROM removed").fetchall(), meta.rows)
        return meta

    def _take_up(self, db: sqlite3.Connection, view: VectorView, gone: list[tuple[Any]], rows: int) -> None:
        if any(type(id) is not int for (id,) in gone):
            raise damaged(file_of(db), "its table 'removed' is not as it was written")
        view.drop(np.array([id for (id,) in gone], np.int64))
        for ids, vectors in stored_vectors(db, self._dim, after=view.last):
            view.append(ids, vectors)
        if view.living != rows:
            raise damaged(file_of(db), f"it has {view.living:,} vectors for {rows:,} rows")
        self._view = view

    def _positions(self, db: sqlite3.Connection, picked: RowMask, most: int | None) -> Positions | None:
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


def _asking(db: sqlite3.Connection, picked: RowMask) -> Passes:
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
