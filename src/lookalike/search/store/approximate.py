"""The approximate index: a graph of near neighbours (HNSW; Malkov and Yashunin, arXiv:1603.09320), by usearch.

Its nodes hold int8 copies of the vectors, half the memory traffic of float16; each is scaled to use all of int8, which
the cosine does not see. What it finds is only a short list: the caller scores it again with the kept vectors.
"""

from __future__ import annotations

import ctypes
import errno
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lookalike.cores import cores
from lookalike.search.store.graph_file import fault_of_graph

with suppress(OSError):  # usearch has a C++ library inside; where that is the first one in the process, Ray aborts
    ctypes.CDLL("libstdc++.so.6", ctypes.RTLD_GLOBAL)

from usearch.compiled import MetricKind, ScalarKind
from usearch.index import Index

CONNECTIVITY = 24  # neighbours of a node on the upper levels, twice as many on the lowest
BUILDING = 128  # candidates looked at to place a node
SEARCHING = 64  # candidates looked at to answer a query
MANY = 200_000  # vectors beyond which they are twice as many
CHUNK = 8192  # vectors added at a time
FIRST = 1024  # vectors placed one after the other: threads that place the first ones do not see each other's
LOOKED_AT = 10  # nearest ones among which a vector that was placed must find itself
EQUAL = 1e-6  # cosine distance below which two vectors count as equal


class Graph:
    """Near neighbours of vectors that are known by their position, 0 to `len(self)` - 1.

    Args:
        dim: numbers of a vector.
        count: vectors that it has when it is searched; more of them take more effort. None for a graph that grows.
    """

    def __init__(self, dim: int, count: int | None = None) -> None:
        self._index = Index(
            ndim=dim,
            metric=MetricKind.Cos,
            dtype=ScalarKind.I8,
            connectivity=CONNECTIVITY,
            expansion_add=BUILDING,
            expansion_search=_effort(count or 0),
            enable_key_lookups=count is None,  # where a key is matters only to place it anew
        )
        self.data = np.empty(0, np.uint8)

    def __len__(self) -> int:
        return len(self._index)

    def view(self, data: NDArray[np.uint8]) -> None:
        """Use a saved graph, the bytes of its file (L,), without a copy. `fault_of_saved` comes first."""
        self._index.view(data.data)
        self.data = data  # which usearch does not keep

    def load(self, data: NDArray[np.uint8]) -> None:
        """Take up a copy of a saved graph, to add to it. `fault_of_saved` comes first."""
        self._index.load(data.data)

    def add(self, vectors: NDArray[np.float16]) -> None:
        """Place further vectors, (N, D), on all cores; they get the next positions. Of a graph that grows."""
        start = 0
        while start < len(vectors):
            alone = len(self) < FIRST
            part = vectors[start : start + (FIRST - len(self) if alone else CHUNK)]
            positions = np.arange(len(self), len(self) + len(part), dtype=np.uint64)
            small = _small(part)
            threads = 1 if alone else cores()
            self._index.add(positions, small, threads=threads)
            if threads > 1:
                self._mend(positions, small)
            start += len(part)

    def _mend(self, positions: NDArray[np.uint64], small: NDArray[np.int8]) -> None:
        """Place those anew, one after the other, that cannot be found by their own vector.

        Threads that place vectors side by side lose some, and with each a part of the answers of the queries near it:
        one in 250 where there are more threads than processors, one in some thousands where there are as many.
        """
        self._index.expansion_search = _effort(len(self))  # type: ignore[misc]  # its setter stands apart
        found = self._index.search(small, min(LOOKED_AT, len(self)), threads=cores())
        keys, distances = np.atleast_2d(found.keys), np.atleast_2d(found.distances)  # of one vector they are flat
        itself = (keys == positions[:, None]).any(axis=1)
        among_equals = distances[:, -1] < EQUAL  # it need not be one of so few
        for place in np.flatnonzero(~itself & ~among_equals):
            self._index.remove(int(positions[place]))
            self._index.add(positions[place], small[place], threads=1)

    def save(self, path: Path) -> None:
        """Write it to a file.

        Raises:
            OSError: it cannot be written.
        """
        try:
            self._index.save(path)
        except (RuntimeError, ValueError) as error:
            raise OSError(errno.EIO, str(error), str(path)) from None
        if path.stat().st_size != self._index.serialized_length:
            raise OSError(errno.ENOSPC, "was not written whole", str(path))

    def nearest(self, query: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        """Positions of about the `count` nearest to a query (D,); never more than there are."""
        found = self._index.search(_small(query[None])[0], min(count, len(self)), threads=1)
        return np.asarray(found.keys).astype(np.int64)


def fault_of_saved(data: NDArray[np.uint8], dim: int, count: int) -> str:
    """What is wrong with the bytes of a saved graph of `count` vectors; empty where it may be used."""
    return fault_of_graph(data, dim, count, CONNECTIVITY)


def _effort(count: int) -> int:
    """Candidates looked at to answer a query among so many vectors."""
    return 2 * SEARCHING if count > MANY else SEARCHING


def _small(vectors: NDArray[np.floating]) -> NDArray[np.int8]:
    """(N, D) int8: each vector scaled so that its largest number is 127."""
    numbers = np.asarray(vectors, np.float32)
    most = np.abs(numbers).max(axis=1, keepdims=True)
    small: NDArray[np.int8] = np.rint(numbers * (127 / np.maximum(most, 1e-12))).astype(np.int8)
    return small
