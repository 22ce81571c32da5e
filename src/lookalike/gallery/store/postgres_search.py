"""Searches of a gallery in PostgreSQL.

An exact search computes the cosine of every stored vector in float32, by an expression that no index covers. An
approximate search uses the index, which orders the vectors by their inner product with the query in float16. Either way
the server returns somewhat more items than asked for, and their scores are computed here, in float64.

The index is scanned further (`hnsw.iterative_scan`) until enough items have passed the filter. The order of the scan is
relaxed, since the items are sorted by score here; `strict_order` would drop items that come late.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookalike.gallery.store.base import Filter, Hit, SearchResult
from lookalike.gallery.store.common import TIE, cosines
from lookalike.gallery.store.postgres_connection import Connection, Full, Half, sql
from lookalike.gallery.store.postgres_rows import COLUMNS, clause, item_of
from lookalike.gallery.store.postgres_schema import Names

EF_SEARCH = 200  # candidates that the index keeps during a search (`hnsw.ef_search`), 1000 at most
SETTINGS = "SET LOCAL hnsw.iterative_scan = relaxed_order; SET LOCAL hnsw.ef_search = {candidates}"
NEAREST = "SELECT {columns}, vector FROM {s}.images WHERE {condition} ORDER BY {distance} LIMIT {more}"
EXACT_DISTANCE = "vector::{v}.vector OPERATOR({v}.<=>) %s, id"
APPROXIMATE_DISTANCE = "vector OPERATOR({v}.<#>) %s"
COUNT = "SELECT count(*) FROM (SELECT FROM {s}.images WHERE {condition} LIMIT {most}) AS counted"

Statement = tuple[sql.Composed, list[Any]]  # SQL with its parameters


@dataclass(frozen=True)
class PostgresSearcher:
    """Searches in one gallery. Every method takes a connection in a reading transaction.

    Args:
        names: of the gallery.
        exact_below: items that pass the filter, up to which a search is exact.
        indexed: whether the vectors can be indexed.
    """

    names: Names
    exact_below: int
    indexed: bool

    def settings(self, k: int) -> str:
        """Return SQL that sets up a search for k items."""
        return SETTINGS.format(candidates=min(1000, max(EF_SEARCH, _more(k))))

    def approximates(self, db: Connection, filter: Filter | None) -> bool:
        """Return whether so many items pass a filter that the index is used."""
        if not self.indexed:
            return False
        condition, parameters = clause(filter)
        query = self.names(COUNT, condition=condition, most=sql.Literal(self.exact_below + 1))
        found = db.execute(query, parameters).fetchone()
        return found is not None and found[0] > self.exact_below

    def search(
        self, db: Connection, queries: NDArray[np.float32], k: int, filter: Filter | None, *, exact: bool
    ) -> list[SearchResult]:
        """Return the k nearest items of each query, (Q, D) float32 of length 1.

        If the index returns fewer than k items, it has not found all that pass: the query is then answered exactly.
        """
        if exact:
            return [SearchResult(hits, True) for hits in self._nearest(db, queries, k, filter, exact=True)]
        results = [SearchResult(hits, False) for hits in self._nearest(db, queries, k, filter, exact=False)]
        short = [place for place, result in enumerate(results) if len(result.hits) < k]
        for place, hits in zip(short, self._nearest(db, queries[short], k, filter, exact=True), strict=True):
            results[place] = SearchResult(hits, True)
        return results

    def recall(self, db: Connection, k: int, sample: int, seed: int) -> float:
        """Return the mean share of the exact hits among the approximate ones, for a sample of items as queries."""
        if not self.approximates(db, None):
            return 1.0
        shares = []
        for own, vector in self.sample(db, sample, seed):
            query = (vector / np.linalg.norm(vector))[None]
            results = [self.search(db, query, k + 1, None, exact=exact)[0] for exact in (True, False)]
            expected, found = ([hit.score for hit in result.hits if hit.id != own][:k] for result in results)
            shares.append(sum(score >= expected[-1] - TIE for score in found) / len(expected))
        return float(np.mean(shares))

    def sample(self, db: Connection, count: int, seed: int) -> list[tuple[int, NDArray[np.float32]]]:
        """Return ids and vectors, (D,) float32, of some items, determined by the items and the seed."""
        query = self.names("SELECT id, vector FROM {s}.images ORDER BY hashint8extended(id, %s), id LIMIT %s")
        found = db.execute(query, (seed, count), binary=True)
        return [(id, vector.astype(np.float32)) for id, vector in found]

    def statement(self, query: NDArray[np.float32], k: int, filter: Filter | None, *, exact: bool) -> Statement:
        """Return the statement that finds the nearest items and a few more."""
        condition, parameters = clause(filter)
        statement = self.names(
            NEAREST,
            columns=sql.SQL(COLUMNS),
            condition=condition,
            distance=self.names(EXACT_DISTANCE if exact else APPROXIMATE_DISTANCE),
            more=sql.Literal(_more(k)),
        )
        return statement, [*parameters, Full(query) if exact else Half(query.astype(np.float16))]

    def _nearest(
        self, db: Connection, queries: NDArray[np.float32], k: int, filter: Filter | None, *, exact: bool
    ) -> list[list[Hit]]:
        """Send all queries at once."""
        with db.pipeline():
            db.execute(f"SET LOCAL enable_seqscan = {'DEFAULT' if exact else 'off'}")
            cursors = [db.execute(*self.statement(query, k, filter, exact=exact), binary=True) for query in queries]
            found = [cursor.fetchall() for cursor in cursors]
        return [_ranked(query, k, values) for query, values in zip(queries, found, strict=True)]


def _ranked(query: NDArray[np.float32], k: int, found: Sequence[Sequence[Any]]) -> list[Hit]:
    """Return the k nearest by their cosines with the query; equal ones by id."""
    if not found:
        return []
    scores = cosines(query, np.array([values[-1] for values in found], np.float64)).astype(np.float32)
    order = np.lexsort(([values[0] for values in found], -scores))[:k]
    return [Hit.of(item_of(found[place][:-1]), float(scores[place])) for place in order]


def _more(k: int) -> int:
    return k + k // 2 + 10
