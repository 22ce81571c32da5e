"""Searches of a gallery in PostgreSQL, exact and through the index, and the rows that they answer with.

Exact: the server takes the cosine of every kept vector, in float32. No index is of that expression, so nothing but
comparing can answer. Approximate: the index takes the inner product with the query rounded to float16. Either way the
server names somewhat more rows than are wanted, and they are ranked here by their cosines in float64, which are the
scores. The index goes on (`hnsw.iterative_scan`) until enough rows have passed the filter. Its order may be relaxed, as
the rows are ranked afterwards: none is dropped for coming late, as with `strict_order`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookalike.gallery.store.base import Filter, GalleryItem, Hit, SearchResult
from lookalike.gallery.store.checks import WRAP
from lookalike.gallery.store.postgres_connection import Full, Half, psycopg, sql
from lookalike.gallery.store.postgres_schema import Names, clause

COLUMNS = "id, path, digest, size, modified, label, metadata, look"
BREADTH = 200  # `hnsw.ef_search`: candidates that the index keeps while it looks, 1000 at most
SETTINGS = "SET LOCAL hnsw.iterative_scan = relaxed_order; SET LOCAL hnsw.ef_search = {breadth}"
STATEMENT = "SELECT {columns}, vector FROM {s}.images WHERE {condition} ORDER BY {distance} LIMIT {more}"
EXACT = "vector::{v}.vector OPERATOR({v}.<=>) %s, id"
APPROXIMATE = "vector OPERATOR({v}.<#>) %s"
Statement = tuple[sql.Composed, list[Any]]  # with its parameters
FEW = "SELECT count(*) FROM (SELECT FROM {s}.images WHERE {condition} LIMIT {most}) AS counted"


@dataclass(frozen=True)
class PostgresSearcher:
    """Searches in one gallery. Every method takes a connection in a reading transaction.

    Args:
        names: of the gallery.
        few: rows, all or those that pass a filter, up to which all of them are compared.
        indexed: whether there can be an index.
    """

    names: Names
    few: int
    indexed: bool

    def settings(self, k: int) -> str:
        """SQL to run before a search for k rows: how the index is asked."""
        return SETTINGS.format(breadth=min(1000, max(BREADTH, _more(k))))

    def approximates(self, db: psycopg.Connection[Any], filter: Filter | None) -> bool:
        """Whether so many rows pass that the index answers."""
        if not self.indexed:
            return False
        condition, parameters = clause(filter)
        query = self.names(FEW, condition=condition, most=sql.Literal(self.few + 1))
        found = db.execute(query, parameters).fetchone()
        return found is not None and found[0] > self.few

    def search(
        self, db: psycopg.Connection[Any], queries: NDArray[np.float32], k: int, filter: Filter | None, *, exact: bool
    ) -> list[SearchResult]:
        """Answers to queries, (Q, D) float32 of length 1. An index that gives fewer than k has not found all that pass:
        these queries are answered exactly.
        """
        if exact:
            return [SearchResult(hits, True) for hits in self._ask(db, queries, k, filter, exact=True)]
        answers = [SearchResult(hits, False) for hits in self._ask(db, queries, k, filter, exact=False)]
        short = [place for place, found in enumerate(answers) if len(found.hits) < k]
        for place, hits in zip(short, self._ask(db, queries[short], k, filter, exact=True), strict=True):
            answers[place] = SearchResult(hits, True)
        return answers

    def sample(self, db: psycopg.Connection[Any], count: int, seed: int) -> list[tuple[int, NDArray[np.float32]]]:
        """Ids and kept vectors, (D,) float32, of some rows; of the same rows and seed the same."""
        query = self.names("SELECT id, vector FROM {s}.images ORDER BY hashint8extended(id, %s), id LIMIT %s")
        found = db.execute(query, (seed, count), binary=True)
        return [(id, vector.astype(np.float32)) for id, vector in found]

    def statement(self, query: NDArray[np.float32], k: int, filter: Filter | None, *, exact: bool) -> Statement:
        """What asks the server for the nearest rows and a few more."""
        condition, parameters = clause(filter)
        statement = self.names(
            STATEMENT,
            columns=sql.SQL(COLUMNS),
            condition=condition,
            distance=self.names(EXACT if exact else APPROXIMATE),
            more=sql.Literal(_more(k)),
        )
        return statement, [*parameters, Full(query) if exact else Half(query.astype(np.float16))]

    def _ask(
        self, db: psycopg.Connection[Any], queries: NDArray[np.float32], k: int, filter: Filter | None, *, exact: bool
    ) -> list[list[Hit]]:
        """Answers, for which the line is gone over once."""
        with db.pipeline():
            db.execute(f"SET LOCAL enable_seqscan = {'DEFAULT' if exact else 'off'}")
            cursors = [db.execute(*self.statement(query, k, filter, exact=exact), binary=True) for query in queries]
            found = [cursor.fetchall() for cursor in cursors]
        return [_ranked(query, k, values) for query, values in zip(queries, found, strict=True)]


def row_of(values: Sequence[Any]) -> GalleryItem:
    """The row of `COLUMNS`."""
    id, path, digest, size, modified, label, metadata, look = values
    return GalleryItem(id, path, digest, size, modified, label, metadata, look % WRAP)


def _ranked(query: NDArray[np.float32], k: int, found: Sequence[Sequence[Any]]) -> list[Hit]:
    """The k nearest, by their cosines with the query, -1..1; of equal ones the lower id."""
    if not found:
        return []
    vectors = np.array([values[-1] for values in found], np.float64)  # (N, D)
    numbers = query.astype(np.float64)
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors) * (numbers @ numbers))
    scores = (np.einsum("nd,d->n", vectors, numbers) / np.maximum(lengths, 1e-300)).clip(-1, 1).astype(np.float32)
    order = np.lexsort(([values[0] for values in found], -scores))[:k]
    return [Hit.of(row_of(found[place][:-1]), float(scores[place])) for place in order]


def _more(k: int) -> int:
    return k + k // 2 + 10
