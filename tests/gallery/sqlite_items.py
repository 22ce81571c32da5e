"""Items for tests of the store in a folder: clustered vectors, and a slow search to compare with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lookalike.gallery.store.base import GalleryInfo, GalleryItem, NewItem
from lookalike.gallery.store.sqlite import SqliteStore

DIM = 32
ABOUT = GalleryInfo("f" * 64, DIM, model="runs/a/model", image_size=64, threshold=0.5)


def vectors_of(count: int, seed: int = 0, dim: int = DIM, classes: int = 40) -> NDArray[np.float32]:
    """(count, dim) float32 of length 1, around centres that do not depend on the seed."""
    centres = np.random.default_rng(99).standard_normal((classes, dim))
    random = np.random.default_rng(seed)
    vectors = centres[random.integers(0, classes, count)] + 0.7 * random.standard_normal((count, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def rows_of(vectors: NDArray[np.float32], start: int = 0, classes: int = 10) -> list[NewItem]:
    """Rows whose path and label tell their number."""
    return [
        NewItem(f"{n:06}.jpg", b"%d" % n, vector, label=f"class {n % classes}", metadata={"n": n, "even": n % 2 == 0})
        for n, vector in enumerate(vectors, start)
    ]


def made(folder: Path, count: int, *, exact_below: int, batch: int = 500) -> SqliteStore:
    """A store with rows, open for writing."""
    store = SqliteStore.create(folder, ABOUT, exact_below=exact_below)
    vectors = vectors_of(count)
    for start in range(0, count, batch):
        store.add(rows_of(vectors[start : start + batch], start))
    return store


def slow_search(
    store: SqliteStore, queries: NDArray[np.float32], k: int, among: Iterable[GalleryItem] | None = None
) -> list[list[int]]:
    """Ids of the nearest items of each query: every stored vector is compared; equal cosines are ordered by id."""
    ids = np.array([row.id for row in (store.rows() if among is None else among)])
    vectors = store.vectors(ids).astype(np.float64)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found = []
    for query in queries:
        scores = np.float32(unit @ query / np.linalg.norm(query))
        found.append(ids[np.lexsort((ids, -scores))[:k]].tolist())
    return found


def ids_found(store: SqliteStore, queries: NDArray[np.float32], k: int = 10, **how: object) -> list[list[int]]:
    """Ids of the hits of each query."""
    return [[hit.id for hit in found.hits] for found in store.search(queries, k, **how)]  # type: ignore[arg-type]


def recall(found: Sequence[Sequence[int]], right: Sequence[Sequence[int]]) -> float:
    """Mean share of the right ids that were found."""
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, right, strict=True)]))
