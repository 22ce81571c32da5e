"""What a process holds in memory to search: which rows live, the covered vectors where they lie, and the newer ones.

A position is a row's place here: first those of the derived files, then the tail of rows that are newer than these. Ids
ascend with the positions. Scores that are given out are computed in float64 from the kept vectors, whatever found the
rows, so that exact and approximate search agree on them to the last digit.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numkong
import numpy as np
from numpy.typing import NDArray

from lookalike.search.store.derived import Covered

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


class View:
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
