"""The graph of near neighbours by itself: what many threads lose is placed anew. (What it finds: `test_sqlite.py`.)"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlite_rows import DIM, vectors_of

from lookalike.search.store import approximate
from lookalike.search.store.approximate import Graph

THREADS = 8  # more than there are processors, so that they are interrupted while they place a vector


@pytest.fixture(autouse=True)
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approximate, "cores", lambda: THREADS)


def lost(graph: Graph, vectors: NDArray[np.float16]) -> list[int]:
    """Positions whose own vector does not lead to them."""
    return [n for n, vector in enumerate(vectors) if n not in graph.nearest(vector.astype(np.float32), 10)]


def test_threads_lose_no_vector(tmp_path: Path) -> None:
    vectors = vectors_of(3000).astype(np.float16)
    for _ in range(5):
        graph = Graph(DIM)
        graph.add(vectors)
        assert len(graph) == len(vectors)
        assert lost(graph, vectors) == []
        graph.save(tmp_path / "graph")
        seen = Graph(DIM, len(vectors))
        seen.view(tmp_path / "graph")
        assert lost(seen, vectors) == []


def test_without_mending_they_lose_some(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else mending could go: most graphs of this size lose one or more."""
    monkeypatch.setattr(Graph, "_mend", lambda *given: None)
    vectors = vectors_of(3000).astype(np.float16)

    def loses() -> bool:
        graph = Graph(DIM)
        graph.add(vectors)
        return bool(lost(graph, vectors))

    assert any(loses() for _ in range(20))


def test_a_loaded_graph_is_mended_where_it_grows(tmp_path: Path) -> None:
    vectors = vectors_of(3000).astype(np.float16)
    first = Graph(DIM)
    first.add(vectors[:1500])
    first.save(tmp_path / "graph")
    for _ in range(5):
        graph = Graph(DIM)
        graph.load(tmp_path / "graph")
        graph.add(vectors[1500:])
        assert len(graph) == len(vectors)
        assert lost(graph, vectors) == []


def test_equal_vectors_are_not_placed_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.repeat(vectors_of(2).astype(np.float16), 2000, axis=0)
    graph = Graph(DIM)
    graph.add(vectors[:1024])
    placed: list[int] = []
    honest = graph._index.add

    def add(keys: NDArray[np.uint64], *given: object, **how: object) -> None:
        placed.append(np.size(keys))
        honest(keys, *given, **how)

    monkeypatch.setattr(graph._index, "add", add)
    graph.add(vectors[1024:])
    assert placed == [len(vectors) - 1024]
    assert len(graph) == len(vectors)
