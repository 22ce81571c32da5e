"""The HNSW index: vectors that threads lose are placed again. `test_sqlite.py` tests what it finds."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlite_items import DIM, vectors_of
from usearch.index import BatchMatches

from lookalike.gallery.store import ann_index
from lookalike.gallery.store.ann_index import HnswIndex

THREADS = 8  # more than there are processors, so that they are interrupted while they place a vector


@pytest.fixture(autouse=True)
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ann_index, "cores", lambda: THREADS)


def lost(graph: HnswIndex, vectors: NDArray[np.float16]) -> list[int]:
    """Positions whose own vector does not lead to them."""
    return [n for n, vector in enumerate(vectors) if n not in graph.nearest(vector.astype(np.float32), 10)]


def watched(method: Callable[..., object], log: list[NDArray[np.uint64]]) -> Callable[..., object]:
    """The same method; the keys that it is given are noted."""

    def call(keys: NDArray[np.uint64], *given: object, **how: object) -> object:
        log.append(np.atleast_1d(keys))
        return method(keys, *given, **how)

    return call


def test_threads_lose_next_to_no_vector(tmp_path: Path) -> None:
    """Of this size a graph lost eight, in the mean. (What is placed later may still cut off one placed before.)"""
    vectors = vectors_of(3000).astype(np.float16)
    left = 0
    for _ in range(2):
        graph = HnswIndex(DIM)
        graph.add(vectors[:2000])
        graph.save(tmp_path / "graph")
        grown = HnswIndex(DIM)
        grown.load(np.fromfile(tmp_path / "graph", np.uint8))
        grown.add(vectors[2000:])
        assert len(grown) == len(vectors)
        grown.save(tmp_path / "grown")
        seen = HnswIndex(DIM, len(vectors))
        seen.view(np.fromfile(tmp_path / "grown", np.uint8))
        left += len(lost(seen, vectors))
    assert left <= 2


def test_what_does_not_find_itself_is_placed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = vectors_of(1500).astype(np.float16)
    graph = HnswIndex(DIM)
    graph.add(vectors[:1400])
    index, log = graph._index, []
    honest = index.search

    class Misled:
        """Matches among which only the third and the last vector do not find themselves."""

        def __init__(self, found: BatchMatches) -> None:
            self.keys, self.distances = found.keys.copy(), found.distances
            self.keys[:, 0] = np.arange(1400, 1500)
            self.keys[[2, -1]] = 0

    monkeypatch.setattr(index, "search", lambda *given, **how: Misled(honest(*given, **how)))
    monkeypatch.setattr(index, "remove", watched(index.remove, log))
    monkeypatch.setattr(index, "add", watched(index.add, log))
    graph.add(vectors[1400:])
    monkeypatch.undo()
    assert [keys.tolist() for keys in log] == [list(range(1400, 1500)), [1402], [1402], [1499], [1499]]
    assert len(graph) == len(vectors)
    assert {1402, 1499} & set(lost(graph, vectors)) == set()


def test_one_vector_at_a_time() -> None:
    vectors = vectors_of(1030).astype(np.float16)
    graph = HnswIndex(DIM)
    graph.add(vectors[:1025])
    for n in range(1025, 1030):
        graph.add(vectors[n : n + 1])
    assert len(graph) == 1030
    assert lost(graph, vectors) == []


def test_equal_vectors_are_not_placed_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.repeat(vectors_of(2).astype(np.float16), 1400, axis=0)
    graph = HnswIndex(DIM)
    graph.add(vectors[:1024])
    log: list[NDArray[np.uint64]] = []
    monkeypatch.setattr(graph._index, "add", watched(graph._index.add, log))
    graph.add(vectors[1024:])
    assert [len(keys) for keys in log] == [len(vectors) - 1024]
    assert len(graph) == len(vectors)


def test_onnxruntime_can_be_imported_after_the_index() -> None:
    """Usearch contains a C++ library, which must not become that of the whole process."""
    code = "import lookalike.gallery.store.ann_index, onnxruntime"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
